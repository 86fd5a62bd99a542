"""``ktllama translate``."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import PurePosixPath

import click

from ktllama import document
from ktllama.cli import options as shared
from ktllama.diagnostics import Diagnostic, Severity
from ktllama.errors import RulesetError
from ktllama.lower import emit, ik_llama
from ktllama.model.sources import is_remote
from ktllama.ruleset.wording import harmless
from ktllama.translation import Translation, analyse

_FORMATS = ("text", "json", "argv", "python", "ini")
#: The targets that a format is for, the default first.
_TARGETS_OF_FORMAT = {"argv": ("llama-server", "ik_llama.cpp"), "ini": ("llama-server",), "python": ("python",)}


@click.command("translate")
@shared.rules_argument
@shared.model_options
@shared.config_options
@click.option("--target", type=click.Choice(shared.TARGETS), help="What will run the model.  [default: by --format]")
@click.option("--format", "form", type=click.Choice(_FORMATS), default="text", show_default=True, help="Output.")
@shared.placement_options
@shared.strict_option
def command(
    rules: str,
    model: str | None,
    preset: str | None,
    config: str | None,
    quant: str | None,
    target: str | None,
    form: str,
    device_map: tuple[str, ...],
    default_device: str,
    budgets: tuple[str, ...],
    load_mode: str,
    strict: bool,
) -> int:
    """Compile RULES into llama.cpp settings.

    text is for people; json is the whole plan; argv is a llama-server command line (with --target ik_llama.cpp one for
    that), ini a llama-server preset file, python what an app that uses llama-cpp-python needs. With argv, ini and
    python, errors, warnings and notes about the whole go to standard error.
    """
    wanted = _TARGETS_OF_FORMAT.get(form, shared.TARGETS)
    if target is not None and target not in wanted:
        raise click.UsageError(f"--format {form} is for --target {' or '.join(wanted)}.")
    chosen = shared.make_options(target or wanted[0], device_map, default_device, budgets, load_mode)
    model = shared.model_for(rules, model, preset, config)
    chosen = shared.with_model(chosen, model, preset, config, quant)
    try:
        translation = analyse(rules, model, preset=preset, config=config, options=chosen)
    except RulesetError as fault:
        return _no_translation(fault, form)
    failed = fails(translation.diagnostics, strict=strict)
    _write(translation, form, model, failed=failed)
    return int(failed)


def fails(diagnostics: tuple[Diagnostic, ...], *, strict: bool) -> bool:
    """Whether the findings make the command fail."""
    fatal: set[Severity] = {"error", "warning"} if strict else {"error"}
    return any(found.severity in fatal for found in diagnostics)


def finding_lines(found: Diagnostic) -> list[str]:
    """A finding as lines, none of which a name or a path in it can begin, end or colour."""
    head = str(dataclasses.replace(found, excerpt=()))
    return [harmless(head), *(harmless(f"    {line}") for line in found.excerpt)]


def report(diagnostics: tuple[Diagnostic, ...]) -> None:
    """Errors, warnings, and the notes about no rule in particular, on standard error."""
    for found in diagnostics:
        if found.severity != "note" or found.position is None:
            click.echo("\n".join(finding_lines(found)), err=True)


def _no_translation(fault: RulesetError, form: str) -> int:
    if form == "json":
        click.echo(json.dumps(document.failed_document(fault.diagnostics), indent=1))
    else:
        report(fault.diagnostics)
    return fault.exit_status


def _write(translation: Translation, form: str, model: str | None, *, failed: bool) -> None:
    if form == "json":
        click.echo(json.dumps(document.translation_document(translation), indent=1))
    elif form == "text":
        from ktllama.cli.text import print_translation

        print_translation(translation, model_path(translation, model), sys.stdout)
    else:
        report(translation.diagnostics)
        if not failed:
            click.echo(settings_text(translation, form, model_path(translation, model)), nl=form == "argv")


def model_path(translation: Translation, model: str | None) -> str:
    """The model's path as the user gave it, or a name to replace: of a remote one, its own in the working folder."""
    if model is not None:
        return PurePosixPath(translation.model.paths[0].removesuffix("?…")).name if is_remote(model) else model
    return f"{translation.model.name.replace(' ', '-')}.gguf"


def settings_text(translation: Translation, form: str, path: str) -> str:
    """The settings in one of the forms to paste."""
    if form == "argv" and translation.options.target == "ik_llama.cpp":
        return ik_llama.to_command_line(translation.settings, translation.placement, path)
    if form == "argv":
        return emit.to_command_line(translation.settings, path)
    if form == "ini":
        return emit.to_ini(translation.settings, path, translation.model.name)
    return emit.to_python(translation.settings, path)
