"""A validation for people: the verdict, the figures, the layers, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

import numpy as np
from rich.padding import Padding

from ktllama.cli.text import make_console, plain_table, print_heading, print_lines, print_title
from ktllama.validating.page import facts
from ktllama.validating.report import (
    Report,
    flips,
    number,
    percentage,
    sources,
    suspicion,
    totals,
    verdict,
    worst_positions,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_SHOWN_POSITIONS = 5


def print_report(report: Report, stream: TextIO) -> None:
    """Write everything about ``report`` to ``stream``; colours only on a terminal."""
    console = make_console(stream)
    print_title(console, report.name, ", ".join(facts(report)))
    print_heading(console, "Layers")
    _table(console, _layers(report))
    print_heading(console, "Worst positions")
    _table(console, _positions(report))
    print_heading(console, "Total")
    _table(console, _totals(report))
    print_heading(console, "Why the two may differ")
    for line in sources(report):
        print_lines(console, line)
    console.print()
    if (flipped := flips(report)) is not None:
        print_lines(console, flipped)
    found = report.suspect
    if found is not None and (said := suspicion(report)) is not None:
        print_lines(console, said, style="bold red" if found.certain else "yellow")
    print_lines(console, verdict(report), style=f"bold {'green' if report.ok else 'red'}")


def _table(console: Console, table: Table) -> None:
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _layers(report: Report) -> Table:
    columns = ("layer", "devices", "typical error", "worst", "at position", "its own part", "flipped")
    table = plain_table(*columns, right=(0, 2, 3, 4, 5, 6))
    suspect = report.suspect
    for found in report.layers:
        bad = suspect is not None and suspect.certain and suspect.layer == found.layer
        table.add_row(
            str(found.layer),
            ", ".join(report.devices[found.layer]),
            number(found.median),
            number(found.worst),
            str(found.worst_position),
            number(found.median_own),
            "-" if found.flipped is None else str(found.n_flipped),
            style="bold red" if bad else "",
        )
    relative, own = report.positions.relative, float(np.median(report.output))
    table.add_row(
        "output",
        ", ".join(report.output_devices),
        number(float(np.median(relative))),
        number(float(relative.max())),
        str(int(relative.argmax())),
        number(own),
        "-",
        style="bold red" if suspect is not None and suspect.certain and suspect.layer is None else "",
    )
    return table


def _positions(report: Report) -> Table:
    found = report.positions
    table = plain_table(
        "position", "KL", "|Δ logit|", "mean", "same token", "same five", "experts", right=(0, 1, 2, 3, 5)
    )
    for at in worst_positions(report, _SHOWN_POSITIONS):
        flipped = [layer.layer for layer in report.layers if layer.flipped is not None and layer.flipped[at]]
        table.add_row(
            str(at),
            number(float(found.kl[at])),
            number(float(found.max_abs[at])),
            number(float(found.mean_abs[at])),
            "yes" if found.top1[at] else "no",
            percentage(float(found.top5[at])),
            f"flipped in layer {', '.join(str(layer) for layer in flipped)}" if flipped else "-",
        )
    return table


def _totals(report: Report) -> Table:
    table = plain_table("", "", right=())
    table.show_header = False
    for what, value in totals(report):
        table.add_row(what, value)
    return table
