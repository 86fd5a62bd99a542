"""``ktllama lint``."""

from __future__ import annotations

import json

import click

from ktllama import document, shipped_rules
from ktllama.cli import options as shared
from ktllama.cli.translate import fails, finding_lines
from ktllama.diagnostics import Diagnostic, in_order
from ktllama.errors import RulesetError, UnknownPresetError
from ktllama.ruleset import loader
from ktllama.ruleset.wording import printable
from ktllama.translation import Options, analyse

_GITHUB = {"error": "error", "warning": "warning", "note": "notice"}


@click.command("lint")
@shared.rules_argument
@shared.model_options
@shared.config_options
@click.option("--target", type=click.Choice(shared.TARGETS), default="python", show_default=True)
@click.option("--format", "form", type=click.Choice(("text", "json", "github")), default="text", show_default=True)
@shared.placement_options
@shared.strict_option
def command(
    rules: str,
    model: str | None,
    preset: str | None,
    config: str | None,
    quant: str | None,
    target: str,
    form: str,
    device_map: tuple[str, ...],
    default_device: str,
    budgets: tuple[str, ...],
    load_mode: str,
    strict: bool,
) -> int:
    """Check RULES and print what is found, all at once. Exit status 1 if there are errors.

    Without --model, --preset and --config the model is told from the classes that the rules name; where that fails,
    only what needs no model is checked.
    """
    options = shared.make_options(target, device_map, default_device, budgets, load_mode)
    found = _findings(rules, model, preset, config, shared.with_model(options, model, preset, config, quant))
    _write(found, form)
    return int(fails(found, strict=strict))


def _findings(
    rules: str, model: str | None, preset: str | None, config: str | None, options: Options
) -> tuple[Diagnostic, ...]:
    ruleset = loader.load(shipped_rules.find(rules))
    try:
        return analyse(ruleset, model, preset=preset, config=config, options=options).diagnostics
    except RulesetError as fault:
        return fault.diagnostics
    except UnknownPresetError as fault:
        if preset is not None:
            raise
        unknown = Diagnostic(code="model-unknown", severity="note", message=str(fault))
        return in_order((*ruleset.diagnostics, unknown))


def _write(found: tuple[Diagnostic, ...], form: str) -> None:
    if form == "json":
        click.echo(json.dumps(document.diagnostics_document(found), indent=1))
        return
    for diagnostic in found:
        click.echo(_github(diagnostic) if form == "github" else "\n".join(finding_lines(diagnostic)))
    if form == "text":
        click.echo(summary(found))


def summary(found: tuple[Diagnostic, ...]) -> str:
    """``1 error, 2 warnings, 3 notes``."""
    counted = {severity: sum(one.severity == severity for one in found) for severity in _GITHUB}
    return ", ".join(f"{number} {severity}{'' if number == 1 else 's'}" for severity, number in counted.items())


def _github(found: Diagnostic) -> str:
    """A workflow command of GitHub Actions; its data escapes %, line breaks, and in properties ``:`` and ``,``."""
    message = _escaped("\n".join(printable(line) for line in (found.message, *found.excerpt)))
    properties = [f"title={_escaped_property(found.code)}"]
    if found.position is not None:
        file = _escaped_property(printable(found.position.file))
        properties = [f"file={file}", f"line={found.position.line}", f"col={found.position.column}", *properties]
    return f"::{_GITHUB[found.severity]} {','.join(properties)}::{message}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escaped_property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
