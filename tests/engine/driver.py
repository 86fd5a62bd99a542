"""Drives an engine on the fake executor, step by step, with the integrity check after each."""

from __future__ import annotations

from dataclasses import dataclass, field

from ktllama.engine import integrity
from ktllama.engine.core import Engine
from ktllama.engine.generation import Generation
from ktllama.engine.intake import Intake
from ktllama.engine.messages import (
    Accepted,
    Emitted,
    Event,
    Failed,
    Finished,
    Generate,
    Sampling,
    Segment,
    Thinking,
    TokenLogprob,
)
from tests.engine.fake_executor import FakeExecutor, FakeOptions

R1_THINKING = Thinking(start="<think>", end="</think>", begins_inside=True)


@dataclass
class Answer:
    """What came back for one request."""

    accepted: int = 0
    reasoning: str = ""
    content: str = ""
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    ends: list[Finished | Failed] = field(default_factory=list)
    first_step: int | None = None  # the step that gave its first text
    last_step: int = 0

    @property
    def finished(self) -> Finished:
        (end,) = self.ends
        assert isinstance(end, Finished), end
        return end

    @property
    def failed(self) -> Failed:
        (end,) = self.ends
        assert isinstance(end, Failed), end
        return end


class Clock:
    """A clock that goes on by a second a look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Driver:
    """An engine, its fake, and all that it answered."""

    def __init__(self, options: FakeOptions | None = None, *, queue_limit: int = 10_000) -> None:
        self.fake = FakeExecutor(options or FakeOptions())
        clock = Clock()
        self.engine = Engine(self.fake, queue_limit=queue_limit, clock=clock)
        self.intake = Intake(self.fake, clock=clock)
        self.answers: dict[str, Answer] = {}
        self.n_steps = 0

    def submit(self, request: Generate) -> Answer:
        """Give the engine a request; its answer, which grows."""
        answer = self.answers[request.request_id] = Answer()
        generation = self.intake.generation(request)
        if isinstance(generation, Generation):
            self.engine.submit(generation)
        else:
            answer.ends.append(generation)  # it does not get to the engine
            answer.last_step = self.n_steps
        self.collect()
        return answer

    def step(self) -> None:
        """One step, checked."""
        self.n_steps += 1
        self.engine.step()
        self.check()
        self.collect()

    def check(self) -> None:
        """The books, and that the fake's cells hold what the tree says."""
        integrity.check(self.engine, deep=True)
        for sequence, tokens in self.engine.cache.running.items():
            held = self.fake.tokens_of(sequence)
            assert held == tokens[: len(held)]
            assert len(held) == self.engine.cache.ends[sequence].end
        chains = {generation.sequence for generation in self.engine.generations.values() if generation.is_open}
        assert chains == self.fake.chains.keys()

    def run(self, limit: int = 100_000) -> None:
        """Step until nothing is left."""
        while self.engine.is_busy:
            assert limit, "the engine does not come to an end"
            limit -= 1
            self.step()

    def collect(self) -> list[Event]:
        """Sort the events to their requests."""
        events = self.engine.take_events()
        for event in events:
            assert isinstance(event, Accepted | Emitted | Finished | Failed), event
            answer = self.answers[event.request_id]
            assert not answer.ends, "an event after the end"
            if isinstance(event, Accepted):
                answer.accepted += 1
            elif isinstance(event, Emitted):
                self._add(answer, event)
            else:
                answer.ends.append(event)
                answer.last_step = self.n_steps
        return events

    def _add(self, answer: Answer, event: Emitted) -> None:
        assert answer.accepted
        assert event.deltas or event.logprobs
        if answer.first_step is None:
            answer.first_step = self.n_steps
        for kind, text in event.deltas:
            if kind == "reasoning":
                answer.reasoning += text
            else:
                answer.content += text
        answer.tokens += event.tokens
        answer.logprobs += event.logprobs
        answer.kinds += event.logprob_kinds


def ask(request_id: str, text: str, **fields: object) -> Generate:
    """A request whose prompt is the text's bytes."""
    fields.setdefault("thinking", Thinking(keep_blanks=True))  # a character of text for every token
    return Generate(request_id=request_id, prompt=(Segment(text, True),), **fields)  # type: ignore[arg-type]


def alone(request: Generate, options: FakeOptions) -> Answer:
    """What a request is answered when nothing else runs."""
    driver = Driver(options)
    answer = driver.submit(request)
    driver.run()
    return answer


def seeded(seed: int) -> Sampling:
    """Sampling in which only the seed matters to the fake."""
    return Sampling(seed=seed)
