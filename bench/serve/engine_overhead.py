"""What a step costs in Python: scheduler, prefix cache, texts and events, without the executor.

    python -m bench.serve.engine_overhead [--json]

The executor gives the same letter-by-letter text to everybody and does nothing else; its own time is taken off. Shown
are processor time and the budget that the design sets: 60 µs a step and 15 µs a running sequence.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence

from ktllama.engine.core import Engine
from ktllama.engine.executor import Row, Sampled
from ktllama.engine.generation import Generation
from ktllama.engine.intake import Intake
from ktllama.engine.messages import Generate, Segment, Thinking
from ktllama.engine.wire import frame
from tests.engine.fake_executor import FakeExecutor, FakeOptions

LETTERS = [Sampled(97 + i, bytes([97 + i]), None) for i in range(26)]
STEPS = 400
RUNS = 5


class Nothing(FakeExecutor):
    """Computes nothing."""

    def __init__(self, options: FakeOptions) -> None:
        super().__init__(options)
        self.seconds = 0.0
        self.turn = 0

    def run(self, rows: Sequence[Row]) -> list[Sampled]:
        start = time.process_time()
        self.turn = (self.turn * 7 + 11) % 10_007  # no cycle for the guard
        found = [LETTERS[(self.turn + 5 * i) % 26] for i, row in enumerate(row for row in rows if row.sample)]
        self.seconds += time.process_time() - start
        return found

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        pass

    def remove(self, sequence: int, start: int) -> None:
        pass


def engine_of(n_running: int, n_prompt: int) -> tuple[Engine, Nothing]:
    """An engine with so many requests running, all decoding."""
    options = FakeOptions(
        n_ctx=n_running * (n_prompt + 4 * STEPS) + 65536, n_ubatch=512, n_parallel=n_running, n_sequences=n_running
    )
    executor = Nothing(options)
    engine, intake = Engine(executor, queue_limit=1000), Intake(executor)
    thinking = Thinking(start="<think>", end="</think>", begins_inside=True)
    for i in range(n_running):
        text = f"{i:04}" + "x" * (n_prompt - 4)
        request = Generate(request_id=f"request-{i}", prompt=(Segment(text, True),), thinking=thinking, stop=("###",))
        generation = intake.generation(request)
        assert isinstance(generation, Generation)
        engine.submit(generation)
    while any(generation.n_computed < n_prompt for generation in engine.generations.values()):
        engine.step()
    frame(engine.take_events())
    return engine, executor


def decode_microseconds(n_running: int, n_prompt: int) -> float:
    """Microseconds of a decoding step, its frame included."""
    engine, executor = engine_of(n_running, n_prompt)
    executor.seconds = 0.0
    start = time.process_time()
    for _ in range(STEPS):
        engine.step()
        frame(engine.take_events())
    return (time.process_time() - start - executor.seconds) / STEPS * 1e6


def prefill_microseconds(n_prompt: int) -> float:
    """Microseconds of a step that computes 512 tokens of a prompt."""
    executor = Nothing(FakeOptions(n_ctx=n_prompt + 1000, n_ubatch=512))
    engine = Engine(executor, queue_limit=10)
    request = Generate(request_id="r", prompt=(Segment("x" * n_prompt, True),), max_tokens=1)
    generation = Intake(executor).generation(request)
    assert isinstance(generation, Generation)
    engine.submit(generation)
    start = time.process_time()
    while engine.is_busy:
        engine.step()
    return (time.process_time() - start - executor.seconds) / (n_prompt / 512) * 1e6


def main() -> None:
    """Measure and print."""
    figures: dict[str, float] = {}
    for n_running in (1, 4, 8, 16, 32):
        runs = [decode_microseconds(n_running, 200) for _ in range(RUNS)]
        figures[f"decode, {n_running} running"] = statistics.median(runs)
    figures["decode, 8 running, prompts of 8000"] = statistics.median(decode_microseconds(8, 8000) for _ in range(RUNS))
    figures["prefill of 512 tokens, prompt of 32768"] = statistics.median(
        prefill_microseconds(32768) for _ in range(RUNS)
    )
    if "--json" in sys.argv:
        print(json.dumps(figures))
        return
    for what, microseconds in figures.items():
        print(f"{what:40} {microseconds:8.0f} µs a step")


if __name__ == "__main__":
    main()
