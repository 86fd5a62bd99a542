"""``ktllama rules``."""

from __future__ import annotations

import sys

import click

from ktllama import shipped_rules
from ktllama.errors import RuleFileError


@click.group("rules", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> int:
    """List the rule files that come with ktllama; every command takes their names instead of a file."""
    if context.invoked_subcommand is None:
        _print_list()
    return 0


@command.command("show")
@click.argument("name")
def show(name: str) -> int:
    """Print the shipped rule file NAME."""
    found = next((shipped for shipped in shipped_rules.every() if shipped.name == name), None)
    if found is None:
        path = shipped_rules.find(name)
        raise RuleFileError(path, "not the name of a shipped rule file; 'ktllama rules' lists them")
    click.echo(found.path.read_text(encoding="utf-8"), nl=False)
    return 0


def _print_list() -> None:
    from rich.text import Text

    from ktllama.cli.text import make_console, plain_table

    table = plain_table("name", "for", "takes")
    for shipped in shipped_rules.every():
        table.add_row(shipped.name, Text(shipped.summary), Text("\n".join(shipped.verified)))
    make_console(sys.stdout).print(table)
