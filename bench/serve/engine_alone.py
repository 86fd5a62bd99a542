"""The engine alone, scheduler and llama.cpp in one process without HTTP, beside llama-batched-bench.

    python -m bench.serve.engine_alone --model MODEL.gguf --tool PATH/llama-batched-bench --results FILE.jsonl
    python -m bench.serve.table FILE.jsonl

Both compute the same prompts and the same number of tokens after them, with the same threads and context, in turns.
Decode throughput is tokens a second of all sequences together from the moment when every prompt is computed.
llama-batched-bench samples nothing; the engine does all that it does for a greedy request. The bar is 0.95 of it. To
give this process the large pages that the engine process has, start it with GLIBC_TUNABLES=glibc.malloc.hugetlb=1. The
share is what scheduling and text take of a step. No run is begun that may not end within ``--limit`` seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.serve.machine import machine
from ktllama.engine.core import Engine
from ktllama.engine.generation import Generation
from ktllama.engine.intake import Intake
from ktllama.engine.messages import Emitted, Finished, Generate, Sampling
from ktllama.runtime.executor import LlamaExecutor, open_in_own_process

PARALLEL = (1, 4, 8, 16)
PROMPT_TOKENS = 32
NEW_TOKENS = 48
_UBATCH = 512
_MARGIN = 1.2  # a run may take so much longer than the longest before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens a second, and the share of a decode step that is not llama.cpp and sampling."""

    decode: float
    python_share: float


def _ctx(n_parallel: int) -> int:
    return n_parallel * (PROMPT_TOKENS + NEW_TOKENS) + 256


def ours(executor: LlamaExecutor, n_parallel: int, seed: int) -> Speed:
    """Run ``n_parallel`` requests through an engine of their own."""
    engine, intake = Engine(executor, queue_limit=1000), Intake(executor)
    random = np.random.default_rng(seed)
    for index in range(n_parallel):
        prompt = random.integers(100, executor.model.vocab_size - 200, PROMPT_TOKENS).tolist()
        made = intake.generation(
            Generate(
                request_id=str(index),
                tokens=tuple(prompt),
                max_tokens=NEW_TOKENS,
                sampling=Sampling(temperature=0),
                ignore_eos=True,
                cache_prompt=False,
            )
        )
        assert isinstance(made, Generation), made
        engine.submit(made)
    started, before = 0.0, engine.stats()
    while engine.is_busy:
        engine.step()
        events = engine.take_events()
        assert all(isinstance(event, Emitted | Finished) or not hasattr(event, "code") for event in events), events
        if not started and engine.stats().prompt_tokens - before.prompt_tokens >= n_parallel * PROMPT_TOKENS:
            started, before = time.perf_counter(), engine.stats()
    seconds = time.perf_counter() - started
    after = engine.stats()
    step_seconds = after.step_seconds - before.step_seconds
    return Speed(
        decode=(after.generated_tokens - before.generated_tokens) / seconds,
        python_share=(after.scheduling_seconds - before.scheduling_seconds) / step_seconds,
    )


def _usual_environment() -> dict[str, str]:
    """Without the large pages that this process may have been started with, as the engine process is."""
    return {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}


def theirs(tool: str, model: str, n_threads: int, limit: float) -> dict[int, float]:
    """llama-batched-bench's decode throughput by number of sequences."""
    words = [tool, "-m", model, "-c", str(_ctx(max(PARALLEL))), "-b", str(_UBATCH), "-ub", str(_UBATCH)]
    words += ["-npp", str(PROMPT_TOKENS), "-ntg", str(NEW_TOKENS), "-npl", ",".join(map(str, PARALLEL))]
    words += ["-t", str(n_threads), "-tb", str(n_threads), "-kvu", "--output-format", "jsonl"]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=limit, env=_usual_environment())
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["pl"]: row["speed_tg"] for row in rows}


def _one_run(arguments: argparse.Namespace, run: int, limit: float) -> Iterator[dict[str, Any]]:
    """The records of both, by number of sequences."""
    for n_parallel, speed in theirs(arguments.tool, arguments.model, arguments.threads, limit).items():
        yield {"cell": f"alone-{n_parallel}", "server": "llama-batched-bench", "decode": speed}
    options: dict[str, object] = {
        "model": arguments.model,
        "ctx": _ctx(max(PARALLEL)),
        "ubatch": _UBATCH,
        "parallel": max(PARALLEL),
        "threads": arguments.threads,
    }
    executor = open_in_own_process(options, lambda _fraction: None)  # not beside the other: both want the cores
    ours(executor, 1, 1000)  # pages are touched
    for n_parallel in PARALLEL:
        mine = ours(executor, n_parallel, run)
        yield {"cell": f"alone-{n_parallel}", "server": "engine", "decode": mine.decode, "share": mine.python_share}
    executor.shut()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the engine without HTTP.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tool", required=True, help="llama-batched-bench's path")
    parser.add_argument("--results", type=Path, required=True, help="a file of JSON lines; records are added to it")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--limit", type=float, default=165.0, help="seconds for all of it")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    deadline = time.monotonic() + arguments.limit
    same = {"model": Path(arguments.model).name, "threads": arguments.threads, "machine": machine()}
    longest = 0.0
    with arguments.results.open("a") as results:
        for run in range(arguments.runs):
            began = time.monotonic()
            if began + _MARGIN * longest > deadline:
                break
            for record in _one_run(arguments, run, deadline - began):
                results.write(json.dumps({**same, "run": f"alone-{began:.0f}", **record}) + "\n")
                print(*(f"{key}={value}" for key, value in record.items()), flush=True)
            longest = max(longest, time.monotonic() - began)


if __name__ == "__main__":
    main()
