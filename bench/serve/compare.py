"""ktllama serve beside llama-server, llama_cpp.server and xllamacpp: cells of the table, appended to a file.

    python -m bench.serve.compare CELL … --model MODEL.gguf --llama-server PATH --results FILE.jsonl [--runs 5] …
    python -m bench.serve.table FILE.jsonl

CELL is a number of clients (1, 4, 8, 16), ``shared`` (16 clients with one long prefix, after one has paid for it) or
``kept`` (many requests on connections that are kept). The servers are started together, with the same model file,
threads and context, and asked in turns, never two at once: an idle one computes nothing, and a slow minute of the
machine meets all. Every record names the machine. The whole call ends within ``--limit`` seconds: nothing is begun that
may not end in it, and what does not answer in time is counted as a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.serve.cells import Record, Sizes, measurement, warm
from bench.serve.machine import machine
from bench.serve.servers import SERVERS, Running, Setup, missing, serving

_MARGIN = 1.3  # a run may take so much longer than the longest before it


async def _measured(running: Running, sizes: Sizes, cell: str, run: str, seconds: float) -> Record:
    try:
        async with asyncio.timeout(seconds):
            return await measurement(cell)(running, sizes, run)
    except TimeoutError:
        return {"answers": 0, "failures": [f"no end within {seconds:.0f} s"]}


def _runs(servers: list[Running], arguments: argparse.Namespace, sizes: Sizes, deadline: float) -> Iterator[Record]:
    """The records of as many runs as there is time for."""

    def left() -> float:
        return max(1.0, deadline - time.monotonic())

    for running in servers:
        asyncio.run(asyncio.wait_for(warm(running, sizes), left()))
    longest: dict[str, float] = {}
    for run in range(arguments.runs):
        for cell in arguments.cells:
            began = time.monotonic()
            if _MARGIN * longest.get(cell, 0.0) > left():
                continue
            # who comes first changes, so that none always meets the caches that another left
            for running in servers if run % 2 == 0 else servers[::-1]:
                name = f"{arguments.seed}-{run}"
                found = asyncio.run(_measured(running, sizes, cell, name, left()))
                yield {"cell": cell, "server": running.name, "run": name, **found}
            longest[cell] = max(longest.get(cell, 0.0), time.monotonic() - began)
    for running in servers:
        yield {"cell": "memory", "server": running.name, "run": arguments.seed, "memory": running.memory()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure cells of the comparison of servers.")
    parser.add_argument("cells", nargs="+", help="1, 4, 8, 16, shared or kept")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True, help="a file of JSON lines; records are added to it")
    parser.add_argument("--llama-server", default="llama-server", help="its path")
    parser.add_argument("--peer-python", default=None, help="the interpreter that has xllamacpp and llama_cpp.server")
    parser.add_argument("--servers", nargs="+", choices=tuple(SERVERS), default=["ktllama", "llama-server"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", default="1", help="the prompts'; another one for another call")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--prefix-words", type=int, default=1800, help="about 1.1 tokens each")
    parser.add_argument("--kept-turns", type=int, default=25)
    parser.add_argument("--ctx", type=int, default=8192, help="cells that all slots share")
    parser.add_argument("--parallel", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--request-seconds", type=float, default=120.0)
    parser.add_argument("--limit", type=float, default=165.0, help="seconds for all of it")
    return parser.parse_args()


def main() -> None:
    deadline = time.monotonic() + 0.9 * (arguments := _arguments()).limit
    setup = Setup(
        model=arguments.model.resolve(),
        ctx=arguments.ctx,
        parallel=arguments.parallel,
        threads=arguments.threads,
        llama_server=arguments.llama_server,
        peer_python=arguments.peer_python,
    )
    sizes = Sizes(
        prompt_words=arguments.prompt_words,
        prefix_words=arguments.prefix_words,
        max_tokens=arguments.max_tokens,
        kept_turns=arguments.kept_turns,
        request_seconds=arguments.request_seconds,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are stopped on the way out
    with ExitStack() as stack:
        servers = []
        for name in arguments.servers:
            if (reason := missing(name, setup)) is not None:
                print(f"{name} is left out: {reason}")
            else:
                servers.append(stack.enter_context(serving(name, setup)))
        same = {"model": setup.model.name, "threads": setup.threads, "machine": machine()}
        with arguments.results.open("a") as results:
            for record in _runs(servers, arguments, sizes, deadline):
                results.write(json.dumps({**same, **record}) + "\n")
                results.flush()
                shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in record.items()}
                print(*(f"{key}={value}" for key, value in shown.items()), flush=True)


if __name__ == "__main__":
    main()
