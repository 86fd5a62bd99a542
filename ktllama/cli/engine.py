"""What the commands that run an engine share: its options, the model and rules that they choose, and the launch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from ktllama import devices, shipped_rules
from ktllama.cli import options as shared
from ktllama.cli.translate import report
from ktllama.errors import ModelFileError
from ktllama.model.sources import is_remote
from ktllama.translation import Options, Translation, translate

if TYPE_CHECKING:
    from ktllama.engine.heartbeat import Heartbeat
    from ktllama.engine.launch import Launch
    from ktllama.server.settings import ServeSettings

_Command = TypeVar("_Command", bound=Callable[..., Any])

EXECUTOR = "ktllama.runtime.executor:open_in_own_process"


def engine_options(command: _Command) -> _Command:
    """The model, its placement and its context; what is not given is None, so that other sources may say it."""
    for option in reversed(
        (
            click.option("-m", "--model", metavar="FILE.gguf", type=click.Path(),
                         help="The model.  [default: the one that comes with ktllama]"),
            click.option("-r", "--rules", metavar="RULES", help="Rule file, or the name of a shipped one."),
            click.option("--ctx", type=click.IntRange(1, 1 << 24), help="Tokens of all requests together."),
            click.option("--parallel", type=click.IntRange(1, 256), help="Requests that run at once."),
            click.option("--ubatch", type=click.IntRange(2, 65536), help="Tokens a graph.  [default: 512]"),
            click.option("--kv-type", type=click.Choice(shared.CACHE_TYPE_NAMES), help="[default: f16]"),
            click.option("--flash-attn", type=click.Choice(("auto", "on", "off")), help="[default: auto]"),
            click.option("--threads", type=click.IntRange(1, 512), help="CPU threads.  [default: all]"),
            shared.device_map_option,
            click.option("--default-device", metavar="DEVICE",
                         help="Where modules go that no rule matches.  [default: cuda:0]"),
            click.option("--budget", multiple=True, metavar="DEVICE=SIZE",
                         help="Memory of a device, such as cuda:0=24G; tensors over it are an error."),
            click.option("--load-mode", type=click.Choice(shared.LOAD_MODES), help="[default: auto]"),
            click.option("--stand-ins/--no-stand-ins", default=None,
                         help="Let the CPU stand in for devices that this machine lacks."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def given_flags(words: Mapping[str, object]) -> dict[str, object]:
    """Those that were given."""
    return {name: value for name, value in words.items() if value not in (None, ())}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A model, and the rules that place it with what came of them; without rules llama.cpp places it."""

    model: str
    rules: str | None
    options: Options
    translation: Translation | None


def plan(settings: ServeSettings) -> Plan:
    """Choose the model and the rules, compile them, and report what was found.

    Raises:
        UsageError: for a model that is not on this machine.
        ModelFileError: when none is named and none is embedded.
        KtllamaError: as `translate` does.
    """
    model, rules = settings.model, settings.rules
    if model is None:
        model, rules = shared.model_or_default(None), rules or shared.EMBEDDED_RULES
    if is_remote(model):
        raise click.UsageError("the weights are loaded, so the model must be a file on this machine: download it.")
    if not Path(model).is_file():
        raise ModelFileError(model, "no such file")
    return planned(settings, model, rules)


def planned(settings: ServeSettings, model: str, rules: str | None) -> Plan:
    """The plan of a model under rules, which may be the name of shipped ones.

    Raises:
        KtllamaError: as `translate` does.
    """
    options = shared.make_options(
        "python", settings.device_map, settings.default_device, settings.budget, settings.load_mode
    )
    if rules is None:
        return Plan(model=model, rules=None, options=options, translation=None)
    translation = translate(rules, model, options=options)
    report(translation.diagnostics)
    return Plan(model=model, rules=shipped_rules.find(rules), options=options, translation=translation)


def launch_of(made: Plan, settings: ServeSettings) -> Launch:
    """The engine process that runs a plan."""
    from ktllama.engine.launch import Launch

    return Launch(
        executor=EXECUTOR,
        options=executor_options(made, settings),
        queue_limit=settings.queue_limit,
        text_interval=settings.stream_interval,
        heartbeat=heartbeat_of(settings),
    )


def heartbeat_of(settings: ServeSettings) -> Heartbeat:
    """How patient to be with the engine."""
    from ktllama.engine.heartbeat import Heartbeat

    return Heartbeat(
        beat_seconds=min(1.0, settings.silence_timeout, settings.step_timeout),
        silent_seconds=settings.silence_timeout,
        step_seconds=settings.step_timeout,
        hung_seconds=settings.hang_timeout or None,
    )


def executor_options(made: Plan, settings: ServeSettings) -> dict[str, object]:
    """The fields of `ktllama.runtime.executor_options.ExecutorOptions`."""
    return {
        "model": str(Path(made.model).resolve()),
        "rules": None if made.rules is None else str(Path(made.rules).resolve()),
        "device_map": dict(made.options.device_map.chosen),
        "default_device": made.options.default_device,
        "budgets": dict(made.options.budgets),
        "load_mode": settings.load_mode,
        "stand_ins": settings.stand_ins,
        "ctx": settings.ctx,
        "parallel": settings.parallel,
        "ubatch": settings.ubatch,
        "kv_type": settings.kv_type,
        "flash_attn": settings.flash_attn,
        "threads": settings.threads,
    }


def print_plan(made: Plan, settings: ServeSettings, stream: TextIO) -> None:
    """The model, its rules, and by device the bytes of weights and of the KV cache."""
    from collections import defaultdict

    from ktllama.cli.text import make_console, plain_table, print_title
    from ktllama.layers import layer_ranges
    from ktllama.model.kv_cache import kv_bytes_per_token
    from ktllama.units import format_bytes

    translation = made.translation
    console = make_console(stream)
    if translation is None:
        print_title(console, Path(made.model).name, "without rules: on the GPUs that llama.cpp finds, else on the CPU")
        return
    placement, model = translation.placement, translation.model
    print_title(console, model.name, f"{model.architecture}, {format_bytes(model.n_bytes)}, under {made.rules}")
    weights = placement.bytes_by_device()
    layers: dict[str, list[int]] = defaultdict(list)
    for layer, device in placement.kv.items():
        layers[device].append(layer)
    table = plain_table("device", "llama.cpp", "weights", f"KV of {settings.ctx} tokens", "of layers", right=(2, 3))
    kv_type, flash = settings.kv_type, settings.flash_attn != "off"
    for device in sorted({*weights, *layers}, key=devices.order):
        per_token = (
            kv_bytes_per_token(model, layer, kv_type, kv_type, flash_attention=flash) for layer in layers[device]
        )
        kv_bytes = settings.ctx * sum(per_token)
        table.add_row(
            device,
            translation.options.device_map.llama_name(device),
            format_bytes(weights.get(device, 0)),
            format_bytes(kv_bytes) if kv_bytes else "-",
            layer_ranges(layers[device]) or "-",
        )
    console.print(table)
