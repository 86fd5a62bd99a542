"""The ``ktllama`` command."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

import ktllama
from ktllama.errors import KtllamaError, LlamaCppError, RulesetError
from ktllama.ruleset.wording import harmless

#: Command → module that defines it and its line in ``ktllama --help``; modules are imported when they are called.
COMMANDS = {
    "translate": ("ktllama.cli.translate", "Compile a rule file into llama.cpp settings."),
    "plan": ("ktllama.cli.plan", "Decide what rules leave open: what fits, and what is fastest."),
    "tune": ("ktllama.cli.tune", "Measure this machine, and find the fastest settings by trying them."),
    "bench": ("ktllama.cli.bench", "Measure placements of a model on this machine, and compare them."),
    "explain": ("ktllama.cli.explain", "Say why every module and tensor is where it is; draw the plan."),
    "lint": ("ktllama.cli.lint", "Check a rule file; exit status 1 on errors."),
    "import": ("ktllama.cli.import_", "Turn a llama.cpp command line into a rule file."),
    "verify": ("ktllama.cli.verify", "Prove in llama.cpp's own dry run that it does what the rules say."),
    "validate": ("ktllama.cli.validate", "Compare llama.cpp under rules with a reference in plain PyTorch."),
    "run": ("ktllama.cli.run", "Load a model under the rules, check its buffers, and generate."),
    "serve": ("ktllama.cli.serve", "Serve a model over HTTP, as OpenAI's and DeepSeek's APIs speak."),
    "chat": ("ktllama.cli.chat", "Talk to a model in the terminal, or to a server."),
    "rules": ("ktllama.cli.rules", "List the rule files that come with ktllama, or show one."),
    "devices": ("ktllama.cli.devices", "List the devices of this llama.cpp build."),
}


class _ClosedPipeError(Exception):
    """Nobody reads the output any more."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as fault:
            raise _ClosedPipeError from fault  # click ends with status 1 where it sees the other

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else f" Commands: {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ktllama.__version__, prog_name="ktllama")
def cli() -> None:
    """Compile ktransformers placement rules into exact llama.cpp settings, verify them, and run the model."""


#: What a full disk, a quota, a dying device or a descriptor that is no output says to a write.
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


def main() -> NoReturn:
    """The console script. Errors of ktllama become one message and an exit status; a closed pipe ends quietly."""
    _take_any_character()
    if sys.stdout is None:  # Python's word for a closed descriptor
        _complain("standard output is closed")
        sys.exit(2)
    try:
        status: Any = cli.main(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as fault:
        try:
            _show(fault)
        except OSError:
            _abandon(sys.stderr)
        sys.exit(fault.exit_code)
    except KtllamaError as fault:
        _complain("\n".join(_lines(fault)))
        sys.exit(fault.exit_status)
    except (BrokenPipeError, _ClosedPipeError):
        _abandon(sys.stdout)
        sys.exit(141)
    except OSError as fault:
        if fault.errno not in _UNWRITABLE:
            raise
        _abandon(sys.stdout)
        _complain(f"the output cannot be written: {fault.strerror}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _show(fault: click.ClickException) -> None:
    """As click shows it, words of the command line made printable."""
    if isinstance(fault, click.UsageError) and fault.ctx is not None:
        click.echo(f"{fault.ctx.get_usage()}\nTry '{fault.ctx.command_path} --help' for help.\n", err=True)
    click.echo(f"Error: {harmless(fault.format_message())}", err=True)


def _take_any_character() -> None:
    """An output that is not Unicode shows what it has no character for as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _lines(fault: KtllamaError) -> list[str]:
    """What to say of a fault. A name or a path in it, whatever it holds, neither begins a line nor moves the cursor."""
    if isinstance(fault, RulesetError):
        from ktllama.cli.translate import finding_lines

        errors = [found for found in fault.diagnostics if found.severity == "error"]
        return [line for found in errors for line in finding_lines(found)]
    if isinstance(fault, LlamaCppError):
        lines: Sequence[str] = [fault.reason, *(f"  llama.cpp: {line}" for line in fault.log)]
    else:
        lines = getattr(fault, "lines", ())  # a fault that is several has them
    return [harmless(line) for line in lines or [str(fault)]]


def _complain(text: str) -> None:
    """Tell standard error, if it takes it."""
    try:
        click.echo(f"ktllama: {text}", err=True)
    except OSError:
        _abandon(sys.stderr)


def _abandon(stream: Any) -> None:
    """Let what is still to be written to ``stream`` go nowhere, so that Python does not try again at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
