"""A comparison of placements for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.padding import Padding
from rich.table import Table

from ktllama.benching.comparison import Measured, Workload
from ktllama.benching.document import STAND_INS_NOTE
from ktllama.benching.intervals import CONFIDENCE, Interval
from ktllama.cli.text import make_console, plain_table, print_heading, print_lines, print_title
from ktllama.units import counted, format_bytes


def print_comparison(model: str, workload: Workload, measured: Sequence[Measured], stream: TextIO) -> None:
    """Write the tables of ``measured`` to ``stream``."""
    console = make_console(stream)
    context = measured[0].contender.context
    threads = "all threads" if context.n_threads is None else counted(context.n_threads, "thread")
    print_title(console, Path(model).name, f"{threads}, KV cache {context.type_k}, ubatch {context.n_ubatch}")
    print_heading(console, "Memory")
    console.print(Padding(_memory(measured), (0, 0, 0, 2), expand=False))
    print_heading(console, "Tokens/s")
    console.print(Padding(_speeds(measured), (0, 0, 0, 2), expand=False))
    print_heading(console, "Notes")
    print_lines(console, "\n".join(_notes(workload, measured)))


def _memory(measured: Sequence[Measured]) -> Table:
    table = plain_table("placement", "device", "weights", "KV", "compute", "loaded in", right=(2, 3, 4, 5))
    for one in measured:
        loaded = one.loaded
        listed = dict.fromkeys((*loaded.weights, *loaded.kv, *loaded.compute))
        for number, device in enumerate(listed):
            sizes = [
                format_bytes(of[device]) if of.get(device) else "-"
                for of in (loaded.weights, loaded.kv, loaded.compute)
            ]
            first = number == 0
            table.add_row(
                one.contender.name if first else "", device, *sizes, f"{loaded.load_seconds:.1f} s" if first else ""
            )
    return table


def _speeds(measured: Sequence[Measured]) -> Table:
    several = len(measured) > 1
    ratio = ["× first"] if several else []
    table = plain_table("depth", "placement", "prefill", "", *ratio, "decode", "", *ratio)
    for at in range(len(measured[0].speeds)):
        for number, one in enumerate(measured):
            speeds = one.speeds[at]
            words = ["" if number else str(speeds.depth), one.contender.name]
            for speed, relative in ((speeds.prefill, speeds.prefill_ratio), (speeds.decode, speeds.decode_ratio)):
                words += _words(speed)
                words += [_ratio(relative, is_first=number == 0)] if several else []
            table.add_row(*words)
    return table


def _words(speed: Interval | None) -> list[str]:
    if speed is None:
        return ["-", ""]
    return [f"{speed.median:.4g}", f"{speed.low:.4g} – {speed.high:.4g}"]


def _ratio(ratio: Interval | None, *, is_first: bool) -> str:
    if is_first:
        return "1"
    return "-" if ratio is None else f"{ratio.median:.3f} ({ratio.low:.3f} – {ratio.high:.3f})"


def _notes(workload: Workload, measured: Sequence[Measured]) -> list[str]:
    found = next(
        interval
        for one in measured
        for speeds in one.speeds
        for interval in (speeds.prefill, speeds.decode)
        if interval
    )
    lines = [
        f"medians of {found.n}, measured in turn; beside each the interval that holds the true median with "
        f"{found.confidence:.0%} (order statistics)"
    ]
    if found.confidence < CONFIDENCE:
        lines.append("that is less than 95%: --repeat 6 is the least that gives it")
    lines.append(
        f"prefill reads {counted(workload.prefill_tokens, 'token')}, decode {workload.decode_tokens} one by one, "
        "after as many as the depth says"
    )
    stand_ins = sorted({name for one in measured for name in one.loaded.stand_ins})
    if stand_ins:
        lines.append(f"{', '.join(stand_ins)}: {STAND_INS_NOTE}")
    return lines
