"""A plan for people: what each device holds, the settings, the predicted speed, and what to run next."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from ktllama.cli.text import make_console, plain_table, print_heading, print_lines, print_title
from ktllama.planner import wording
from ktllama.planner.plan import Plan
from ktllama.units import counted, format_bytes


def print_plan(plan: Plan, model: str, output: str | None, stream: TextIO) -> None:
    """Write everything about ``plan`` to ``stream``. ``output`` is where its rule file was written, if it was."""
    console = make_console(stream)
    of = plan.translation.model
    print_title(console, of.name, f"{of.architecture}, {counted(of.n_layers, 'layer')}, {format_bytes(of.n_bytes)}")
    print_heading(console, "Memory")
    _print_table(console, _memory(plan))
    print_heading(console, "Settings")
    print_lines(console, _aligned(wording.settings_rows(plan)))
    for title, lines in (
        ("Predicted", wording.predicted_lines(plan)),
        ("Notes", wording.note_lines(plan)),
        ("Next", wording.next_lines(plan, model, output)),
    ):
        if lines:
            print_heading(console, title)
            print_lines(console, "\n".join(lines))


def _print_table(console: Console, table: Table) -> None:
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _memory(plan: Plan) -> Table:
    """A column for each device, whose parts add up downwards."""
    table = plain_table("", *(one.device for one in plan.memory), right=tuple(range(1, len(plan.memory) + 1)))
    for name, sizes in wording.memory_rows(plan.memory):
        table.add_row(name, *sizes)
    return table


def _aligned(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
