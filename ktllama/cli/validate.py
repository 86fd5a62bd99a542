"""``ktllama validate``."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import click

from ktllama.cli import options as shared
from ktllama.cli.progress import progress_bars
from ktllama.cli.translate import report as report_findings
from ktllama.errors import TextFileError
from ktllama.model import gguf
from ktllama.model.sources import is_remote
from ktllama.pages import page as pages
from ktllama.validating.report import Report
from ktllama.validating.rounding import ActivationsChoice
from ktllama.validating.spread import placed
from ktllama.validating.validation import DTypeName, Task, validate

_TEXT_BYTES = 1 << 26


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no limit; expected a number of nats")
    return value


@click.command("validate")
@shared.default_model_option
@click.option("--rules", metavar="RULES", type=click.Path(), help="Where things go.  [default: all on the CPU]")
@click.option(
    "--devices",
    "spread",
    metavar="DEVICE,…",
    help="Instead of rules: spread the layers evenly over these devices, such as cuda:0,cuda:1,cpu.",
)
@click.option("-p", "--prompt", help="The text to read; - reads it from standard input.  [default: a text of ours]")
@click.option("--text", "text_file", metavar="FILE", type=click.Path(), help="A file with the text to read.")
@click.option(
    "--tokens", "max_tokens", type=click.IntRange(1, 1 << 24), help="Use the first of the text's tokens only."
)
@click.option("--against", metavar="FILE.gguf", type=click.Path(), help="Let the reference compute this file instead.")
@click.option(
    "--dtype",
    type=click.Choice(("float32", "float64", "bfloat16")),
    default="float32",
    show_default=True,
    help="What the reference computes in.",
)
@click.option(
    "--activations",
    type=click.Choice(("auto", "exact", "llama.cpp")),
    default="auto",
    show_default=True,
    help="How the reference rounds activations: not at all, as llama.cpp's CPU kernels do, or so where they run.",
)
@click.option(
    "--max-kl",
    type=click.FloatRange(0),
    callback=lambda _context, _option, value: _finite(value),
    help="Mean KL divergence from which on it fails, in nats.  [default: by the weights' type]",
)
@click.option("--stand-ins", is_flag=True, help="Let the CPU stand in for devices that this machine lacks.")
@click.option(
    "--json",
    "json_file",
    metavar="[FILE]",
    is_flag=False,
    flag_value="-",
    help="Everything as JSON, to FILE or instead of the text.",
)
@click.option("--html", "page", metavar="FILE", type=click.Path(), help="Write a page with the plots.")
@click.option("--force", is_flag=True, help="Let --json and --html overwrite a file.")
@shared.placement_options
@shared.context_options
def command(
    model: str | None,
    rules: str | None,
    spread: str | None,
    prompt: str | None,
    text_file: str | None,
    max_tokens: int | None,
    against: str | None,
    dtype: str,
    activations: str,
    max_kl: float | None,
    stand_ins: bool,
    json_file: str | None,
    page: str | None,
    force: bool,
    device_map: tuple[str, ...],
    default_device: str,
    budgets: tuple[str, ...],
    load_mode: str,
    **context: object,
) -> int:
    """Compare llama.cpp under RULES with the reference in plain PyTorch, logit by logit and layer by layer.

    Both read the same tokens. Exit status 1 if the mean KL divergence is past --max-kl or, where that is not given, a
    layer goes wrong by itself. Needs torch: pip install 'ktllama[reference]'.
    """
    _check_usage(rules=rules, spread=spread, prompt=prompt, text_file=text_file)
    path = _local(shared.model_or_default(model))
    if against is not None:
        _local(against)
    files = _outputs(json_file, page, force=force)
    _check_files(files, (path, against, rules, text_file), force=force)
    text = _text(prompt, text_file)
    options = shared.make_options("python", device_map, default_device, budgets, load_mode)
    translation = placed(rules, spread, path, options)
    _check_parts(files, translation.model.paths, against, force=force)
    report_findings(tuple(found for found in translation.diagnostics if found.severity != "note"))
    task = Task(
        translation=translation,
        model_path=path,
        text=text,
        context=shared.context_of(context),
        against=against,
        dtype=cast(DTypeName, dtype),
        activations=cast(ActivationsChoice, activations),
        max_tokens=max_tokens,
        max_kl=max_kl,
        stand_ins=stand_ins,
    )
    with progress_bars() as progress:
        report = validate(task, progress)
    _write(report, json_file, page, force=force)
    return 0 if report.ok else 1


def _check_usage(*, rules: str | None, spread: str | None, prompt: str | None, text_file: str | None) -> None:
    if rules is not None and spread is not None:
        raise click.UsageError("--rules and --devices exclude each other.")
    if prompt is not None and text_file is not None:
        raise click.UsageError("--prompt and --text exclude each other.")


def _outputs(json_file: str | None, page: str | None, *, force: bool) -> list[str]:
    """The files to write."""
    files = [name for name in (None if json_file == "-" else json_file, page) if name is not None]
    if force and not files:
        raise click.UsageError("--force is for --json FILE and --html FILE.")
    if len({os.path.realpath(name) for name in files}) < len(files):
        raise click.UsageError("--json and --html name the same file.")
    return files


def _check_files(files: list[str], inputs: Iterable[str | None], *, force: bool) -> None:
    """Refuse what cannot be written, or is read, now and not after minutes of work."""
    used = [name for name in inputs if name is not None]
    for name in files:
        pages.check(name, overwrite=force, inputs=used)


def _check_parts(files: list[str], parts: tuple[str, ...], against: str | None, *, force: bool) -> None:
    """The same for every part of split models; only an overwritten file can be one."""
    if force:
        theirs = () if against is None else gguf.read(against, header_only=True).paths
        _check_files(files, (*parts, *theirs), force=force)


def _local(model: str) -> str:
    if is_remote(model):
        raise click.UsageError("validate reads the weights, so the model must be a file on this machine.")
    return model


def _text(prompt: str | None, text_file: str | None) -> str | None:
    """The text to read, or None for the default.

    Raises:
        TextFileError: when there is none, or it is no text.
    """
    if prompt is not None:
        text, where = (sys.stdin.read(_TEXT_BYTES), "standard input") if prompt == "-" else (prompt, "--prompt")
    elif text_file is not None:
        text, where = _read(text_file), text_file
    else:
        return None
    if not text.strip():
        raise TextFileError(where, "there is no text in it")
    return text


def _read(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_TEXT_BYTES + 1)
    except OSError as fault:
        raise TextFileError(path, f"cannot be read: {fault.strerror}") from fault
    if len(data) > _TEXT_BYTES:
        raise TextFileError(path, f"is larger than {_TEXT_BYTES >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise TextFileError(path, f"is not UTF-8 (at byte {fault.start})") from fault


def _write(report: Report, json_file: str | None, page: str | None, *, force: bool) -> None:
    if json_file is not None:
        from ktllama.validating.document import report_document

        text = json.dumps(report_document(report), indent=1, allow_nan=False)
        if json_file == "-":
            click.echo(text)
        else:
            pages.write(json_file, f"{text}\n", overwrite=force)
            click.echo(f"wrote {json_file}", err=True)
    if json_file != "-":
        from ktllama.cli.validate_text import print_report

        print_report(report, sys.stdout)
    if page is not None:
        from ktllama.validating.page import render

        pages.write(page, render(report), overwrite=force)
        click.echo(f"wrote {page}", err=True)
