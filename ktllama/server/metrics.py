"""What Prometheus sees: counts and times of requests, and where the engine stands when it is asked."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ktllama.engine.client import State
from ktllama.engine.messages import Accepted, Emitted, Failed, Finished

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from ktllama.engine.client import EngineClient

CONTENT_TYPE = CONTENT_TYPE_LATEST
_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)
_REQUEST_SECONDS = (0.005, 0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class _Running:
    """What is known of one generation before its end."""

    __slots__ = ("began", "last")

    def __init__(self, began: float) -> None:
        self.began = began
        self.last: float | None = None


class Metrics:
    """The observer of all generations (`state.Observer`) and the counter of all requests (`logs.RequestCounter`)."""

    def __init__(self, client: EngineClient) -> None:
        self.registry = CollectorRegistry()
        self._running: dict[str, _Running] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace="ktllama", registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, namespace="ktllama", registry=self.registry, buckets=buckets)

        self._requests = counter("requests", "Requests by route and status.", "path", "status")
        self._seconds = histogram("request_seconds", "From head to end of answer.", _REQUEST_SECONDS, "path")
        self._generations = counter("generations", "By end: finish reason, failure's code, or left.", "outcome")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._cached = counter("cached_tokens", "Tokens of prompts that the prefix cache had.")
        self._completion = counter("completion_tokens", "Generated tokens, thinking included.")
        self._reasoning = counter("reasoning_tokens", "Generated tokens of thinking.")
        self._lookups = counter("prefix_cache_lookups", "Prompts by whether the cache had a prefix.", "result")
        self._first = histogram("time_to_first_token_seconds", "From start to first text.", _FIRST_TOKEN_SECONDS)
        self._between = _TokenTimes()
        self._queued = histogram("queue_seconds", "Time in the queue.", _FIRST_TOKEN_SECONDS)
        self.registry.register(self._between)
        self.registry.register(_EngineState(client))
        ProcessCollector(registry=self.registry)

    # ── the observer of generations ──────────────────────────────────────────────────────────────────────────────

    def began(self, request_id: str) -> None:
        """A Generate was sent."""
        self._running[request_id] = _Running(time.monotonic())

    def saw(self, event: Accepted | Emitted | Finished | Failed) -> None:
        """Count an event."""
        if isinstance(event, Emitted):
            self._emitted(event)
        elif isinstance(event, Finished):
            self._running.pop(event.request_id, None)
            self._finished(event)
        elif isinstance(event, Failed):
            self._running.pop(event.request_id, None)
            self._generations.labels(event.code).inc()

    def left(self, request_id: str) -> None:
        """Given up before its end."""
        if self._running.pop(request_id, None) is not None:
            self._generations.labels("left").inc()

    def abandoned(self, event: Finished) -> None:
        """The engine has heard that it was given up: what it had said until then counts all the same."""
        if event.usage.completion_tokens:
            self._count_tokens(event)

    def _emitted(self, event: Emitted) -> None:
        running = self._running.get(event.request_id)
        if running is None:
            return
        now = time.monotonic()
        if running.last is None:
            self._first.observe(now - running.began)
        elif event.tokens:
            self._between.add(now - running.last, event.tokens)
        running.last = now

    def _finished(self, event: Finished) -> None:
        self._generations.labels(event.reason).inc()
        self._count_tokens(event)

    def _count_tokens(self, event: Finished) -> None:
        usage = event.usage
        self._prompt.inc(usage.prompt_tokens)
        self._cached.inc(usage.cached_tokens)
        self._completion.inc(usage.completion_tokens)
        self._reasoning.inc(usage.reasoning_tokens)
        self._lookups.labels("hit" if usage.cached_tokens else "miss").inc()
        self._queued.observe(event.queue_seconds)

    # ── the counter of requests ──────────────────────────────────────────────────────────────────────────────────

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request ended."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(_WithoutTimes(self.registry))


class _WithoutTimes(CollectorRegistry):
    """Another registry's metrics without the time at which each was made, which doubles the page and tells nothing."""

    def __init__(self, inner: CollectorRegistry) -> None:
        super().__init__()
        self._inner = inner

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        for metric in self._inner.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _TokenTimes(Collector):
    """Seconds between tokens, as a histogram that a token costs a fraction of what the library's own costs."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_TOKEN_SECONDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float, n_tokens: int) -> None:
        """Count tokens that came together, ``seconds`` after those before them."""
        self._counts[bisect.bisect_left(_TOKEN_SECONDS, seconds / n_tokens)] += n_tokens
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        """The metric."""
        bounds = [*map(floatToGoString, _TOKEN_SECONDS), "+Inf"]
        buckets = list(zip(bounds, map(float, itertools.accumulate(self._counts)), strict=True))
        name, text = "ktllama_inter_token_seconds", "Between tokens of one generation."
        yield HistogramMetricFamily(name, text, buckets=buckets, sum_value=self._sum)


class _EngineState(Collector):
    """The engine as it stands at the moment of a scrape."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    def collect(self) -> Iterator[Metric]:
        """The metrics; those of the scheduler only once it has reported."""
        client = self._client
        state = GaugeMetricFamily("ktllama_engine_state", "1 for the engine's state.", labels=("state",))
        for name in get_args(State):
            state.add_metric((name,), float(client.state == name))
        yield state
        yield GaugeMetricFamily("ktllama_load_ratio", "Share of the model that is loaded.", client.load_fraction)
        yield CounterMetricFamily("ktllama_engine_restarts", "Deaths of the engine process.", client.restarts)
        yield from self._of_scheduler()

    def _of_scheduler(self) -> Iterator[Metric]:
        stats = self._client.last_stats
        if stats is None or self._client.state not in ("ready", "draining"):
            return
        yield GaugeMetricFamily("ktllama_queued_requests", "Generations that wait.", stats.queued)
        yield GaugeMetricFamily("ktllama_running_requests", "Generations that run.", stats.running)
        cells = GaugeMetricFamily("ktllama_kv_cells", "Cells of the context by what they hold.", labels=("state",))
        cells.add_metric(("running",), stats.cells_running)
        cells.add_metric(("cached",), stats.cells_cached)
        cells.add_metric(("free",), stats.cells_total - stats.cells_running - stats.cells_cached)
        yield cells
        text = "Main memory of cached prompts that were copied out of the context."
        yield GaugeMetricFamily("ktllama_parked_bytes", text, stats.parked_bytes)
        for name, text, value in (
            ("steps", "Batches computed by this engine process.", stats.steps),
            ("step_seconds", "Time in those batches.", stats.step_seconds),
            ("scheduling_seconds", "Time between them in which work was waiting.", stats.scheduling_seconds),
            ("prefix_cache_evictions", "Cached sequences given up for room.", stats.evictions),
            ("preemptions", "Generations put back into the queue for room.", stats.preemptions),
        ):
            yield CounterMetricFamily(f"ktllama_engine_{name}", text, value)
