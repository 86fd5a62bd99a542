"""What choosing a token costs, in µs of processor time: llama.cpp's chain over the whole vocabulary, and the short way.

    python -m bench.serve.sampling

Rows are random but shaped as language models give them: a bulk of small logits and a few tens of large ones. Both ways
choose the same tokens, which is checked; the batch of 16 rows is filled and timed too.
"""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ktllama.engine.executor import Row
from ktllama.engine.messages import Sampling
from ktllama.runtime import library
from ktllama.runtime.batch import Batch
from ktllama.runtime.sampler_chain import SamplerChain
from tests.runtime.test_sampler_chain import _factory, _PlainChain

VOCABULARIES = (49_152, 129_280)
N_ROWS = 100
CASES = {
    "R1: temperature 0.6, top_p 0.95": Sampling(temperature=0.6, top_p=0.95, seed=1),
    "llama-server: 0.8, top_k 40, top_p 0.95, min_p 0.05": Sampling(
        temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, seed=1
    ),
    "min_p 0.05": Sampling(temperature=0.8, min_p=0.05, seed=1),
    "R1 with repeat_penalty 1.1": Sampling(temperature=0.6, top_p=0.95, repeat_penalty=1.1, seed=1),
    "temperature 1 alone": Sampling(seed=1),
    "greedy": Sampling(temperature=0, seed=1),
}


def rows_of(n_vocab: int, n_rows: int = N_ROWS) -> list[Any]:
    """Rows of logits shaped as a language model's."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(n_rows):
        row = random.standard_normal(n_vocab) * 2.2 - 2
        row[random.integers(n_vocab, size=50)] += random.uniform(2, 18, 50)
        rows.append(row.astype(np.float32))
    return rows


def _timed(choose: Callable[[Any], int | None], rows: list[Any]) -> tuple[list[int | None], float]:
    tokens, seconds = [], []
    for row in rows:
        started = time.thread_time()
        tokens.append(choose(row))
        seconds.append(time.thread_time() - started)
    return tokens, 1e6 * statistics.median(seconds)


def main() -> None:
    for n_vocab in VOCABULARIES:
        rows, factory = rows_of(n_vocab), _factory(n_vocab)
        print(f"vocabulary of {n_vocab}: median µs a token, whole chain → short way")
        for name, sampling in CASES.items():
            plain, chain = _PlainChain(sampling, n_vocab), SamplerChain(factory, sampling, ())
            expected, before = _timed(plain.choose, rows)
            found, after = _timed(chain.choose, rows)
            agree = "same tokens" if found == expected else f"{sum(map(operator.ne, found, expected))} tokens differ"
            print(f"  {name:52} {before:6.0f} → {after:5.0f}   {agree}", flush=True)
            plain.close()
            chain.close()
    batch = Batch(library.load().api, 512)
    full = [Row(sequence, 7, 100, True) for sequence in range(16)]

    def fill(_: Any) -> int:
        batch.fill(full)
        return 0

    _, filling = _timed(fill, [None] * 2000)
    print(f"filling a batch of 16 rows: {filling:.1f} µs")


if __name__ == "__main__":
    main()
