"""What was measured and tried, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from rich.padding import Padding
from rich.table import Table

from ktllama.cli.text import make_console, plain_table, print_heading, print_lines, print_title
from ktllama.measuring.speeds import Speeds
from ktllama.planner.plan import Plan
from ktllama.planner.wording import next_lines, settings_rows
from ktllama.tuning.search import Found, wording
from ktllama.tuning.trials import ALIKE, Trial
from ktllama.units import counted, format_bytes


def print_found(plan: Plan, found: Found, model: str, output: str | None, state: str, stream: TextIO) -> None:
    """Write the trials and the settings that won to ``stream``."""
    console = make_console(stream)
    of = plan.translation.model
    print_title(console, of.name, f"{of.architecture}, {counted(of.n_layers, 'layer')}, {format_bytes(of.n_bytes)}")
    print_heading(console, "Tried")
    console.print(Padding(_trials(found), (0, 0, 0, 2), expand=False))
    print_heading(console, "Settings that won")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for row in settings_rows(plan):
        table.add_row(*row)
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    print_heading(console, "Notes")
    print_lines(console, "\n".join(_notes(plan, found, state)))
    print_heading(console, "Next")
    print_lines(console, "\n".join(_next(plan, model, output)))


def print_speeds(speeds: Speeds, stream: TextIO) -> None:
    """Write what was measured of every device to ``stream``."""
    console = make_console(stream)
    for (device, n_threads), one in speeds.devices.items():
        print_heading(console, f"{device} with {counted(n_threads, 'thread')}")
        table = plain_table("weights", "buffer", "decode", "experts", "prefill", right=(2, 3, 4))
        for name, by_buffer in one.matrices.items():
            for times in by_buffer.values():
                experts = "-" if times.experts is None else f"{1 / times.experts / 1e9:.3g} GB/s"
                rate = f"{times.prefill_flops / 1e9:.3g} Gop/s"
                table.add_row(name, times.buffer, f"{1 / times.decode / 1e9:.3g} GB/s", experts, rate)
        console.print(Padding(table, (0, 0, 0, 2), expand=False))
        lines = [f"attention, {name}: {1 / seconds / 1e9:.3g} Gop/s" for name, seconds in one.attention.items()]
        lines += [
            f"{kind} models: {times.node * 1e6:.3g} µs a node of the graph, {times.token * 1e6:.3g} µs a token"
            for kind, times in one.overheads.items()
        ]
        lines += [] if one.crossing is None else [f"crossing: {one.crossing * 1e6:.3g} µs"]
        lines += [] if one.copy is None else [f"copies from the host: {one.copy / 1e9:.3g} GB/s"]
        print_lines(console, "\n".join(lines))


def _trials(found: Found) -> Table:
    why = ["failed because"] if any(trial.failure for trial in found.trials) else []
    table = plain_table("", "settings", "ubatch", "predicted", "decode", "prefill", *why, right=(2, 3, 4, 5))
    for trial in found.trials:
        mark = "→" if trial is found.winner else ""
        table.add_row(mark, wording(trial.choice), *_figures(trial), *([trial.failure] if why else []))
    return table


def _figures(trial: Trial) -> tuple[str, ...]:
    if trial.failure:
        return ("-", "-", "-", "-")
    speeds = (trial.predicted_decode, trial.decode_speed, trial.prefill_speed)
    return (str(trial.ubatch), *(f"{speed:.3g}" for speed in speeds))


def _notes(plan: Plan, found: Found, state: str) -> Iterator[str]:
    yield (
        "tokens/s, medians of short trials; predicted is decode at the same depth. Stage by stage, of those whose "
        f"decode is within {ALIKE:.0%} of the fastest the one with the fastest prefill stayed; of ubatches the one "
        "with the fastest prefill"
    )
    if not found.complete:
        yield f"time was over before everything was tried; the same command goes on from {state}"
    if plan.stand_ins:
        yield (
            f"{', '.join(plan.stand_ins)}: the CPU stood in for devices that this machine lacks, so these speeds mean "
            "nothing"
        )


def _next(plan: Plan, model: str, output: str | None) -> list[str]:
    if output is None:
        return ["ktllama tune … -o rules.yaml writes the rule file; then", next_lines(plan, model, "rules.yaml")[0]]
    return next_lines(plan, model, output)
