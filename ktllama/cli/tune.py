"""``ktllama tune``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ktllama import __version__
from ktllama.cli import options as shared
from ktllama.model.sources import is_remote
from ktllama.pages import page as pages
from ktllama.planner import budgets

if TYPE_CHECKING:
    from ktllama.measuring.planned import MeasuredSpeeds
    from ktllama.measuring.speeds import Speeds
    from ktllama.model.model_file import ModelFile
    from ktllama.planner.machine import Machine
    from ktllama.planner.plan import Plan
    from ktllama.planner.planning import Planner
    from ktllama.translation import Options
    from ktllama.tuning.search import Effort, Found, Task
    from ktllama.tuning.trials import State

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Progress = Callable[[str, int, int | None], None]

_NOT_ASKED = ("vram", "ram", "minutes", "threads")  # a trial has its own machine and threads

#: What only trials need.
_FOR_TRIALS = ("output", "rules", "state", "minutes", "depth", "ctx", "parallel", "margin", "stand_ins")

#: Free memory changes by a few megabytes from one start to the next, and each change would be another machine.
_DETECTED_STEP = 64 << 20


def _machine_options(command: _Command) -> _Command:
    """What may be used of this machine."""
    for option in reversed(
        (
            click.option("--vram", metavar="SIZE[,SIZE…]", default=budgets.DETECTED, show_default=True,
                         help="Memory of each GPU that may be used: 24G,12G or cuda:0=24G; none: no GPU."),
            click.option("--ram", metavar="SIZE", default=budgets.DETECTED, show_default=True,
                         help="Memory of the host that may be used."),
            shared.margin_option,
            shared.device_map_option,
            shared.stand_ins_option,
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _trial_options(command: _Command) -> _Command:
    """What is tried."""
    for option in reversed(
        (
            shared.planned_context_option,
            shared.parallel_option,
            click.option("--kv-type", "kv_types", multiple=True, type=click.Choice(shared.CACHE_TYPE_NAMES),
                         default=("f16",), show_default=True,
                         help="The KV cache's type; give it again for each coarser one that may be tried."),
            click.option("--threads", "threads", type=click.IntRange(1, 512), multiple=True,
                         help="A number of threads to try, once for each.  [default: all cores, half of them, one]"),
            click.option("--depth", type=click.IntRange(0, 1 << 20), default=512, show_default=True,
                         help="Tokens in the KV cache when a trial decodes."),
            click.option("--minutes", type=shared.FiniteRange(0, 1440), default=10.0, show_default=True,
                         help="No trial begins after so long; a second start goes on."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@click.command("tune")
@shared.default_model_option
@click.option("-r", "--rules", metavar="RULES", help="What they fix stays; where they say auto, the plans decide.")
@_machine_options
@_trial_options
@click.option("--measure-only", is_flag=True, help="Measure the machine for plan, and try nothing.")
@click.option("--again", is_flag=True, help="Measure the machine again, and forget the trials.")
@click.option("--state", metavar="FILE", type=click.Path(), help="Where trials are kept.  [default: the cache folder]")
@click.option("-o", "--output", metavar="RULES.yaml", type=click.Path(), help="Write the rule file that won here.")
@click.option("--force", is_flag=True, help="Overwrite the file of --output.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def command(
    model: str | None,
    rules: str | None,
    measure_only: bool,
    again: bool,
    state: str | None,
    output: str | None,
    force: bool,
    as_json: bool,
    **words: Any,
) -> int:
    """Find the fastest settings of a model on this machine by trying them.

    First the machine is measured, once: how fast each device reads and computes weights of the model's types, and what
    llama.cpp costs beside that. The figures are kept for this hardware, and plan uses them too. Then the plans that are
    predicted best are loaded and timed for a few seconds each, with other threads, ubatches and placements. What was
    tried is kept, so a second start goes on where the first ended.
    """
    if force and output is None:
        raise click.UsageError("--force is for --output.")
    if measure_only:
        _check_measure_only()
    path = shared.model_or_default(model)
    if is_remote(path):
        raise click.UsageError(
            "tune loads the weights, so the model must be a file on this machine: download it first."
        )
    _check_files(output, state, (path, rules), force=force)
    from ktllama.model import gguf
    from ktllama.planner import sessions
    from ktllama.planner.planning import planner
    from ktllama.planner.wishes import settled
    from ktllama.tuning.search import plan_of

    read = gguf.read(path)
    machine, options = _machine(words)
    settled(_wishes(words), read)  # a context that the model cannot have is said before anything is measured
    if measure_only:
        _show_speeds(_measure(read, options, machine, words, again=again).speeds, as_json=as_json)
        return 0
    with ExitStack() as stack:
        kept = stack.enter_context(_state(state, read, path, rules, words, again=again))
        measured = _measure(read, options, machine, words, again=again)
        session = stack.enter_context(sessions.start(machine, options.device_map))
        plans = planner(
            rules, read, session, machine=machine, wishes=_wishes(words), options=options, measured=measured
        )
        task = _task(stack.enter_context(plans), path, machine, measured, words)
        with _progress("trying") as progress:
            found = _search(task, words, kept, progress)
        made = plan_of(task, found.winner.choice)
        if output is not None:
            pages.write(output, made.rules, overwrite=force)
            click.echo(f"wrote {output}", err=True)
        _show(made, found, path, output, kept, as_json=as_json)
    return 0


def _check_measure_only() -> None:
    """Refuse what nothing would be done with."""
    asked = click.get_current_context()
    given = [name for name in _FOR_TRIALS if asked.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if given:
        raise click.UsageError(f"--measure-only tries nothing; --{given[0].replace('_', '-')} is for trials.")


def _check_files(output: str | None, state: str | None, inputs: tuple[str | None, ...], *, force: bool) -> None:
    """Refuse what cannot be written now, not after minutes of work."""
    used = [name for name in inputs if name is not None]
    if None not in (output, state) and os.path.realpath(str(output)) == os.path.realpath(str(state)):
        raise click.UsageError("--output and --state name the same file.")
    if output is not None:
        pages.check(output, overwrite=force, inputs=used)
    if state is not None and Path(state).parent.is_dir():  # else the folder is made
        pages.check(state, overwrite=True, inputs=used)


def _machine(words: dict[str, Any]) -> tuple[Machine, Options]:
    from ktllama.planner import hardware
    from ktllama.planner.detection import detect, device_map_of

    options = shared.make_options("python", words["device_map"], "cuda:0", (), "auto")
    here = detect(options.device_map)
    detected = {name: _steady(n_bytes) for name, n_bytes in here.vram.items()}
    sizes = detected if words["vram"] == budgets.DETECTED else budgets.parse_vram(words["vram"])
    ram = _steady(here.ram) if words["ram"] == budgets.DETECTED else budgets.parse_size("--ram", words["ram"])
    budgets.check_against(here, {} if words["vram"] == budgets.DETECTED else sizes, ram)
    options = replace(options, device_map=device_map_of(here, options.device_map))
    return hardware.machine(sizes, ram, descriptions=here.descriptions), options


def _steady(n_bytes: int) -> int:
    """What was detected, down to whole steps; what is less than one stays."""
    return n_bytes - n_bytes % _DETECTED_STEP or n_bytes


def _measure(
    model: ModelFile, options: Options, machine: Machine, words: dict[str, Any], *, again: bool
) -> MeasuredSpeeds:
    """What is known of this machine, after measuring what was not."""
    from ktllama.measuring import cache, locks
    from ktllama.measuring.machine import kind_of
    from ktllama.measuring.measure import CPU, Wanted, measure
    from ktllama.measuring.planned import MeasuredSpeeds
    from ktllama.measuring.speeds import Speeds
    from ktllama.runtime.device_list import available

    about = cache.hardware()
    path = cache.path_of(about, cache.directory(os.environ))
    there = {device.name for device in available()}
    gpus = [name for gpu in machine.gpus if (name := options.device_map.llama_name(gpu.name)) in there]
    wanted = Wanted(
        devices=(CPU, *gpus),
        threads=_threads(words),
        types=tuple(sorted({tensor.type for tensor in model.tensors})),
        kv_types=tuple(dict.fromkeys(words["kv_types"])),
        kinds=(kind_of(model),),
    )
    with locks.held(path), _progress("measuring") as progress:
        start = Speeds() if again else cache.read(path) or Speeds()
        found = measure(wanted, start, lambda speeds: cache.write(path, about, speeds), progress)
    return MeasuredSpeeds(speeds=found, device_map=options.device_map)


def _threads(words: dict[str, Any]) -> tuple[int, ...]:
    """The numbers of threads to try: those asked for, or all cores, half of them, and one, which small models like."""
    n_cores = budgets.n_physical_cores()
    return tuple(dict.fromkeys(words["threads"])) or tuple(dict.fromkeys((n_cores, max(1, n_cores // 2), 1)))


def _wishes(words: dict[str, Any]) -> Any:
    from ktllama.planner.wishes import ContextWishes

    return ContextWishes(
        n_ctx=words["ctx"] or 0,
        n_seq_max=words["parallel"],
        kv_type=words["kv_types"][0],
        margin=budgets.parse_margin(words["margin"]),
    )


def _task(ready: Planner, path: str, machine: Machine, measured: MeasuredSpeeds, words: dict[str, Any]) -> Task:
    """The search's task, the threads that are predicted fastest first."""
    from ktllama.tuning.search import Task

    first = ready.wishes.n_threads
    threads = sorted(_threads(words), key=lambda n_threads: n_threads != first)
    model = ready.opened.model
    kv_types = tuple(dict.fromkeys(words["kv_types"]))
    return Task(
        planner=ready,
        model_path=path,
        machines={
            (n_threads, kv_type): measured.of(model, machine, replace(ready.wishes, kv_type=kv_type), n_threads)
            for n_threads in threads
            for kv_type in kv_types
        },
        kv_types=kv_types,
        stand_ins=words["stand_ins"],
    )


