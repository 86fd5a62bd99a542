"""What the engine has to tell, until it is taken: events in their order, and text, gathered by generation."""

from __future__ import annotations

from collections.abc import Callable

from ktllama.engine.generation import Generation
from ktllama.engine.messages import Emitted, Event
from ktllama.r1.delta import merged


class Outgoing:
    """Events out. Text that a generation goes on saying may wait, so that fewer events carry more of it.

    An event costs its sender, the process between and the client tens of microseconds each, whatever is in it. Where
    a token takes less than a few milliseconds that is a good part of all work, and nobody reads so fast.
    """

    def __init__(self, clock: Callable[[], float], text_interval: float) -> None:
        """`text_interval` is how many seconds text may wait for more; 0 for not at all."""
        self._clock = clock
        self._text_interval = text_interval
        self._events: list[Event] = []
        self._speaking: dict[Generation, None] = {}  # with text that is in no event yet
        self._urgent = False
        self._taken_at = clock()

    def add(self, event: Event) -> None:
        """An event; it goes with the next that are taken."""
        self._events.append(event)

    def speak(self, generation: Generation) -> None:
        """A generation has said something. Its first words do not wait."""
        self._speaking[generation] = None
        if not generation.has_spoken:
            generation.has_spoken = self._urgent = True

    def end(self, generation: Generation) -> None:
        """A generation says nothing more: put what it has said into an event, in front of those that are added now."""
        self._speaking.pop(generation, None)
        self._put_text(generation)

    def may_wait(self) -> bool:
        """Whether there is nothing but more text, so soon after what was taken last that it may wait."""
        if not self._text_interval or self._events or self._urgent:
            return False
        return self._clock() - self._taken_at < self._text_interval

    def take(self) -> list[Event]:
        """What there is, each generation's text in one event."""
        for generation in self._speaking:
            self._put_text(generation)
        self._speaking.clear()
        events, self._events = self._events, []
        if self._text_interval and events:
            self._urgent = False
            self._taken_at = self._clock()
        return events

    def _put_text(self, generation: Generation) -> None:
        if not generation.deltas and not generation.logprobs:
            return
        deltas = generation.deltas if len(generation.deltas) == 1 else merged(generation.deltas)
        self._events.append(
            Emitted(
                request_id=generation.request.request_id,
                deltas=tuple(deltas),
                tokens=generation.n_unsent,
                logprobs=tuple(generation.logprobs),
                logprob_kinds=tuple(generation.logprob_kinds),
            )
        )
        generation.deltas = []
        generation.logprobs = []
        generation.logprob_kinds = []
        generation.n_unsent = 0
