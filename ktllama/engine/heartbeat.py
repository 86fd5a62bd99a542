"""Whether an engine process is well: it may be stopped, or stuck in a step, without being dead.

The API process pings the engine's receiver thread, which answers whatever the other threads do, and says how long
they have been at what they do. So three things can be told apart: a process that says nothing (stopped, swapped out,
without a turn), one that is stuck in a step (a device that hangs) or over a request that it reads, and one that is
merely slow.

Time is counted in beats rather than read from a clock: where it is the API process that was stopped, or this machine
that slept, no beats passed, and the engine is not blamed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Finding = Literal["well", "unresponsive", "hung"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """How patient the API process is with an engine process; all in seconds.

    It is `unresponsive` once nothing has come from it for `silent_seconds`, or a step, or the reading of a request, has
    taken `step_seconds`: a step of the largest models, with weights streamed over PCIe, takes tens of seconds. One that
    has been so for `hung_seconds` is ended and started anew; None: never. It is judged from its first word on: a Python
    process on a busy machine may need long for that.
    """

    beat_seconds: float = 1.0
    silent_seconds: float = 20.0
    step_seconds: float = 300.0
    hung_seconds: float | None = 900.0

    def __post_init__(self) -> None:
        if not 0 < self.beat_seconds <= min(self.silent_seconds, self.step_seconds):
            raise ValueError("a heartbeat needs 0 < beat_seconds <= silent_seconds and step_seconds")
        if self.hung_seconds is not None and self.hung_seconds <= 0:
            raise ValueError("a heartbeat needs hung_seconds above 0, or None")


class Occupied:
    """How long a thread has been at one thing: written by that thread, read by the receiver."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None

    def begin(self) -> None:
        """It turns to another thing now."""
        self._since = self._clock()

    def end(self) -> None:
        """It waits for something to do."""
        self._since = None

    @property
    def seconds(self) -> float:
        """How long it has been at it; 0 while it waits."""
        since = self._since
        return 0.0 if since is None else self._clock() - since


class Pulse:
    """One engine process, beat by beat."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._heard = False
        self._began = False
        self._step_seconds = 0.0
        self._reading_seconds = 0.0
        self._unwell_seconds = 0.0
        #: How long nothing was heard of the process.
        self.silent_seconds = 0.0

    def heard(self) -> None:
        """Something came from the process."""
        self._heard = self._began = True

    def told(self, *, step_seconds: float, reading_seconds: float) -> None:
        """The process said how long its step has taken so far, and how long it has read the request that it reads."""
        self.heard()
        self._step_seconds, self._reading_seconds = step_seconds, reading_seconds

    def beat(self) -> Finding:
        """Another `beat_seconds` have passed: how the process is."""
        heartbeat = self._heartbeat
        if not self._began:
            return "well"
        self.silent_seconds = 0.0 if self._heard else self.silent_seconds + heartbeat.beat_seconds
        self._heard = False
        occupied_seconds = max(self._step_seconds, self._reading_seconds)
        if self.silent_seconds < heartbeat.silent_seconds and occupied_seconds < heartbeat.step_seconds:
            self._unwell_seconds = 0.0
            return "well"
        if heartbeat.hung_seconds is not None and self._unwell_seconds >= heartbeat.hung_seconds:
            return "hung"
        self._unwell_seconds += heartbeat.beat_seconds
        return "unresponsive"

    @property
    def complaint(self) -> str:
        """What is wrong, in one clause; for a pulse that is not well."""
        if self.silent_seconds >= self._heartbeat.silent_seconds:
            return f"it has said nothing for {self.silent_seconds:.0f} s"
        if self._reading_seconds > self._step_seconds:
            return f"a request has been read for {self._reading_seconds:.0f} s"
        return f"one step has taken {self._step_seconds:.0f} s"