@contextmanager
def _state(
    given: str | None, model: ModelFile, path: str, rules: str | None, words: dict[str, Any], *, again: bool
) -> Iterator[State]:
    """The trials of this question that were made before, for this process alone; the machine's memory and speeds are
    each trial's own."""
    from ktllama.measuring import cache, locks
    from ktllama.tuning.trials import name_of, open_state

    about = Path(path).stat()
    asked = {
        "model": [model.name, about.st_size, about.st_mtime_ns],
        "rules": None if rules is None else _text(rules),
        "machine": cache.hardware(),
        "ktllama": __version__,
        "words": {name: value for name, value in words.items() if name not in _NOT_ASKED},
    }
    asked = json.loads(json.dumps(asked))
    file = Path(given) if given is not None else cache.directory(os.environ) / name_of(asked)
    with locks.held(file):
        yield open_state(file, asked, again=again)


def _text(rules: str) -> str:
    from ktllama import shipped_rules

    try:
        return Path(shipped_rules.find(rules)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return rules  # the planner has read it already, or said why not


def _search(task: Task, words: dict[str, Any], kept: State, progress: _Progress) -> Found:
    from ktllama.tuning.search import Effort, search

    effort: Effort = Effort(depth=_depth(task, words), seconds=60 * words["minutes"])
    return search(task, effort, kept, lambda text, done: progress(text, done, None))


def _depth(task: Task, words: dict[str, Any]) -> int:
    """The depth of trials: as asked, as far as half of a sequence's context."""
    wishes = task.planner.wishes
    return int(min(words["depth"], wishes.n_ctx // wishes.n_seq_max // 2))


@contextmanager
def _progress(doing: str) -> Iterator[_Progress]:
    """A bar on a terminal, elsewhere a line for each thing that is measured or tried."""
    if not sys.stderr.isatty():
        yield lambda text, _done, _total: click.echo(f"{doing} {text}", err=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda text, done, total: bars.update(task, description=text, completed=done, total=total)


def _show_speeds(speeds: Speeds, *, as_json: bool) -> None:
    from ktllama.cli.tune_text import print_speeds
    from ktllama.measuring.cache import document

    if as_json:
        click.echo(json.dumps(document(speeds), indent=1))
    else:
        print_speeds(speeds, sys.stdout)


def _show(made: Plan, found: Found, path: str, output: str | None, kept: State, *, as_json: bool) -> None:
    from ktllama.cli.tune_text import print_found
    from ktllama.planner.document import plan_document

    if not as_json:
        print_found(made, found, path, output, str(kept.path), sys.stdout)
        return
    trials = [{**asdict(trial), "won": trial is found.winner} for trial in found.trials]
    document = {"trials": trials, "complete": found.complete, "state": str(kept.path), "plan": plan_document(made)}
    click.echo(json.dumps(document, indent=1))
