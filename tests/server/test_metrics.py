"""Every number that /metrics shows comes from the events that should move it."""

from __future__ import annotations

from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ktllama.engine.client import EngineClient
from ktllama.engine.launch import Launch
from ktllama.engine.messages import Accepted, Emitted, Failed, Finished, Stats, Usage
from ktllama.server import metrics as metrics_module
from ktllama.server.metrics import Metrics


class Clock:
    """A clock that only tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(metrics_module, "time", made)
    return made


def client() -> EngineClient:
    return EngineClient(Launch(executor="none:none"))


def values(metrics: Metrics) -> dict[str, float]:
    """Sample name, with its labels' values, → value."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.page().decode()):
        for sample in family.samples:
            labels = ",".join(cast(dict[str, Any], sample.labels).values())
            found[f"{sample.name}[{labels}]" if labels else sample.name] = sample.value
    return found


def finished(request_id: str, *, cached: int = 0, reason: Any = "stop") -> Finished:
    usage = Usage(prompt_tokens=10, cached_tokens=cached, completion_tokens=7, reasoning_tokens=4)
    return Finished(request_id=request_id, reason=reason, usage=usage, queue_seconds=0.2)


def test_a_generation_counts_its_tokens_and_times(clock: Clock) -> None:
    metrics = Metrics(client())
    metrics.began("a")
    metrics.saw(Accepted(request_id="a", prompt_tokens=10))
    clock.now += 0.4
    metrics.saw(Emitted(request_id="a", deltas=(("reasoning", "x"),), tokens=1))
    clock.now += 0.06
    metrics.saw(Emitted(request_id="a", deltas=(("content", "yz"),), tokens=2))
    metrics.saw(finished("a", cached=6))
    found = values(metrics)
    assert found["ktllama_time_to_first_token_seconds_sum"] == pytest.approx(0.4)
    assert found["ktllama_inter_token_seconds_sum"] == pytest.approx(0.06)
    assert found["ktllama_inter_token_seconds_count"] == 2
    below = {bound: found[f"ktllama_inter_token_seconds_bucket[{bound}]"] for bound in ("0.025", "0.05", "5.0", "+Inf")}
    assert below == {"0.025": 0, "0.05": 2, "5.0": 2, "+Inf": 2}
    assert found["ktllama_queue_seconds_sum"] == pytest.approx(0.2)
    assert found["ktllama_prompt_tokens_total"] == 10
    assert found["ktllama_cached_tokens_total"] == 6
    assert found["ktllama_completion_tokens_total"] == 7
    assert found["ktllama_reasoning_tokens_total"] == 4
    assert found["ktllama_generations_total[stop]"] == 1
    assert found["ktllama_prefix_cache_lookups_total[hit]"] == 1


def test_what_an_abandoned_generation_had_said_counts() -> None:
    metrics = Metrics(client())
    metrics.began("a")
    metrics.left("a")
    metrics.abandoned(finished("a", reason="cancelled"))
    nothing = Usage(prompt_tokens=10, cached_tokens=0, completion_tokens=0, reasoning_tokens=0)
    metrics.abandoned(Finished(request_id="b", reason="cancelled", usage=nothing))  # it had waited in the queue
    found = values(metrics)
    assert found["ktllama_generations_total[left]"] == 1
    assert "ktllama_generations_total[cancelled]" not in found
    assert found["ktllama_prompt_tokens_total"] == 10
    assert found["ktllama_completion_tokens_total"] == 7
    assert found["ktllama_reasoning_tokens_total"] == 4


def test_every_end_is_counted_once() -> None:
    metrics = Metrics(client())
    for request_id in "abcd":
        metrics.began(request_id)
    metrics.saw(finished("a", reason="length"))
    metrics.saw(Failed(request_id="b", code="engine_died", message=""))
    metrics.left("c")
    metrics.left("a")  # it had ended: the caller closes what it has read to the end, too
    found = values(metrics)
    assert {name: value for name, value in found.items() if name.startswith("ktllama_generations")} == {
        "ktllama_generations_total[length]": 1,
        "ktllama_generations_total[engine_died]": 1,
        "ktllama_generations_total[left]": 1,
    }
    assert found["ktllama_prefix_cache_lookups_total[miss]"] == 1
    assert list(metrics._running) == ["d"]


def test_requests_are_counted_by_route_and_status() -> None:
    metrics = Metrics(client())
    metrics.answered("/v1/models", 200, 0.01)
    metrics.answered("/v1/models", 401, 0.01)
    metrics.answered("other", 404, 2.0)
    found = values(metrics)
    assert found["ktllama_requests_total[/v1/models,200]"] == 1
    assert found["ktllama_requests_total[/v1/models,401]"] == 1
    assert found["ktllama_requests_total[other,404]"] == 1
    assert found["ktllama_request_seconds_sum[other]"] == pytest.approx(2.0)


def test_the_engine_is_shown_as_it_stands() -> None:
    engine = client()
    engine.state, engine.load_fraction, engine.restarts = "ready", 1.0, 3
    engine.last_stats = Stats(
        request_id=None, queued=2, running=4, cells_total=100, cells_running=30, cells_cached=50, steps=9,
        prompt_tokens=0, cached_tokens=0, generated_tokens=0, reasoning_tokens=0, step_seconds=1.5,
        scheduling_seconds=0.25, evictions=6, preemptions=7, parked_bytes=4096,
    )  # fmt: skip
    found = values(Metrics(engine))
    assert found["ktllama_engine_state[ready]"] == 1
    assert found["ktllama_engine_state[restarting]"] == 0
    assert found["ktllama_engine_restarts_total"] == 3
    assert found["ktllama_queued_requests"] == 2
    assert found["ktllama_running_requests"] == 4
    assert [found[f"ktllama_kv_cells[{state}]"] for state in ("running", "cached", "free")] == [30, 50, 20]
    assert found["ktllama_parked_bytes"] == 4096
    assert found["ktllama_engine_steps_total"] == 9
    assert found["ktllama_engine_prefix_cache_evictions_total"] == 6
    assert found["process_resident_memory_bytes"] > 1e6


def test_an_engine_that_is_gone_has_no_cells() -> None:
    engine = client()
    engine.last_stats = None
    found = values(Metrics(engine))
    assert found["ktllama_engine_state[stopped]"] == 1
    assert not [name for name in found if name.startswith("ktllama_kv_cells")]


def test_two_servers_in_a_process_do_not_share_numbers() -> None:
    one, other = Metrics(client()), Metrics(client())
    one.answered("/x", 200, 0.1)
    assert "ktllama_requests_total[/x,200]" not in values(other)
