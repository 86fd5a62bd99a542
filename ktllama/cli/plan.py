"""``ktllama plan``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import click

from ktllama.cli import options as shared
from ktllama.pages import page as pages
from ktllama.planner import budgets
from ktllama.planner.wishes import ContextWishes

if TYPE_CHECKING:
    from ktllama.devices import DeviceMap
    from ktllama.measuring.planned import MeasuredSpeeds
    from ktllama.planner.machine import Machine
    from ktllama.planner.plan import Plan
    from ktllama.planner.survey import Survey
    from ktllama.translation import Options

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FORMATS = ("text", "json", "rules", "argv", "python", "ini")
_MAX_UBATCH = 65536


def _budget_options(command: _Command) -> _Command:
    """The machine."""
    for option in reversed(
        (
            click.option("--vram", metavar="SIZE[,SIZE…]",
                         help="Memory of each GPU: 24G,12G or cuda:0=24G,cuda:1=12G; detected: what is free here; "
                         "none: no GPU."),
            click.option("--ram", metavar="SIZE",
                         help="Memory of the host; detected: this one's.  [default: as much as it takes]"),
            shared.margin_option,
            click.option("--bandwidth", multiple=True, metavar="DEVICE=SPEED",
                         help="What a device reads of its memory a second, such as cpu=200G.  [default: assumed]"),
            click.option("--speeds", type=click.Choice(("auto", "measured", "assumed")), default="auto",
                         show_default=True,
                         help="auto: measured by ktllama tune where they are and the plan is for this machine."),
            click.option("--link-bandwidth", metavar="SPEED",
                         help="From the host to a GPU a second.  [default: 25G, assumed]"),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _context_options(command: _Command) -> _Command:
    """The context, and what of it may be chosen."""
    for option in reversed(
        (
            shared.planned_context_option,
            shared.parallel_option,
            click.option("--kv-type", type=click.Choice(shared.CACHE_TYPE_NAMES), default="f16", show_default=True),
            click.option("--flash-attn", type=click.Choice(("auto", "on", "off")), default="auto", show_default=True),
            click.option("--ubatch", metavar="N", default="auto", show_default=True, help="Tokens a graph."),
            click.option("--op-offload", type=click.Choice(("auto", "on", "off")), default="auto", show_default=True,
                         help="Use host weights on a GPU in prefill."),
            click.option("--threads", type=click.IntRange(1, 512),
                         help="CPU threads.  [default: measured best, or this machine's cores if --ram is detected]"),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@click.command("plan")
@shared.model_options
@shared.config_options
@click.option("-r", "--rules", metavar="RULES", help="What they fix stays; where they say auto, the plan decides.")
@_budget_options
@_context_options
@shared.device_map_option
@click.option("--target", type=click.Choice(("python", "llama-server")), help="What will run the model.")
@click.option("--format", "form", type=click.Choice(_FORMATS), default="text", show_default=True, help="Output.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("-o", "--output", metavar="RULES.yaml", type=click.Path(), help="Write the rule file here.")
@click.option("--html", "page", metavar="FILE", type=click.Path(),
              help="Write a page that draws the plan, and what other cards and contexts would give.")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite the files of --output and --html.")
def command(
    model: str | None,
    preset: str | None,
    config: str | None,
    quant: str | None,
    rules: str | None,
    target: str | None,
    form: str,
    output: str | None,
    page: str | None,
    *,
    as_json: bool,
    force: bool,
    **words: Any,
) -> int:
    """Decide what rules leave open, so that decoding is fast and no memory is overrun.

    Without --rules everything is decided. Each proposal goes through llama.cpp's own dry run, and is corrected until
    every device fits with the margin; where nothing does, the smallest change that would is said. No GPU and no weights
    are needed: a sparse or header-only file, or --preset, is enough. Speeds are predictions. --html makes about twenty
    plans more and takes as much longer.
    """
    form = "json" if as_json else form
    chosen = _options(target or ("llama-server" if form in ("argv", "ini") else "python"), words["device_map"])
    chosen = shared.with_model(chosen, model, preset, config, quant)
    _check_form(form, chosen.target, words["parallel"])
    if (model, preset, config, rules) == (None, None, None, None):
        raise click.UsageError("Which model? Give --model FILE.gguf, --preset NAME or --config CONFIG.")
    _check_files(output, page, (model, rules, *shared.config_files(config)), force=force)
    for_machine = _machine(words, chosen)
    wishes = _wishes(words, measured=for_machine.measured is not None)
    task = _Task(for_machine=for_machine, wishes=wishes, rules=rules, model=model, preset=preset, config=config)
    if page is None:
        made = _plan(task)
    else:
        survey = _survey(task)
        made = survey.plan
    if output is not None:
        pages.write(output, made.rules, overwrite=force)
        click.echo(f"wrote {output}", err=True)
    if page is not None:
        from ktllama.cli.translate import model_path
        from ktllama.planner.page import render

        pages.write(page, render(survey, model_path(made.translation, model), output), overwrite=force)
        click.echo(f"wrote {page}", err=True)
    _show(made, form, model, output)
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _ForMachine:
    machine: Machine
    options: Options
    here: bool  # the plan is for the machine that it is made on
    measured: MeasuredSpeeds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What is to be planned."""

    for_machine: _ForMachine
    wishes: ContextWishes
    rules: str | None
    model: str | None
    preset: str | None
    config: str | None


