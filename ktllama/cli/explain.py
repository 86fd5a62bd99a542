"""``ktllama explain``."""

from __future__ import annotations

import json
import sys

import click

from ktllama.cli import options as shared
from ktllama.cli.translate import report
from ktllama.errors import RulesetError
from ktllama.translation import Translation, analyse

_DEFAULT_CONTEXT = 32768


@click.command("explain")
@shared.rules_argument
@click.argument("glob", metavar="[GLOB]", required=False)
@shared.model_options
@shared.config_options
@click.option("--diff", "other", metavar="OTHER.yaml", type=click.Path(), help="Show what another rule file moves.")
@click.option("--html", "page", metavar="FILE", type=click.Path(), help="Write a page that draws the plan.")
@click.option("--force", is_flag=True, help="Let --html overwrite a file.")
@click.option(
    "--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True, help="Output."
)
@click.option(
    "--ctx",
    type=click.IntRange(1, 1 << 24),
    default=_DEFAULT_CONTEXT,
    show_default=True,
    help="Context for which KV caches are sized in the text, in tokens.",
)
@click.option("--target", type=click.Choice(shared.TARGETS), default="python", show_default=True)
@shared.placement_options
def command(
    rules: str,
    glob: str | None,
    model: str | None,
    preset: str | None,
    config: str | None,
    quant: str | None,
    other: str | None,
    page: str | None,
    force: bool,
    form: str,
    ctx: int,
    target: str,
    device_map: tuple[str, ...],
    default_device: str,
    budgets: tuple[str, ...],
    load_mode: str,
) -> int:
    """Say why modules and tensors are where RULES put them.

    GLOB names Hugging Face modules (model.layers.3.mlp.experts) or GGUF tensors (blk.3.ffn_up_exps.weight), exactly
    or with * ? [ ]. Without it a summary says what is where.
    """
    _check_usage(glob, other, page, force=force, form=form)
    chosen = shared.make_options(target, device_map, default_device, budgets, load_mode)
    model = shared.model_for(rules, model, preset, config)
    chosen = shared.with_model(chosen, model, preset, config, quant)
    try:
        plan = analyse(rules, model, preset=preset, config=config, options=chosen)
        after = None if other is None else analyse(other, plan.model, options=chosen)
    except RulesetError as fault:
        report(fault.diagnostics)
        return fault.exit_status
    if page is not None:
        _write_page(page, plan, after, config, force=force)
    elif form == "json":
        click.echo(json.dumps(_document(plan, after, glob), indent=1))
    else:
        _print(plan, after, glob, ctx)
    sides = [plan] if after is None else [plan, after]
    for side in sides:
        report(side.diagnostics)
    return int(any(side.has_errors for side in sides))


def _check_usage(glob: str | None, other: str | None, page: str | None, *, force: bool, form: str) -> None:
    if glob is not None and (other is not None or page is not None):
        raise click.UsageError(f"{'--html' if page is not None else '--diff'} shows the whole model; leave out GLOB.")
    if page is not None and form != "text":
        raise click.UsageError("--html and --format exclude each other.")
    if force and page is None:
        raise click.UsageError("--force is for --html.")


def _document(plan: Translation, after: Translation | None, glob: str | None) -> dict[str, object]:
    from ktllama.explaining import document
    from ktllama.explaining.explanation import explain

    if after is not None:
        return document.difference_document(plan, after)
    if glob is not None:
        return document.explanations_document(plan, explain(plan, glob))
    return document.summary_document(plan)


def _print(plan: Translation, after: Translation | None, glob: str | None, ctx: int) -> None:
    from ktllama.cli import explain_text
    from ktllama.explaining.explanation import explain

    if after is not None:
        explain_text.print_difference(plan, after, ctx, sys.stdout)
    elif glob is not None:
        explain_text.print_explanations(plan, explain(plan, glob), ctx, sys.stdout)
    else:
        explain_text.print_summary(plan, ctx, sys.stdout)


def _write_page(path: str, plan: Translation, after: Translation | None, config: str | None, *, force: bool) -> None:
    from ktllama.explaining import page as picture
    from ktllama.pages import page

    inputs = [plan.ruleset.file, *plan.model.paths, *([after.ruleset.file] if after else [])]
    inputs += shared.config_files(config)
    page.check(path, overwrite=force, inputs=inputs)
    page.write(path, picture.render(plan, after), overwrite=force)
    click.echo(f"wrote {path}", err=True)
