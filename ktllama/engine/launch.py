"""What it takes to start an engine process, and when to start it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ktllama.engine.heartbeat import Heartbeat
from ktllama.engine.messages import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait before the process is started again: doubling, bounded, short again after a good run."""

    first_seconds: float = 0.5
    longest_seconds: float = 30.0
    healthy_seconds: float = 60.0  # a process that was ready this long died of something new

    def __post_init__(self) -> None:
        if not 0 < self.first_seconds <= self.longest_seconds:
            raise ValueError("a back-off needs 0 < first_seconds <= longest_seconds")

    def delay(self, failures: int) -> float:
        """Seconds to wait after the n-th death in a row (from 1)."""
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(failures - 1, 30))


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """An engine process. `executor` is "module:function" or "path/to/file.py:function", an ExecutorFactory.

    `options` goes to that function and must be JSON-able. `env` is added to this process's environment.
    `queue_limit` is how many requests may wait; one more is refused with `queue_full`. `text_interval` is how many
    seconds a running request's text may wait for more of it, so that fewer events carry it.
    """

    executor: str
    options: Mapping[str, object] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    queue_limit: int = 256
    text_interval: float = 0.0
    backoff: Backoff = Backoff()
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    def load(self) -> Load:
        """The first message to the process."""
        return Load(
            executor=self.executor,
            options=dict(self.options),
            queue_limit=self.queue_limit,
            text_interval=self.text_interval,
        )
