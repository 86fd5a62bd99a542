from __future__ import annotations

from ktllama.engine.core import Engine
from ktllama.engine.generation import Generation
from ktllama.engine.intake import Intake
from ktllama.engine.messages import Emitted, Event, Failed, Finished, Generate, Segment
from tests.engine.fake_executor import FakeExecutor, FakeOptions

INTERVAL = 5.0


class Told:
    """An engine whose clock stands still until it is moved."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self.now = 100.0
        self.fake = FakeExecutor(FakeOptions(end_chance=0, n_ubatch=8))
        self.engine = Engine(self.fake, queue_limit=10, text_interval=interval, clock=lambda: self.now)

    def submit(self, name: str, text: str = "q", max_tokens: int = 100) -> None:
        request = Generate(request_id=name, prompt=(Segment(text, False),), max_tokens=max_tokens, raw=True)
        generation = Intake(self.fake, clock=lambda: self.now).generation(request)
        assert isinstance(generation, Generation)
        self.engine.submit(generation)

    def step(self, seconds: float = 1.0) -> list[tuple[str, int]]:
        self.engine.step()
        self.now += seconds
        return texts(self.engine.take_events())


def texts(events: list[Event]) -> list[tuple[str, int]]:
    """Who said how many tokens."""
    assert not [event for event in events if isinstance(event, Failed)]
    return [(event.request_id, event.tokens) for event in events if isinstance(event, Emitted)]


def test_text_waits_for_more_but_no_longer_than_the_interval() -> None:
    told = Told()
    told.submit("a")
    assert told.step() == [("a", 1)]  # the first words do not wait
    assert [told.step() for _ in range(10)] == [[], [], [], [], [("a", 5)], [], [], [], [], [("a", 5)]]


def test_without_an_interval_every_token_leaves_at_once() -> None:
    told = Told(interval=0.0)
    told.submit("a")
    assert [told.step(0.0) for _ in range(5)] == [[("a", 1)]] * 5


def test_steps_longer_than_the_interval_leave_nothing_waiting() -> None:
    told = Told()
    told.submit("a")
    assert [told.step(INTERVAL) for _ in range(4)] == [[("a", 1)]] * 4


def test_the_end_of_an_answer_takes_all_text_along() -> None:
    told = Told()
    told.submit("a", max_tokens=3)
    told.submit("b")
    assert sorted(told.step()) == [("a", 1), ("b", 1)]
    assert told.step() == []
    told.engine.step()
    events = told.engine.take_events()
    assert sorted(texts(events)) == [("a", 2), ("b", 2)]
    (end,) = [event for event in events if isinstance(event, Finished)]
    assert events.index(end) > next(place for place, event in enumerate(events) if event.request_id == "a")  # type: ignore[union-attr]


def test_what_a_prompt_would_hold_up_does_not_wait() -> None:
    told = Told()
    told.submit("a")
    told.step()
    assert told.step() == []
    told.submit("long", text="a prompt of several steps " * 2)
    assert texts(told.engine.take_events()) == [("a", 1)]  # with the answer that it is accepted
    assert [told.step() for _ in range(3)] == [[("a", 1)]] * 3
    while len(said := told.step()) == 1:
        assert said == [("a", 1)]
    assert sorted(said) == [("a", 1), ("long", 1)]
    assert told.step() == []


def test_text_can_be_asked_for_at_once() -> None:
    told = Told()
    told.submit("a")
    told.step()
    assert told.step() == []
    assert texts(told.engine.take_events(at_once=True)) == [("a", 1)]
