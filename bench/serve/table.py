"""The table of what `bench.serve.compare` and `bench.serve.engine_alone` have measured.

    python -m bench.serve.table FILE.jsonl …

Medians of all runs in the files; in brackets the ratio to llama-server (llama-batched-bench for the engine alone), the
median of the ratios within the runs, which the servers met in turns.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
#: how a measurement begins that the time limit of `bench.serve.compare` has cut off
OUT_OF_TIME = "no end within"
_PEERS = ("llama-server", "llama-batched-bench")
_ORDER = ("ktllama", "engine", "llama-server", "llama-batched-bench", "llama_cpp.server", "xllamacpp")


def _read(paths: Iterable[Path]) -> list[Record]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def _values(records: Iterable[Record], figure: str) -> dict[str, dict[str, float]]:
    """By server, then by run."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        if record.get(figure) is not None:
            found.setdefault(record["server"], {})[record["run"]] = record[figure]
    return found


def _ratio(mine: dict[str, float], peer: dict[str, float]) -> float | None:
    ratios = [value / peer[run] for run, value in mine.items() if peer.get(run)]
    return statistics.median(ratios) if ratios else None


def _cells(records: list[Record], figure: str, unit: str, *, ratio: bool = True) -> dict[str, str]:
    values = _values(records, figure)
    peer = next((name for name in _PEERS if name in values), None)
    shown = {}
    for server, runs in values.items():
        said = f"{statistics.median(runs.values()):.3g}{unit}"
        found = _ratio(runs, values[peer]) if ratio and peer is not None and server != peer else None
        shown[server] = said if found is None else f"{said} ({found:.2f}×)"
    return shown


def _counted(records: list[Record], count: Callable[[Record], int]) -> dict[str, str]:
    totals: dict[str, int] = {}
    for record in records:
        if "answers" in record:
            totals[record["server"]] = totals.get(record["server"], 0) + count(record)
    return {server: str(total) for server, total in totals.items()}


def _unanswered(record: Record) -> list[str]:
    """Requests that the server gave no whole answer, without those that we gave up at the end of our own time."""
    failures: list[str] = record["failures"]
    return [failure for failure in failures if not failure.startswith(OUT_OF_TIME)]


def _memory(records: list[Record]) -> dict[str, dict[str, str]]:
    """By process, then by server: the median of the peaks in MiB."""
    seen: dict[str, dict[str, list[int]]] = {}
    for record in records:
        for process, size in record.get("memory", {}).items():
            seen.setdefault(process, {}).setdefault(record["server"], []).append(size)
    return {
        process: {server: f"{statistics.median(sizes) / 2**20:.0f} MiB" for server, sizes in by_server.items()}
        for process, by_server in seen.items()
    }


def rows(records: list[Record]) -> list[tuple[str, dict[str, str]]]:
    """The lines of one model's table: a label, and what is shown of each server."""
    made: list[tuple[str, dict[str, str]]] = []
    by_cell: dict[str, list[Record]] = {}
    for record in records:
        by_cell.setdefault(record["cell"], []).append(record)
    counts = sorted((cell for cell in by_cell if cell.isdigit()), key=int)
    for figure, label, unit in (
        ("decode", "decode", " t/s"),
        ("whole", "tokens over all the time", " t/s"),
        ("first_token", "first token, median", " s"),
        ("mean_first_token", "first token, mean", " s"),
        ("last_first_token", "first token, the last client's", " s"),
    ):
        made += [(f"{label}, {cell} clients", _cells(by_cell[cell], figure, unit)) for cell in counts]
    for cell in sorted((cell for cell in by_cell if cell.startswith("alone-")), key=lambda cell: int(cell[6:])):
        made.append((f"engine alone, {cell[6:]} sequences", _cells(by_cell[cell], "decode", " t/s")))
        made.append((f"its caller's share, {cell[6:]} sequences", _cells(by_cell[cell], "share", "")))
    shared = by_cell.get("shared", [])
    made.append(("first token after shared prefix", _cells(shared, "shared_ratio", " of the first", ratio=False)))
    made += [(f"memory, {process}", shown) for process, shown in sorted(_memory(records).items())]
    made.append(("requests", _counted(records, lambda record: record["answers"] + len(_unanswered(record)))))
    made.append(("without an answer", _counted(records, lambda record: len(_unanswered(record)))))
    return [(label, shown) for label, shown in made if shown]


def _cell_names(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(record["cell"] for record in records))


def table(records: list[Record]) -> str:
    """One model's table as Markdown."""
    seen = {record["server"] for record in records}
    servers = [name for name in _ORDER if name in seen]
    lines = ["| | " + " | ".join(servers) + " |", "|---" * (len(servers) + 1) + "|"]
    for label, shown in rows(records):
        lines.append(f"| {label} | " + " | ".join(shown.get(server, "") for server in servers) + " |")
    return "\n".join(lines)


def main(paths: list[Path]) -> None:
    records = _read(paths)
    for model in dict.fromkeys(record["model"] for record in records):
        of_model = [record for record in records if record["model"] == model]
        machines = dict.fromkeys(f"{record['machine']}, {record['threads']} threads" for record in of_model)
        runs = [record for record in of_model if "memory" not in record]
        by_cell = {
            cell: len({record["run"] for record in runs if record["cell"] == cell}) for cell in _cell_names(runs)
        }
        said = ", ".join(f"{cell} {n}" for cell, n in by_cell.items())
        said = ", ".join(f"{cell} {n}" for cell, n in by_cell.items())
        print(f"\n{model}: {'; '.join(machines)}; runs by cell: {said}\n")
        print(table(of_model))
        failures = [(record["server"], failure) for record in of_model for failure in record.get("failures", [])]
        for server, failure in dict.fromkeys(failures):
            print(f"\n{server}: {failures.count((server, failure))} × {failure}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(path) for path in sys.argv[1:]])