def _check_form(form: str, target: str, n_sequences: int) -> None:
    if form == "python" and target != "python":
        raise click.UsageError("--format python is for --target python.")
    if form == "python" and n_sequences > 1:
        raise click.UsageError("--format python is for one sequence, as llama_cpp.Llama is; ktllama serve runs more.")
    if form in ("argv", "ini") and target != "llama-server":
        raise click.UsageError(f"--format {form} is for --target llama-server.")


def _check_files(output: str | None, page: str | None, inputs: tuple[str | None, ...], *, force: bool) -> None:
    """Refuse what cannot be written now, not after the work."""
    given = [name for name in (output, page) if name is not None]
    if force and not given:
        raise click.UsageError("--force is for --output and --html.")
    if len(given) == 2 and os.path.realpath(given[0]) == os.path.realpath(given[1]):
        raise click.UsageError("--output and --html name the same file.")
    for name in given:
        pages.check(name, overwrite=force, inputs=[used for used in inputs if used is not None])


def _plan(task: _Task) -> Plan:
    from ktllama.planner import sessions

    machine, options = task.for_machine.machine, task.for_machine.options
    # before what takes long to import
    session = sessions.start(machine, options.device_map, here=task.for_machine.here)
    from ktllama.planner.planning import plan

    return plan(
        task.rules,
        task.model,
        machine=machine,
        wishes=task.wishes,
        preset=task.preset,
        config=task.config,
        options=options,
        session=session,
        measured=task.for_machine.measured,
    )


def _survey(task: _Task) -> Survey:
    """The plan, and those for other cards and contexts."""
    from ktllama.cli.progress import progress_bars
    from ktllama.planner import sessions
    from ktllama.planner.planning import planner
    from ktllama.planner.survey import survey, with_another

    machine, options = task.for_machine.machine, task.for_machine.options
    with (
        progress_bars() as progress,
        sessions.start(with_another(machine), options.device_map, here=task.for_machine.here) as session,
        planner(
            task.rules,
            task.model,
            session,
            machine=machine,
            wishes=task.wishes,
            preset=task.preset,
            config=task.config,
            options=options,
            measured=task.for_machine.measured,
        ) as ready,
    ):
        return survey(ready, progress)


def _options(target: str, device_map: tuple[str, ...]) -> Options:
    return shared.make_options(target, device_map, "cuda:0", (), "auto")


