"""``ktllama bench``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ktllama import devices
from ktllama.cli import options as shared
from ktllama.cli.translate import report
from ktllama.model.sources import is_remote
from ktllama.ruleset.wording import harmless
from ktllama.units import counted

if TYPE_CHECKING:
    from ktllama.benching.comparison import Contender, Measured, Progress, Workload
    from ktllama.runtime.context_options import ContextOptions
    from ktllama.translation import Options

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MAX_DEPTHS = 16
_MAX_TOKENS = 1 << 20


class _Depths(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """``0,512,4096``: depths in rising order."""

    name = "depths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        if not all(word.isascii() and word.isdecimal() and len(word) < 9 for word in words):
            self.fail(f"{value!r}: expected numbers of tokens, such as 0,1024,4096", param, ctx)
        depths = tuple(int(word) for word in words)
        if len(set(depths)) != len(depths):
            self.fail(f"{value!r}: a depth is there twice", param, ctx)
        if max(depths) > _MAX_TOKENS or len(depths) > _MAX_DEPTHS:
            self.fail(f"{value!r}: at most {_MAX_DEPTHS} depths up to {_MAX_TOKENS}", param, ctx)
        return tuple(sorted(depths))


def _workload_options(command: _Command) -> _Command:
    """What is measured, and how often."""
    for option in reversed(
        (
            click.option("-d", "--depth", "depths", type=_Depths(), default=(0, 1024), metavar="N[,N…]",
                         help="Tokens that are in the KV cache already.  [default: 0,1024]"),
            click.option("--prefill", type=click.IntRange(0, _MAX_TOKENS), default=256, show_default=True, metavar="N",
                         help="Tokens to read at each depth; 0: none."),
            click.option("--decode", type=click.IntRange(0, _MAX_TOKENS), default=16, show_default=True, metavar="N",
                         help="Tokens to decode at each depth; 0: none."),
            click.option("--repeat", type=click.IntRange(1, 1000), default=6, show_default=True, metavar="N",
                         help="Measurements of each; six are the fewest that give 95% confidence."),
            shared.stand_ins_option,
            click.option("--ctx", type=click.IntRange(1, 1 << 24),
                         help="Context, in tokens.  [default: what the depths need]"),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@click.command("bench")
@shared.default_model_option
@click.option("-r", "--rules", "rules", multiple=True, metavar="RULES", type=click.Path(),
              help="A placement to measure; give it again for each other.  [default: tiny-R1's own]")  # fmt: skip
@_workload_options
@shared.settings_options
@shared.placement_options
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON, each measurement included.")
def command(
    model: str | None,
    rules: tuple[str, ...],
    depths: tuple[int, ...],
    prefill: int,
    decode: int,
    repeat: int,
    stand_ins: bool,
    device_map: tuple[str, ...],
    default_device: str,
    budgets: tuple[str, ...],
    load_mode: str,
    as_json: bool,
    **context: Any,
) -> int:
    """Measure placements of a model on this machine: prefill and decode at several depths.

    Every placement is loaded in a process of its own and measured in turn with the others, so that what disturbs the
    machine disturbs all alike. Shown are medians, the interval that holds the median with at least 95% confidence, and
    ratios to the first placement. Without a model it is the embedded tiny-R1.

    \b
    ktllama bench -m FILE.gguf --rules deepseek-r1/1x24gb --rules mine.yaml --depth 0,4096
    """
    if not rules and model is not None:
        raise click.UsageError("Which placement? Give --rules, once for each; only the embedded model has its own.")
    if not prefill and not decode:
        raise click.UsageError("--prefill 0 and --decode 0 leave nothing to measure.")
    rules, model = rules or (shared.EMBEDDED_RULES,), shared.model_or_default(model)
    if is_remote(model):
        raise click.UsageError(
            "bench loads the weights, so the model must be a file on this machine: download it first."
        )
    from ktllama.benching.comparison import Workload, compare

    workload = Workload(depths=depths, prefill_tokens=prefill, decode_tokens=decode, repetitions=repeat)
    options = shared.make_options("python", device_map, default_device, budgets, load_mode)
    asked = _context(workload, context)
    contenders = [_contender(one, name, model, options, asked) for one, name in zip(rules, _names(rules), strict=True)]
    with _progress(len(contenders), workload) as progress:
        measured = compare(contenders, workload, stand_ins=stand_ins, progress=progress)
    _show(model, workload, measured, as_json=as_json)
    return 0


def _context(workload: Workload, context: dict[str, Any]) -> ContextOptions:
    asked, needed = context["ctx"], workload.n_ctx
    if asked is not None and asked < needed:
        raise click.UsageError(f"--ctx {asked} is too small: these depths and tokens need {needed}.")
    return shared.context_of({**context, "ctx": asked or needed})


def _names(rules: tuple[str, ...]) -> list[str]:
    """What each placement is called: as it was given, numbered where one was given twice."""
    seen: dict[str, int] = {}
    names = []
    for one in rules:
        seen[one] = seen.get(one, 0) + 1
        names.append(one if seen[one] == 1 else f"{one} ({seen[one]})")
    return names


def _contender(rules: str, name: str, model: str, options: Options, context: ContextOptions) -> Contender:
    from ktllama.benching.comparison import Contender
    from ktllama.benching.room import gpu_bytes
    from ktllama.translation import translate

    translation = translate(rules, model, options=options)
    report(tuple(found for found in translation.diagnostics if found.severity != "note"))
    trained = translation.model.integer("context_length")
    if 0 < trained < context.n_ctx:
        raise click.UsageError(
            f"a context of {context.n_ctx} tokens is longer than the {trained} that {translation.model.name} was "
            "trained with: take a smaller --ctx or smaller depths."
        )
    return Contender(
        name=name,
        model_path=model,
        settings=translation.settings,
        context=context,
        cpu_bytes=translation.placement.bytes_by_device().get(devices.CPU, 0),
        gpu_bytes=gpu_bytes(translation.placement, context, options.device_map),
        explicit_devices=tuple(options.device_map.chosen.values()),
    )


@contextmanager
def _progress(n_placements: int, workload: Workload) -> Iterator[Progress]:
    """A bar on a terminal, elsewhere a line for every turn of a placement."""
    if not sys.stderr.isatty():
        yield _lines(n_placements, workload)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("loading", total=n_placements * workload.repetitions * len(workload.depths))
        started = False

        def update(name: str, repetition: int, depth: int) -> None:
            nonlocal started
            bars.update(task, advance=int(started), description=f"{name}, {repetition + 1}. time, depth {depth}")
            started = True

        yield update


def _lines(n_placements: int, workload: Workload) -> Progress:
    click.echo(f"loading {counted(n_placements, 'placement')}", err=True)

    def update(name: str, repetition: int, depth: int) -> None:
        if depth == workload.depths[0]:
            click.echo(f"measuring {harmless(name)}, {repetition + 1} of {workload.repetitions}", err=True)

    return update


def _show(model: str, workload: Workload, measured: tuple[Measured, ...], *, as_json: bool) -> None:
    if as_json:
        from ktllama.benching.document import comparison_document

        click.echo(json.dumps(comparison_document(model, workload, measured), indent=1))
        return
    from ktllama.cli.bench_text import print_comparison

    print_comparison(model, workload, measured, sys.stdout)
