"""Options that several commands share, turned into values of the library."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ktllama import devices, shipped_rules
from ktllama.devices import parse_device_map
from ktllama.errors import DeviceError, ModelFileError
from ktllama.lower.settings import LoadMode, Target
from ktllama.model.kv_cache import CACHE_TYPES
from ktllama.model.quantization import DEFAULT, MIXES
from ktllama.model.sources import is_remote
from ktllama.placing.resolve import DEFAULT_DEVICE
from ktllama.translation import Options
from ktllama.units import parse_bytes

if TYPE_CHECKING:
    from ktllama.model.http_session import Access
    from ktllama.runtime.context_options import ContextOptions

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: The folder of shipped rules for the embedded model, and which of them a command takes where none is given.
EMBEDDED_FAMILY = "tiny-r1"
EMBEDDED_RULES = "tiny-r1/cpu"

TARGETS = ("python", "llama-server", "ik_llama.cpp")
LOAD_MODES = ("auto", "none", "mmap", "mlock")
CACHE_TYPE_NAMES = tuple(CACHE_TYPES)

device_map_option = click.option(
    "--device-map",
    multiple=True,
    metavar="RULE_DEVICE=LLAMA_DEVICE",
    help="Name of a rule's device in llama.cpp, such as cuda:0=Vulkan1.",
)
stand_ins_option = click.option(
    "--stand-ins",
    is_flag=True,
    help="Let the CPU stand in for devices that this machine lacks; their speeds mean nothing.",
)
strict_option = click.option("--strict", is_flag=True, help="Treat warnings as errors.")

# What the planner is told, by plan and by tune.
margin_option = click.option(
    "--margin", metavar="SIZE", default="512M", show_default=True, help="Kept free on each device."
)
planned_context_option = click.option(
    "--ctx",
    type=click.IntRange(256, 1 << 24),
    help="Context, in tokens of all sequences together.  [default: 32768, or what the model has]",
)
parallel_option = click.option(
    "--parallel", type=click.IntRange(1, 256), default=1, show_default=True, help="Sequences."
)


def rules_argument(command: _Command) -> _Command:
    """The rule file."""
    return click.argument("rules", metavar="RULES", type=click.Path())(command)


def model_options(command: _Command) -> _Command:
    """``--model`` or ``--preset``."""
    preset = click.option("--preset", metavar="NAME", help="Assume a known model where there is no file.")
    model = click.option(
        "-m",
        "--model",
        metavar="MODEL",
        type=click.Path(),
        help="The model: FILE.gguf (of a split one, the first file), https://HOST/FILE.gguf or hf:OWNER/REPO[:FILE].",
    )
    return model(preset(command))


def default_model_option(command: _Command) -> _Command:
    """``--model`` of a command that runs a model: a file, or the embedded one (:func:`model_or_default`)."""
    return click.option(
        "-m", "--model", metavar="FILE.gguf", type=click.Path(), help="The model.  [default: the embedded tiny-R1]"
    )(command)


def model_or_default(model: str | None) -> str:
    """The model that was given, or the path of the embedded one, which is then said on standard error.

    Raises:
        ModelFileError: when none was given and this installation has no embedded model.
    """
    if model is not None:
        return model
    from ktllama import assets

    path = assets.tiny_r1()
    if not path.is_file():
        raise ModelFileError("--model", "none is given, and this installation embeds none: name a GGUF file")
    click.echo(f"no --model given: this is the embedded tiny-R1, {path}", err=True)
    return str(path)


def model_for(rules: str, model: str | None, preset: str | None, config: str | None) -> str | None:
    """The model that was given; for shipped rules of tiny-R1 without any, the embedded one.

    None leaves the choice to the translation: a preset, or what the rules seem to be for.
    """
    if (model, preset, config) == (None, None, None) and Path(shipped_rules.find(rules)).parent.name == EMBEDDED_FAMILY:
        return model_or_default(None)
    return model


def config_files(config: str | None) -> tuple[str, ...]:
    """What ``--config`` may read: that file, or the one in that folder."""
    return () if config is None else (config, str(Path(config, "config.json")))


def config_options(command: _Command) -> _Command:
    """``--config`` and ``--quant``."""
    quant = click.option(
        "--quant",
        type=click.Choice(tuple(MIXES)),
        help=f"The quantization that --config assumes.  [default: {DEFAULT}]",
    )
    config = click.option(
        "--config",
        metavar="CONFIG",
        type=click.Path(),
        help="Take the sizes from a Hugging Face config.json: its path, or hf:OWNER/REPO.",
    )
    return config(quant(command))


def with_model(
    options: Options, model: str | None, preset: str | None = None, config: str | None = None, quant: str | None = None
) -> Options:
    """``options`` with what it takes to read the model that was chosen.

    Raises:
        UsageError: when more than one was.
    """
    chosen = [name for name, value in (("model", model), ("preset", preset), ("config", config)) if value is not None]
    if len(chosen) > 1:
        raise click.UsageError(f"--{' and --'.join(chosen)} exclude each other.")
    if quant is not None and config is None:
        raise click.UsageError("--quant is for --config; a file and a preset have their own quantization.")
    remote = any(source is not None and is_remote(source) for source in (model, config))
    return replace(options, quantization=quant or DEFAULT, access=_access() if remote else None)


def _access() -> Access:
    from urllib.request import getproxies

    from ktllama.model.http_session import HUB, Access

    token = os.environ.get("HF_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable()):
        raise click.UsageError("HF_TOKEN holds characters that are in no token.")
    return Access(hub=os.environ.get("HF_ENDPOINT") or HUB, hub_token=token or None, proxies=getproxies())


def placement_options(command: _Command) -> _Command:
    """What a translation may be told besides rules and model."""
    for option in (
        click.option(
            "--budget",
            "budgets",
            multiple=True,
            metavar="DEVICE=SIZE",
            help="Memory of a device, such as cuda:0=24G; tensors over it are an error.",
        ),
        click.option(
            "--load-mode",
            type=click.Choice(LOAD_MODES),
            default="auto",
            show_default=True,
            help="How llama.cpp loads: none reads the file into memory, which pinned buffers need.",
        ),
        click.option(
            "--default-device",
            default=DEFAULT_DEVICE,
            show_default=True,
            metavar="DEVICE",
            help="Where modules go that no rule matches.",
        ),
        device_map_option,
    ):
        command = option(command)
    return command


def context_options(command: _Command) -> _Command:
    """What the llama.cpp context is asked for."""
    option = click.option(
        "--ctx", type=click.IntRange(1, 1 << 24), default=4096, show_default=True, help="Context, in tokens."
    )
    return option(settings_options(command))


def settings_options(command: _Command) -> _Command:
    """What the llama.cpp context is asked for besides its length."""
    for option in (
        click.option("--threads", type=click.IntRange(1, 512), help="CPU threads.  [default: all]"),
        click.option("--flash-attn", type=click.Choice(("auto", "on", "off")), default="auto", show_default=True),
        click.option("--kv-type", type=click.Choice(CACHE_TYPE_NAMES), default="f16", show_default=True),
        click.option("--ubatch", type=click.IntRange(1, 65536), default=512, show_default=True, help="Tokens a graph."),
    ):
        command = option(command)
    return command


def context_of(given: Mapping[str, Any]) -> ContextOptions:
    """The context that :func:`context_options` describe."""
    from ktllama.runtime.context_options import ContextOptions

    return ContextOptions(
        n_ctx=given["ctx"],
        n_batch=max(2048, given["ubatch"]),
        n_ubatch=given["ubatch"],
        type_k=given["kv_type"],
        type_v=given["kv_type"],
        flash_attn=given["flash_attn"],
        n_threads=given["threads"],
    )


class FiniteRange(click.FloatRange):
    """A float range that refuses ``nan`` and ``inf``, which no comparison with a bound finds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or a usage error."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no number.", param, ctx)
        return found


def make_options(
    target: str, device_map: tuple[str, ...], default_device: str, budgets: tuple[str, ...], load_mode: str
) -> Options:
    """The library's options.

    Raises:
        DeviceError: for devices or budgets that cannot be understood.
    """
    return Options(
        target=cast(Target, target),
        device_map=parse_device_map(device_map),
        default_device=_device("--default-device", default_device),
        budgets=dict(_budget(text) for text in budgets),
        load_mode=cast(LoadMode, load_mode),
    )


def _device(option: str, name: str) -> str:
    try:
        device = devices.canonical(name)
    except ValueError:
        device = devices.AUTO
    if device == devices.AUTO:
        raise DeviceError(f"{option} {name!r}: no such device; expected cpu, cuda:N, xpu:N or npu:N")
    return device


def _budget(text: str) -> tuple[str, int]:
    name, equals, size = text.partition("=")
    device = _device("--budget", name)
    try:
        n_bytes = parse_bytes(size)
    except ValueError:
        n_bytes = 0
    if not equals or n_bytes <= 0:
        raise DeviceError(f"--budget {text!r}: expected DEVICE=SIZE with a size above 0, for example cuda:0=24G")
    return device, n_bytes