def _machine(words: dict[str, Any], chosen: Options) -> _ForMachine:
    """The budgets as said or as detected, with the names that detected GPUs have."""
    from dataclasses import replace

    from ktllama.planner import hardware
    from ktllama.planner.errors import BudgetError

    vram, ram = words["vram"], words["ram"]
    if vram is None:
        raise BudgetError("--vram is missing: the memory of each GPU, such as --vram 24G or --vram 24G,12G; "
                          "detected for what is free here, none for no GPU")  # fmt: skip
    sizes = None if vram == budgets.DETECTED else budgets.parse_vram(vram)
    host = None if ram in (None, budgets.DETECTED) else budgets.parse_size("--ram", ram)
    speeds = budgets.parse_bandwidths(words["bandwidth"])
    link = None if words["link_bandwidth"] is None else budgets.parse_speed("--link-bandwidth", words["link_bandwidth"])
    descriptions: dict[str, str] = {}
    if sizes is None:
        from ktllama.planner.detection import detect, device_map_of

        here = detect(chosen.device_map)
        budgets.check_against(here, {}, host)
        sizes, descriptions = dict(here.vram), dict(here.descriptions)
        chosen = replace(chosen, device_map=device_map_of(here, chosen.device_map))
        host = here.ram if host is None else host
        if not sizes:
            click.echo("note: llama.cpp has no GPU here; --vram 24G plans for one that is elsewhere", err=True)
    elif ram == budgets.DETECTED:
        host = budgets.host_memory()
    if strange := sorted(set(chosen.device_map.chosen) - set(sizes)):
        there = ", ".join(sizes) or "no GPU"
        raise BudgetError(f"--device-map {strange[0]}: there is no budget for it; --vram gives {there}")
    machine = hardware.machine(sizes, host, bandwidth=speeds, link_bandwidth=link, descriptions=descriptions)
    return _ForMachine(
        machine=machine, options=chosen, here=_is_here(words), measured=_measured(words, chosen.device_map)
    )


def _is_here(words: dict[str, Any]) -> bool:
    return budgets.DETECTED in (words["ram"], words["vram"])


def _measured(words: dict[str, Any], device_map: DeviceMap) -> MeasuredSpeeds | None:
    """What was measured of this machine, if it is to be used.

    Raises:
        NotMeasuredError: when it must be and there is nothing.
    """
    given = [name for name in ("bandwidth", "link_bandwidth") if words[name]]
    if words["speeds"] == "measured" and given:
        raise click.UsageError(f"--speeds measured and --{given[0].replace('_', '-')} exclude each other.")
    if words["speeds"] == "assumed" or given or (words["speeds"] == "auto" and not _is_here(words)):
        return None
    from ktllama.measuring.planned import MeasuredSpeeds, NotMeasuredError, kept

    path, speeds = kept(os.environ)
    if speeds is None:
        if words["speeds"] == "measured":
            raise NotMeasuredError(str(path))
        return None
    n_threads = words["threads"]
    if words["speeds"] == "measured" and n_threads not in (None, *speeds.threads_of("CPU")):
        raise NotMeasuredError(str(path), n_threads)
    return MeasuredSpeeds(speeds=speeds, device_map=device_map)


def _wishes(words: dict[str, Any], *, measured: bool) -> ContextWishes:
    offload = {"auto": None, "on": True, "off": False}[words["op_offload"]]
    return ContextWishes(
        n_ctx=words["ctx"] or 0,
        n_seq_max=words["parallel"],
        kv_type=words["kv_type"],
        flash_attn=cast(Literal["auto", "on", "off"], words["flash_attn"]),
        ubatch=_ubatch(words["ubatch"]),
        op_offload=offload,
        n_threads=words["threads"] or (budgets.n_physical_cores() if _is_here(words) and not measured else None),
        margin=budgets.parse_margin(words["margin"]),
    )


def _ubatch(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= _MAX_UBATCH and len(text) < 9):
        raise click.UsageError(f"--ubatch {text!r}: expected a number of tokens from 1 to {_MAX_UBATCH}, or auto.")
    return int(text)


def _show(made: Plan, form: str, model: str | None, output: str | None) -> None:
    from ktllama.cli.translate import model_path
    from ktllama.lower import emit
    from ktllama.planner import commands

    path = model_path(made.translation, model)
    if form == "json":
        from ktllama.planner.document import plan_document

        click.echo(json.dumps(plan_document(made), indent=1))
    elif form == "rules":
        click.echo(made.rules, nl=False)
    elif form == "text":
        from ktllama.cli.plan_text import print_plan

        print_plan(made, path, output, sys.stdout)
    elif form == "argv":
        click.echo(" ".join(emit.shell_word(word) for word in commands.server_words(made, path)))
    elif form == "ini":
        click.echo(commands.server_preset(made, path), nl=False)
    else:
        click.echo(commands.python_lines(made, path), nl=False)
