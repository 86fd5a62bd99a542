"""The engine alone, scheduler and llama.cpp in one process without HTTP, beside llama-batched-bench.

    python -m bench.serve.engine_alone MODEL.gguf PATH/llama-batched-bench [RUNS]

Both compute the same prompts and the same number of tokens after them, with the same threads and context, in turns.
Decode throughput is tokens a second of all sequences together from the moment when every prompt is computed.
llama-batched-bench samples nothing; the engine does all that it does for a greedy request. The bar is 0.95 of it. The
last column is what the executor's caller, that is scheduling and text, takes of a step.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ktllama.engine.core import Engine
from ktllama.engine.generation import Generation
from ktllama.engine.intake import Intake
from ktllama.engine.messages import Emitted, Finished, Generate, Sampling
from ktllama.runtime.executor import LlamaExecutor, open_in_own_process

PARALLEL = (1, 4, 8, 16)
PROMPT_TOKENS = 128
NEW_TOKENS = 64
_UBATCH = 512


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


def theirs(tool: str, model: str, n_threads: int) -> dict[int, float]:
    """llama-batched-bench's decode throughput by number of sequences."""
    words = [tool, "-m", model, "-c", str(_ctx(max(PARALLEL))), "-b", str(_UBATCH), "-ub", str(_UBATCH)]
    words += ["-npp", str(PROMPT_TOKENS), "-ntg", str(NEW_TOKENS), "-npl", ",".join(map(str, PARALLEL))]
    words += ["-t", str(n_threads), "-tb", str(n_threads), "-kvu", "--output-format", "jsonl"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["pl"]: row["speed_tg"] for row in rows}


def main(model: str, tool: str, n_runs: int) -> None:
    n_threads = len(os.sched_getaffinity(0))
    options: dict[str, object] = {
        "model": model,
        "ctx": _ctx(max(PARALLEL)),
        "ubatch": _UBATCH,
        "parallel": max(PARALLEL),
        "threads": n_threads,
    }
    ours_by, theirs_by = {n: [] for n in PARALLEL}, {n: [] for n in PARALLEL}  # type: tuple[dict[int, list[Speed]], dict[int, list[float]]]
    for run in range(n_runs):
        for n_parallel, speed in theirs(tool, model, n_threads).items():
            theirs_by[n_parallel].append(speed)
        executor = open_in_own_process(options, lambda _fraction: None)  # not beside the other: both want the cores
        for n_parallel in PARALLEL:
            ours_by[n_parallel].append(ours(executor, n_parallel, run))
        executor.shut()
    print(f"{Path(model).name}, {n_threads} threads, medians of {n_runs} runs, tokens/s of decoding")
    print(f"{'sequences':>10} {'engine':>8} {'llama-batched-bench':>20} {'ratio':>6} {'Python':>7}")
    for n_parallel in PARALLEL:
        mine = statistics.median(speed.decode for speed in ours_by[n_parallel])
        peer = statistics.median(theirs_by[n_parallel])
        share = statistics.median(speed.python_share for speed in ours_by[n_parallel])
        print(f"{n_parallel:>10} {mine:>8.1f} {peer:>20.1f} {mine / peer:>6.2f} {share:>7.1%}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) == 4 else 3)
