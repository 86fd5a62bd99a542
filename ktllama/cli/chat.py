"""``ktllama chat``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from ktllama.cli import engine as shared
from ktllama.cli.extras import require
from ktllama.errors import KtllamaError, RulesetError

if TYPE_CHECKING:
    from ktllama.chatting.display import Display
    from ktllama.chatting.session import Placement
    from ktllama.chatting.speaker import Speaker
    from ktllama.server.settings import ServeSettings

_ENGINE_OPTIONS = ("model", "rules", "ctx", "parallel", "ubatch", "kv_type", "flash_attn", "threads", "device_map",
                   "default_device", "budget", "load_mode", "stand_ins")  # fmt: skip


@click.command("chat")
@shared.engine_options
@click.option("--url", metavar="URL", help="Talk to a server instead, such as http://127.0.0.1:8080.")
@click.option("--api-key-file", metavar="FILE", type=click.Path(), help="For --url: its first key is sent.")
@click.option("--system", metavar="TEXT", default="", help="What the model is to be.")
@click.option("--show-thinking", is_flag=True, help="Keep the thinking in sight; it is folded away otherwise.")
@click.option("-n", "--max-tokens", type=click.IntRange(1, 1 << 24), help="Of an answer, thinking included.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="[default: the model's]")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="[default: the model's]")
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), help="[default: by chance]")
@click.option("--reasoning-budget", type=click.IntRange(0, 1 << 24), help="Tokens of thinking.")
def command(url: str | None, api_key_file: str | None, system: str, show_thinking: bool, **words: Any) -> int:
    """Talk to a model in the terminal.

    Without a model, to the one that comes with ktllama. /help lists the commands; Ctrl-C stops an answer, Ctrl-D
    leaves. From a pipe, each line is a question; the answers go to standard output, without escape codes.
    """
    require("serve")
    from ktllama.chatting.lines import reader
    from ktllama.chatting.session import Session

    flags = shared.given_flags(words)
    engine_flags = {name: flags.pop(name) for name in _ENGINE_OPTIONS if name in flags}
    with closing(_speaker(url, api_key_file, engine_flags)) as found:
        speaker, placement = found.speaker, found.placement
        display = _display(folds=not show_thinking)
        session = Session(speaker, display, fields=flags, system=system, placement=placement)
        if sys.stdin.isatty():
            display.tell(f"{speaker.name}: /help lists the commands, Ctrl-D leaves")
        session.run(reader(sys.stdin, session.commands))
    return int(session.failed)


class _Found:
    """A speaker, and what places its model."""

    def __init__(self, speaker: Speaker, placement: Placement | None) -> None:
        self.speaker = speaker
        self.placement = placement

    def close(self) -> None:
        self.speaker.close()


def _speaker(url: str | None, api_key_file: str | None, engine_flags: dict[str, object]) -> _Found:
    if url is None:
        if api_key_file is not None:
            raise click.UsageError("--api-key-file is for --url.")
        return _own_engine(engine_flags)
    if engine_flags:
        raise click.UsageError(
            f"--{next(iter(engine_flags)).replace('_', '-')} is for a model of your own, not for --url."
        )
    from ktllama.chatting.http_speaker import HttpSpeaker
    from ktllama.server.access import first_key

    return _Found(HttpSpeaker(url, first_key(api_key_file) if api_key_file is not None else None), None)


def _own_engine(engine_flags: dict[str, object]) -> _Found:
    from ktllama.chatting.engine_speaker import EngineSpeaker
    from ktllama.chatting.session import Placement
    from ktllama.server import settings
    from ktllama.server.serving import endpoint_settings

    chosen = settings.read({"parallel": 1, **engine_flags})
    made = shared.plan(chosen)
    model = made.model
    speaker = EngineSpeaker(shared.launch_of(made, chosen), endpoint_settings(chosen))
    try:
        with _progress() as progress:
            speaker.start(progress)
    except BaseException:
        speaker.close()
        raise
    return _Found(speaker, Placement(anew=lambda rules: _place_anew(speaker, chosen, model, rules)))


def _place_anew(speaker: Any, chosen: ServeSettings, model: str, rules: str) -> None:
    """Compile other rules and load the model under them. Raises SpeakerError; the findings are on standard error."""
    from ktllama.chatting.speaker import SpeakerError
    from ktllama.cli.translate import report

    try:
        made = shared.planned(chosen, model, rules)
        with _progress() as progress:
            speaker.restart(shared.launch_of(made, chosen), progress)
    except RulesetError as fault:
        report(fault.diagnostics)
        raise SpeakerError("these rules cannot be used; the model is where it was") from fault
    except KtllamaError as fault:
        raise SpeakerError(f"{fault}; the model is where it was") from fault


def _display(*, folds: bool) -> Display:
    from ktllama.chatting.display import PlainDisplay, TerminalDisplay

    if not sys.stdout.isatty():
        return PlainDisplay(sys.stdout, sys.stderr, folds=folds)
    from rich.console import Console

    return TerminalDisplay(Console(highlight=False, markup=False, emoji=False), folds=folds)


@contextmanager
def _progress() -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("loading"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=1.0)
        yield lambda share: bar.update(task, completed=share)
