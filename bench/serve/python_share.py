"""What share of a step is Python at the step times of DeepSeek-R1.

    python -m bench.serve.python_share [--profile]

The engine runs whole, with a vocabulary of R1's size and R1's sampling, on an executor that fills the batch and chooses
tokens as the real one does and leaves out ``llama_decode``. What remains is everything that a step costs beside
llama.cpp: scheduling, batch, samplers (llama.cpp's own in C among them), text, events and their frame. It is set
against the time in which a machine with so much memory bandwidth can read the weights that R1 needs for the step, which
no step can be faster than: 4.5 bits a weight, the experts that so many tokens are expected to choose.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.serve.engine_overhead import engine_of
from bench.serve.sampling import rows_of
from ktllama.engine.executor import Row, Sampled
from ktllama.engine.messages import Sampling
from ktllama.engine.wire import frame
from ktllama.runtime import library
from ktllama.runtime.batch import Batch
from ktllama.runtime.sampler_chain import SamplerChain
from tests.engine.fake_executor import PIECES
from tests.runtime.test_sampler_chain import _factory

R1_VOCABULARY = 129_280
R1_SAMPLING = Sampling(temperature=0.6, top_p=0.95, seed=1)
GIGABYTES_A_SECOND = (250, 500, 1000)
STEPS = 100
_BITS_A_WEIGHT = 4.5
#: DeepSeek-R1, in 10⁹ weights: attention, dense layers, shared experts and output; routed experts; how they are chosen
_DENSE, _ROUTED, _EXPERTS, _USED = 17.0, 654.0, 256, 8


def least_seconds(n_sequences: int, gigabytes_a_second: float) -> float:
    """The time to read the weights of one step."""
    chosen = 1 - (1 - _USED / _EXPERTS) ** n_sequences
    return (_DENSE + _ROUTED * chosen) * _BITS_A_WEIGHT / 8 / gigabytes_a_second


class Sampler:
    """Batch and samplers as LlamaExecutor has them, over logits that are not computed."""

    def __init__(self, n_sequences: int) -> None:
        self._batch = Batch(library.load().api, 512)
        factory = _factory(R1_VOCABULARY)
        self._chains = [SamplerChain(factory, R1_SAMPLING, ()) for _ in range(n_sequences)]
        self._logits = np.stack(rows_of(R1_VOCABULARY, 32))

    def run(self, rows: Sequence[Row]) -> list[Sampled]:
        """Fill the batch and choose; the letters said are of the fake's vocabulary."""
        self._batch.fill(rows)
        chosen: list[Sampled] = []
        for row in rows:
            if row.sample:
                token = self._chains[row.sequence].choose(self._logits[(row.position + row.sequence) % 32])
                assert token is not None
                letter = 97 + (token + row.position) % 26
                chosen.append(Sampled(letter, PIECES[letter], None))
        return chosen


def step_seconds(n_sequences: int, profile: cProfile.Profile | None) -> float:
    """Processor seconds of a step beside ``llama_decode``."""
    engine, executor = engine_of(n_sequences, 200)
    sampler: Any = Sampler(executor.n_sequences)
    executor.run = sampler.run  # type: ignore[method-assign]
    for _ in range(10):
        engine.step()
        frame(engine.take_events())
    started = time.process_time()
    if profile is not None:
        profile.enable()
    for _ in range(STEPS):
        engine.step()
        frame(engine.take_events())
    if profile is not None:
        profile.disable()
    return (time.process_time() - started) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description="Python's share of a step at R1's step times.")
    parser.add_argument("--profile", action="store_true", help="say where the time of 16 sequences goes")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    print("sequences   µs a step " + "".join(f"{speed:>24} GB/s" for speed in GIGABYTES_A_SECOND))
    for n_sequences in (1, 4, 8, 16):
        seconds = statistics.median(step_seconds(n_sequences, None) for _ in range(given.runs))
        shares = []
        for speed in GIGABYTES_A_SECOND:
            step = least_seconds(n_sequences, speed)
            shares.append(f"{seconds / (seconds + step):>13.1%} of {step * 1e3:5.0f} ms")
        print(f"{n_sequences:>9} {seconds * 1e6:>11.0f} " + " ".join(f"{share:>28}" for share in shares))
    if given.profile:
        profile = cProfile.Profile(time.process_time)
        step_seconds(16, profile)
        pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
