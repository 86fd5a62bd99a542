"""The ``ktllama`` command."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NoReturn

import click

import ktllama
from ktllama.errors import KtllamaError

#: Command → module that defines it and its line in ``ktllama --help``; modules are imported when they are called.
COMMANDS = {
    "translate": ("ktllama.cli.translate", "Compile a rule file into llama.cpp settings."),
    "lint": ("ktllama.cli.lint", "Check a rule file; exit status 1 on errors."),
    "verify": ("ktllama.cli.verify", "Prove in llama.cpp's own dry run that it does what the rules say."),
    "run": ("ktllama.cli.run", "Load a model under the rules, check its buffers, and generate."),
    "devices": ("ktllama.cli.devices", "List the devices of this llama.cpp build."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

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


def main() -> NoReturn:
    """The console script. Errors of ktllama become one message and an exit status; a closed pipe ends quietly."""
    try:
        status: Any = cli.main(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as fault:
        fault.show()
        sys.exit(fault.exit_code)
    except KtllamaError as fault:
        click.echo(f"ktllama: {fault}", err=True)
        sys.exit(fault.exit_status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
