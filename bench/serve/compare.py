"""ktllama serve beside llama-server, llama_cpp.server and xllamacpp: the same model, threads, context and requests.

    python -m bench.serve.compare --model MODEL.gguf --llama-server PATH [--runs 3] [--clients 1 4 8 16] …

The servers run one after another, never beside each other, in turns: every run starts each of them afresh, so that a
slow minute of the machine meets all. Measured are, at each number of clients, decode throughput and time to the first
token; a 2,000-token prefix that 16 clients share, after one has paid for it; requests without a whole answer, also on
connections that are kept; and resident memory by process. Medians and ratios are printed, everything is written as JSON
with --json FILE.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.serve.load_client import Load, at_once
from bench.serve.servers import SERVERS, Running, Setup, missing, serving

_WORDS = (
    "river", "stone", "cloud", "window", "music", "garden", "letter", "summer", "winter", "market", "silver",
    "yellow", "bridge", "forest", "paper", "mountain", "table", "coffee", "island", "engine", "candle", "pocket",
    "shadow", "mirror", "bottle", "circle", "corner", "doctor", "farmer", "finger",
)  # fmt: skip
_OURS, _PEER = "ktllama", "llama-server"
_SHARING_CLIENTS = 16


@dataclass(slots=True, kw_only=True)
class Figures:
    """What was seen of one server, a list of runs for each figure."""

    throughput: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    first_token: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    shared_ratio: list[float] = field(default_factory=list)
    memory: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    requests: int = 0
    failures: list[str] = field(default_factory=list)

    def note(self, load: Load) -> None:
        """Count requests and failures."""
        self.requests += len(load.answers) + len(load.failures)
        self.failures += load.failures


def text(seed: object, n_words: int) -> str:
    """Words that begin differently for every seed, so that no cache knows them."""
    chosen = random.Random(str(seed))
    return " ".join(chosen.choice(_WORDS) for _ in range(n_words))


def body(content: str, max_tokens: int) -> dict[str, Any]:
    """A request whose answer has exactly ``max_tokens`` tokens where the server can ignore the end token."""
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0.6,
        "top_p": 0.95,
        "seed": 1,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }


async def measure(running: Running, arguments: argparse.Namespace, run: int, figures: Figures) -> None:
    """One run of everything against one server."""
    plain = arguments.prompt_words
    extra = {} if running.name in (_OURS, _PEER, "xllamacpp") else {"ignore_eos": None}

    def request(content: str, max_tokens: int) -> Mapping[str, Any]:
        return {key: value for key, value in {**body(content, max_tokens), **extra}.items() if value is not None}

    await at_once(running.port, [request(text(("warm", run), 8), 4)])
    for n_clients in arguments.clients:
        bodies = [request(text((run, n_clients, each), plain), arguments.max_tokens) for each in range(n_clients)]
        load = await at_once(running.port, bodies)
        figures.note(load)
        if load.answers:
            figures.throughput[n_clients].append(load.decode_tokens_per_second)
            figures.first_token[n_clients].append(statistics.median(each.first_token for each in load.answers))
    kept = await at_once(running.port, [request(text(("kept", run, each), 4), 2) for each in range(8)], turns=10)
    figures.note(kept)
    await _shared_prefix(running, arguments, run, figures, request)
    for index, (_, resident) in enumerate(sorted(running.resident_bytes().items())):
        figures.memory["server" if index == 0 else f"process {index + 1}"].append(resident)


async def _shared_prefix(
    running: Running, arguments: argparse.Namespace, run: int, figures: Figures, request: Any
) -> None:
    prefix = text(("prefix", run), arguments.prefix_words)
    first = await at_once(running.port, [request(f"{prefix} first", 4)])
    rest = await at_once(running.port, [request(f"{prefix} {each}", 4) for each in range(_SHARING_CLIENTS)])
    figures.note(first)
    figures.note(rest)
    if first.answers and rest.answers:
        median = statistics.median(each.first_token for each in rest.answers)
        figures.shared_ratio.append(median / first.answers[0].first_token)


def table(found: Mapping[str, Figures], clients: list[int]) -> str:
    """The figures' medians; ratios are to llama-server."""
    lines = [f"{'':34}" + "".join(f"{name:>20}" for name in found)]

    def line(label: str, values: Mapping[str, float | None], unit: str, *, ratio: bool = True) -> None:
        peer = values.get(_PEER)
        cells = []
        for value in values.values():
            shown = "-" if value is None else f"{value:.3g}{unit}"
            shown += f" ({value / peer:.2f}×)" if ratio and value is not None and peer else ""
            cells.append(f"{shown:>20}")
        lines.append(f"{label:34}" + "".join(cells))

    for n_clients in clients:
        line(f"decode, {n_clients} clients", _medians(found, "throughput", n_clients), " t/s")
    for n_clients in clients:
        line(f"first token, {n_clients} clients", _medians(found, "first_token", n_clients), " s")
    line("first token after shared prefix", _medians(found, "shared_ratio"), " of the first", ratio=False)
    for process in sorted({name for figures in found.values() for name in figures.memory}, reverse=True):
        sizes = _medians(found, "memory", process)
        line(f"memory, {process}", {name: size and size / 2**20 for name, size in sizes.items()}, " MiB", ratio=False)
    line("requests", {name: float(figures.requests) for name, figures in found.items()}, "", ratio=False)
    line("without an answer", {name: float(len(figures.failures)) for name, figures in found.items()}, "", ratio=False)
    return "\n".join(lines)


def _medians(found: Mapping[str, Figures], name: str, key: object = None) -> dict[str, float | None]:
    medians: dict[str, float | None] = {}
    for server, figures in found.items():
        runs = getattr(figures, name)
        runs = runs if key is None else runs.get(key, [])
        medians[server] = statistics.median(runs) if runs else None
    return medians


def machine() -> str:
    """The processor, its cores that we may use, and the system."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare servers on one model.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--llama-server", default="llama-server", help="its path")
    parser.add_argument("--servers", nargs="+", choices=tuple(SERVERS), default=list(SERVERS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--prefix-words", type=int, default=1800, help="about 1.1 tokens each")
    parser.add_argument("--ctx", type=int, default=8192, help="cells that all slots share")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write every run's figures there")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    setup = Setup(
        model=arguments.model.resolve(),
        ctx=arguments.ctx,
        parallel=max(arguments.clients),
        threads=arguments.threads,
        llama_server=arguments.llama_server,
    )
    found: dict[str, Figures] = {}
    for name in arguments.servers:
        reason = missing(name, setup)
        if reason is None:
            found[name] = Figures()
        else:
            print(f"{name} is left out: {reason}")
    for run in range(arguments.runs):
        for name, figures in found.items():
            try:
                with serving(name, setup) as running:
                    asyncio.run(measure(running, arguments, run, figures))
            except RuntimeError as error:
                figures.failures.append(str(error))
    print(f"{setup.model.name}; {machine()}; {setup.threads} threads, context of {setup.ctx}; {arguments.runs} runs")
    print(table(found, arguments.clients))
    for name, figures in found.items():
        for failure in sorted(set(figures.failures))[:5]:
            print(f"{name}: {figures.failures.count(failure)} × {failure}")
    if arguments.json:
        written = {
            name: {slot: getattr(figures, slot) for slot in Figures.__slots__} for name, figures in found.items()
        }
        arguments.json.write_text(
            json.dumps({"machine": machine(), "model": setup.model.name, "servers": written}, indent=1)
        )


if __name__ == "__main__":
    main()
