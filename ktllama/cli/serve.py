"""``ktllama serve``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ktllama.cli import engine as shared
from ktllama.cli.extras import require

if TYPE_CHECKING:
    from ktllama.server.settings import ServeSettings

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _request_options(command: _Command) -> _Command:
    """What requests mean, and how many may wait."""
    for option in reversed(
        (
            click.option("--alias", metavar="NAME", help="The model's name in answers.  [default: from the file]"),
            click.option("--queue-limit", type=click.IntRange(0), metavar="N",
                         help="Requests that may wait, beside those that run; the next is 429.  [default: 2048]"),
            click.option("--stream-interval", type=click.FloatRange(0, 1), metavar="SECONDS",
                         help="Text of streams leaves at most so often; 0: each token at once.  [default: 0.01]"),
            click.option("--system-prompt", type=click.Choice(("auto", "merge", "keep")),
                         help="merge it into the first user turn, or keep it.  [default: auto, by model revision]"),
            click.option("--reasoning-format", type=click.Choice(("none", "deepseek", "deepseek-legacy")),
                         help="Where the thinking is in answers.  [default: deepseek]"),
            click.option("--reasoning-budget", type=click.IntRange(0), metavar="N",
                         help="Tokens of thinking where the request says nothing.  [default: no limit]"),
            click.option("--reasoning-budget-message", metavar="TEXT",
                         help="Said in the model's voice where the budget ends the thinking."),
            click.option("--max-tokens", type=click.IntRange(1), metavar="N",
                         help="Of an answer whose request says nothing.  [default: 32768]"),
            click.option("--lenient/--strict", default=None,
                         help="Ignore request fields that cannot be honoured.  [default: they are errors]"),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _server_options(command: _Command) -> _Command:
    """Who may ask, how much, and what is written down."""
    for option in reversed(
        (
            click.option("--host", metavar="ADDRESS", help="[default: 127.0.0.1]"),
            click.option("--port", type=click.IntRange(0, 65535), help="0: any that is free.  [default: 8080]"),
            click.option("--api-key-file", metavar="FILE", type=click.Path(), help="API keys, one a line."),
            click.option("--insecure/--secure", default=None, help="Serve other machines without a key."),
            click.option("--cors-origin", multiple=True, metavar="ORIGIN", help="Web pages that may ask; * is all."),
            click.option("--allowed-host", multiple=True, metavar="NAME",
                         help="Another name of this machine, for a server on its loopback address."),
            click.option("--max-body", metavar="SIZE", help="Of a request.  [default: 32M]"),
            click.option("--max-header", metavar="SIZE", help="Request line and headers.  [default: 32K]"),
            click.option("--max-messages", type=click.IntRange(1), metavar="N", help="[default: 4096]"),
            click.option("--max-connections", type=click.IntRange(1), metavar="N", help="[default: 4096]"),
            click.option("--header-timeout", type=float, metavar="SECONDS", help="[default: 15]"),
            click.option("--body-timeout", type=float, metavar="SECONDS", help="[default: 60]"),
            click.option("--write-timeout", type=float, metavar="SECONDS",
                         help="How long a client may take nothing of its answer.  [default: 60]"),
            click.option("--keep-alive", type=float, metavar="SECONDS",
                         help="How long a connection may idle.  [default: 75]"),
            click.option("--drain-timeout", type=float, metavar="SECONDS",
                         help="How long running requests may take after a signal.  [default: no limit]"),
            click.option("--silence-timeout", type=float, metavar="SECONDS",
                         help="Without a word from the engine, until it counts as unresponsive.  [default: 20]"),
            click.option("--step-timeout", type=float, metavar="SECONDS",
                         help="Of one step, or one request's reading, until it is unresponsive.  [default: 300]"),
            click.option("--hang-timeout", type=float, metavar="SECONDS",
                         help="Until an unresponsive engine is ended and started anew; 0: never.  [default: 900]"),
            click.option("--log-level", type=click.Choice(("debug", "info", "warning", "error")),
                         help="[default: info]"),
            click.option("--log-format", type=click.Choice(("text", "json")), help="[default: text]"),
            click.option("--log-prompts/--no-log-prompts", default=None, help="Log bodies of requests.  [default: no]"),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@click.command("serve")
@shared.engine_options
@_request_options
@_server_options
@click.option("--config", metavar="FILE.toml", type=click.Path(), help="Settings by name; flags and variables win.")
def command(config: str | None, **words: object) -> int:
    """Serve a model over HTTP, as OpenAI's and DeepSeek's APIs speak.

    Without a model, the one that comes with ktllama. Every option may also be a variable (--max-body is
    KTLLAMA_MAX_BODY) or a key of --config (max_body); flags come first, then variables, then the file. A first SIGTERM
    or Ctrl-C finishes what runs, a second one stops at once. Exit status 0 when drained, 1 when the model cannot be
    loaded, 2 for wrong usage.
    """
    require("serve")
    from ktllama.server import logs, settings

    chosen = settings.read(shared.given_flags(words), file=config)
    keys = _keys(chosen)
    made = shared.plan(chosen)
    logs.configure(chosen.log_level, chosen.log_format, sys.stderr)
    shared.print_plan(made, chosen, sys.stdout)
    sys.stdout.flush()
    launch = shared.launch_of(made, chosen)
    del made  # the plan of a large model takes memory, and the server lives long

    from ktllama.server.serving import serve

    return serve(launch, chosen, keys=keys, audience=Terminal(keyed=keys is not None))


def _keys(chosen: ServeSettings) -> Any:
    """The API keys; a server that other machines reach has some, or is told that it needs none."""
    from ktllama.server.access import is_loopback, read_keys

    if chosen.api_key_file is not None:
        return read_keys(chosen.api_key_file)
    if not is_loopback(chosen.host) and not chosen.insecure:
        raise click.UsageError(
            f"--host {chosen.host} can be reached from other machines: give --api-key-file, or --insecure to do without"
        )
    return None


class Terminal:
    """Tells a person, or whoever reads the output, how the start goes (`serving.Audience`).

    The address and the command to paste go to standard output, progress to standard error: a bar on a terminal,
    a line a quarter elsewhere.
    """

    def __init__(self, *, keyed: bool) -> None:
        self._keyed = keyed
        self._url = ""
        self._bar: Any = None
        self._task: Any = None
        self._quarter = 0

    def listening(self, url: str) -> None:
        """The address answers."""
        self._url = url
        click.echo(f"\nListening on {url}")

    def loading(self, fraction: float) -> None:
        """Move the bar, or write the next quarter."""
        if sys.stderr.isatty():
            self._draw(fraction)
            return
        while fraction * 4 >= self._quarter + 1 and self._quarter < 3:
            self._quarter += 1
            click.echo(f"loading {self._quarter * 25}%", err=True)

    def ready(self, model: Any) -> None:
        """What to paste."""
        self._end_bar()
        click.echo(f"Ready after {model.load_seconds:.1f} s: {model.n_ctx} tokens of context. Try\n")
        click.echo("\n".join(f"    {line}" for line in curl(self._url, keyed=self._keyed)))
        click.echo(f"\nThe API is described at {self._url}/docs; Ctrl-C ends the server.")
        sys.stdout.flush()
        if model.n_ctx > model.n_ctx_train > 0:
            click.echo(
                f"note: the model was trained for {model.n_ctx_train} tokens of context; requests share the "
                f"{model.n_ctx}, and one that goes beyond what was trained gets worse answers",
                err=True,
            )

    def failed(self, reason: str) -> None:
        """Why there will be no server."""
        from ktllama.ruleset.wording import harmless

        self._end_bar()
        for line in reason.splitlines() or [""]:
            click.echo(f"ktllama: {harmless(line)}", err=True)

    def draining(self) -> None:
        """It takes a while."""
        self._end_bar()
        click.echo("Finishing what runs; once more to stop at once.", err=True)

    def _draw(self, fraction: float) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("loading"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("loading", total=1.0)
            self._bar.start()
        self._bar.update(self._task, completed=fraction)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def curl(url: str, *, keyed: bool) -> list[str]:
    """A command that asks the server something, as lines."""
    body = {"messages": [{"role": "user", "content": "What is 17 * 23?"}], "stream": True}
    key = ["  -H 'Authorization: Bearer YOUR-KEY' \\"] if keyed else []
    return [
        f"curl -N {url}/v1/chat/completions \\",
        *key,
        "  -H 'Content-Type: application/json' \\",
        f"  -d '{json.dumps(body)}'",
    ]
