"""``ktllama run``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ktllama import devices
from ktllama.cli import options as shared
from ktllama.cli.translate import report
from ktllama.model.sources import is_remote
from ktllama.ruleset.wording import printable
from ktllama.translation import Translation, translate
from ktllama.units import counted, format_bytes

if TYPE_CHECKING:
    from ktllama.runtime.buffers import BufferCheck
    from ktllama.runtime.generate import TextStream
    from ktllama.runtime.load import LoadedModel


@click.command("run")
@click.argument("rules", metavar="[RULES]", type=click.Path(), required=False)
@shared.default_model_option
@click.option("-p", "--prompt", required=True, help="What to say to the model; - reads it from standard input.")
@click.option("-n", "--max-tokens", type=click.IntRange(1, 1 << 20), default=256, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 5), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True)
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), default=0, show_default=True)
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@click.option("--stand-ins", is_flag=True, help="Let the CPU stand in for devices that this machine lacks.")
@shared.placement_options
@shared.context_options
def command(
    rules: str | None,
    model: str | None,
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    raw: bool,
    stand_ins: bool,
    device_map: tuple[str, ...],
    default_device: str,
    budgets: tuple[str, ...],
    load_mode: str,
    **context: object,
) -> int:
    """Load a model under RULES, check its buffers against the plan, and generate.

    Without a model it is the embedded tiny-R1, and without RULES either, those that put it on the CPU.

    The text goes to standard output; progress, checks and tokens/s to standard error.
    """
    if rules is None and model is not None:
        raise click.UsageError("Missing argument 'RULES': only the embedded model has rules of its own.")
    rules, model = rules or shared.EMBEDDED_RULES, shared.model_or_default(model)
    if is_remote(model):
        raise click.UsageError("run loads the weights, so the model must be a file on this machine: download it first.")
    from ktllama.runtime.generate import generate

    text = sys.stdin.read() if prompt == "-" else prompt
    translation = translate(
        rules, model, options=shared.make_options("python", device_map, default_device, budgets, load_mode)
    )
    report(translation.diagnostics)
    loaded = _load(translation, model, shared.context_of(context), stand_ins=stand_ins)
    try:
        checked = _check(translation, loaded)
        if not checked.ok:
            return 1
        stream = generate(
            loaded,
            text,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            chat=not raw,
        )
        _write(stream)
    finally:
        loaded.close()
    return 0


def _load(translation: Translation, model: str, context: Any, *, stand_ins: bool) -> LoadedModel:
    from ktllama.runtime.load import load

    with _progress() as progress:
        return load(
            model,
            translation.settings,
            context,
            progress=progress,
            explicit_devices=tuple(translation.options.device_map.chosen.values()),
            stand_ins=stand_ins,
            cpu_bytes=translation.placement.bytes_by_device().get(devices.CPU, 0),
        )


@contextmanager
def _progress() -> Iterator[Callable[[float], bool | None] | None]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("loading"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=1.0)

        def update(share: float) -> None:
            bar.update(task, completed=share)

        yield update


def _check(translation: Translation, loaded: LoadedModel) -> BufferCheck:
    """Compare the buffers with the plan and say what came of it."""
    from ktllama.runtime.buffers import check_buffers

    checked = check_buffers(loaded, translation.placement, translation.options.device_map)
    for device, planned in checked.planned_bytes.items():
        found = checked.found_bytes.get(device, 0)
        state = "mapped from the file, not compared" if device in checked.not_compared else "as planned"
        if any(device in str(mismatch) for mismatch in checked.mismatches):
            state = f"planned {format_bytes(planned)}"
        click.echo(f"{device}: {format_bytes(found)} of weights, {state}", err=True)
    for mismatch in checked.mismatches:
        click.echo(f"not as planned: {printable(str(mismatch))}", err=True)
    return checked


def _write(stream: TextStream) -> None:
    """Stream to standard output; Ctrl-C ends the text, not the report."""
    try:
        for piece in stream:
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo(" …", nl=False)
    finally:
        stream.close()
    click.echo()
    timings = stream.timings
    click.echo(
        f"prefill {counted(timings.prefill_tokens, 'token')}, {timings.prefill_tokens_per_second:.1f} tokens/s; "
        f"decode {counted(timings.decode_tokens, 'token')}, {timings.decode_tokens_per_second:.1f} tokens/s",
        err=True,
    )
