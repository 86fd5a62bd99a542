"""/health, /metrics, /props and /v1/models through the whole application, in every state of the engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ktllama.engine.client import EngineClient, State
from ktllama.engine.launch import Launch
from ktllama.server.access import Keys
from ktllama.server.app import create_app
from ktllama.server.limits import Limits
from ktllama.server.metrics import Metrics
from ktllama.server.settings import ServeSettings
from ktllama.server.state import EndpointSettings, ServerState
from ktllama.server.surroundings import Surroundings, surrounded
from tests.engine.fake_executor import FakeExecutor, FakeOptions
from tests.server.asgi import Answer, call, scope_of

MODEL = FakeExecutor(FakeOptions(name="tiny", n_ctx=512)).model


def client_in(state: State) -> EngineClient:
    client = EngineClient(Launch(executor="none:none"))
    client.state = state
    if state in ("ready", "draining"):
        client.model, client.load_fraction = MODEL, 1.0
    if state == "loading":
        client.load_fraction = 0.25
    if state in ("restarting", "failed"):
        client.restarts, client.failure = 2, "the engine ended by SIGKILL"
    return client


def asked(
    path: str,
    state: State = "ready",
    *,
    around: Surroundings | None = None,
    settings: EndpointSettings | None = None,
    headers: tuple[tuple[str, str], ...] = (),
    method: str = "GET",
) -> Answer:
    client = client_in(state)
    metrics = Metrics(client)
    made = ServerState(client=client, settings=settings or EndpointSettings(), observer=metrics, started=5)
    app = surrounded(create_app(made), around or Surroundings(), metrics)
    return asyncio.run(call(app, scope_of(path, method, [("host", "localhost:8080"), *headers])))


def said(answer: Answer) -> Any:
    return json.loads(answer.body)


@pytest.mark.parametrize(
    ("state", "status", "body"),
    [
        ("starting", 503, {"status": "starting", "restarts": 0, "progress": 0.0}),
        ("loading", 503, {"status": "loading", "restarts": 0, "progress": 0.25}),
        ("ready", 200, {"status": "ok", "restarts": 0}),
        ("unresponsive", 503, {"status": "unresponsive", "restarts": 0, "complaint": "one step has taken 0 s"}),
        ("restarting", 503, {"status": "restarting", "restarts": 2, "progress": 0.0, "failure": "the engine ended by SIGKILL"}),
        ("draining", 503, {"status": "draining", "restarts": 0}),
        ("failed", 503, {"status": "failed", "restarts": 2, "failure": "the engine ended by SIGKILL"}),
        ("stopped", 503, {"status": "stopped", "restarts": 0}),
    ],
)  # fmt: skip
def test_health_tells_the_truth(state: State, status: int, body: dict[str, object]) -> None:
    answer = asked("/health", state)
    assert (answer.status, said(answer)) == (status, body)
    assert ("retry-after" in answer.headers) is (
        state in ("starting", "loading", "unresponsive", "restarting", "draining")
    )


def test_health_needs_no_key_and_then_says_less() -> None:
    answer = asked("/health", "failed", around=Surroundings(keys=Keys(["k"])))
    assert said(answer) == {"status": "failed", "restarts": 2}
    assert asked("/props", around=Surroundings(keys=Keys(["k"]))).status == 401


def test_the_models_are_a_list_of_one() -> None:
    entry = {
        "id": "tiny", "object": "model", "created": 5, "owned_by": "ktllama",
        "meta": {
            "architecture": "fake", "n_ctx": 512, "n_ctx_train": 512, "n_parallel": 8, "n_ubatch": 64,
            "vocab_size": MODEL.vocab_size, "can_embed": True, "can_share_prefix": True, "load_seconds": 0.0,
        },
    }  # fmt: skip
    assert said(asked("/v1/models")) == {"object": "list", "data": [entry]}
    assert said(asked("/v1/models/tiny")) == entry
    assert said(asked("/v1/models/deepseek-reasoner"))["id"] == "tiny"


def test_an_alias_with_a_slash_is_the_models_name() -> None:
    settings = EndpointSettings(model_alias="me/my-model")
    assert said(asked("/v1/models", settings=settings))["data"][0]["id"] == "me/my-model"
    for name in ("me/my-model", "tiny", "deepseek-chat"):
        assert said(asked(f"/v1/models/{name}", settings=settings))["id"] == "me/my-model"
    assert asked("/v1/models/my-model", settings=settings).status == 404


def test_another_model_is_404_by_name() -> None:
    answer = asked("/v1/models/gpt-9")
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert "gpt-9" in said(answer)["error"]["message"]


def test_models_wait_for_the_load() -> None:
    answer = asked("/v1/models", "loading")
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "model_loading", "5")


def test_props_shows_plan_devices_build_profile_and_settings_without_secrets() -> None:
    shown = ServeSettings(api_key_file="/etc/keys", model="/models/x.gguf").public()
    props = said(asked("/props", around=Surroundings(shown=shown)))
    assert (props["plan"], props["devices"], props["build"]) == (["CPU: everything"], ["CPU"], "fake")
    assert props["model"]["name"] == "tiny"
    assert props["profile"]["name"].startswith("deepseek-r1")
    assert props["settings"]["api_key"] is True
    assert "/etc/keys" not in json.dumps(props)
    assert "/models" not in json.dumps(props)


def test_props_says_what_it_knows_while_it_loads() -> None:
    props = said(asked("/props", "loading"))
    assert (props["state"], props["progress"], props["model"], props["plan"]) == ("loading", 0.25, None, [])


def test_metrics_are_prometheus_text() -> None:
    answer = asked("/metrics", "loading")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert b'ktllama_engine_state{state="loading"} 1.0' in answer.body


def test_an_engine_that_does_not_answer_is_503_with_the_reason() -> None:
    answer = asked("/v1/models", "unresponsive")
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "engine_unresponsive", "5")
    assert said(answer)["error"]["message"] == "the engine does not answer: one step has taken 0 s"
    assert b'ktllama_engine_state{state="unresponsive"} 1.0' in asked("/metrics", "unresponsive").body
    assert said(asked("/props", "unresponsive"))["failure"] == "one step has taken 0 s"


def test_a_foreign_host_is_refused_only_on_loopback() -> None:
    foreign = (("host", "evil.example"),)
    headers = (("origin", "http://evil.example"),)
    client = client_in("ready")
    made = ServerState(client=client)
    for names, status in (((), 403), (None, 200), (("evil.example",), 200)):
        app = surrounded(create_app(made), Surroundings(loopback_names=names))
        assert asyncio.run(call(app, scope_of("/health", headers=[*foreign, *headers]))).status == status


def test_pages_of_other_origins_may_ask_only_where_allowed() -> None:
    headers = (("origin", "https://chat.example"), ("access-control-request-method", "POST"))
    off = asked("/v1/chat/completions", method="OPTIONS", headers=headers)
    assert off.status == 405
    assert "access-control-allow-origin" not in off.headers
    around = Surroundings(cors_origins=("https://chat.example",), keys=Keys(["k"]))
    on = asked("/v1/chat/completions", method="OPTIONS", headers=headers, around=around)
    assert (on.status, on.headers["access-control-allow-origin"]) == (200, "https://chat.example")
    other = (("origin", "https://other.example"), ("access-control-request-method", "POST"))
    assert asked("/v1/chat/completions", method="OPTIONS", headers=other, around=around).status == 400
    refused = asked("/v1/models", headers=headers[:1], around=around)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://chat.example")


def test_a_body_is_limited_before_its_key_is_not() -> None:
    around = Surroundings(keys=Keys(["k"]), limits=Limits(body_bytes=10))
    large = (("content-length", "11"),)
    assert asked("/v1/chat/completions", method="POST", headers=large, around=around).status == 401
    keyed = (*large, ("authorization", "Bearer k"))
    assert asked("/v1/chat/completions", method="POST", headers=keyed, around=around).status == 413
