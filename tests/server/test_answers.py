"""Answers in OpenAI's and DeepSeek's shapes, from a scripted engine."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

from ktllama.engine.answer_stream import Answer
from ktllama.engine.client import EngineClient
from ktllama.engine.errors import EngineRequestError
from ktllama.engine.launch import Launch
from ktllama.engine.messages import Accepted, Embedded, Failed, Generate, Tokenized
from ktllama.server.app import create_app
from ktllama.server.protocol.answers import ChatCompletion, ErrorAnswer
from ktllama.server.state import BodyLimits, EndpointSettings, ServerState
from ktllama.server.tokens import with_pieces
from tests.server.recording import RecordingClient, ask, events

BODY = {"messages": [{"role": "user", "content": "hi"}]}
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
    "prompt_cache_hit_tokens": 2,
    "prompt_cache_miss_tokens": 3,
}


def test_a_whole_answer() -> None:
    response, _ = ask(BODY)

    made = response.json()
    ChatCompletion.model_validate(made)
    head = {name: made.pop(name) for name in ("id", "created", "system_fingerprint")}
    assert head["id"].startswith("chatcmpl-")
    assert head["system_fingerprint"].startswith("fp_")
    assert made == {
        "object": "chat.completion",
        "model": "recorded",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


def test_a_stream_as_deepseeks_loop_reads_it() -> None:
    response, _ = ask({**BODY, "stream": True, "stream_options": {"include_usage": True}})

    *chunks, done = events(response)
    read = [json.loads(chunk) for chunk in chunks]
    assert done == "[DONE]"
    assert [chunk["choices"] for chunk in read] == [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}] if delta is not None else []
        for delta, reason in (
            ({"role": "assistant", "content": "", "reasoning_content": None}, None),
            ({"content": None, "reasoning_content": "hm"}, None),
            ({"content": "yes", "reasoning_content": None}, None),
            ({"content": "", "reasoning_content": None}, "stop"),
            (None, None),
        )
    ]
    assert [chunk["usage"] for chunk in read] == [None, None, None, None, USAGE]
    assert {chunk["object"] for chunk in read} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in read}) == 1


def test_chunks_of_a_tool_call_have_the_fields_that_deepseeks_loop_reads() -> None:
    call = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    tools = [{"type": "function", "function": {"name": "look"}}]
    client = RecordingClient([("reasoning", "hm"), ("content", call)])
    response, _ = ask({**BODY, "stream": True, "tools": tools}, client=client)

    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in events(response)[:-1]]
    assert any("tool_calls" in delta for delta in deltas)
    assert all({"content", "reasoning_content"} <= delta.keys() for delta in deltas)


def test_words_that_end_the_thinking_must_not_hold_its_tags() -> None:
    response, client = ask({**BODY, "reasoning_budget": 3, "reasoning_budget_message": "a</think>b"})

    assert (response.status_code, response.json()["error"]["param"]) == (400, "reasoning_budget_message")
    assert client.asked == []


def test_without_reasoning_no_chunk_speaks_of_it() -> None:
    client = RecordingClient([("content", "<think>\nhm</think>yes")])
    streamed, _ = ask({**BODY, "stream": True, "reasoning_format": "none"}, client=client)
    whole, _ = ask({**BODY, "reasoning_format": "none"}, client=client)

    assert "reasoning_content" not in streamed.text
    assert "reasoning_content" not in whole.json()["choices"][0]["message"]


def test_logprobs_are_openais_with_the_thinkings_apart() -> None:
    response, _ = ask({**BODY, "logprobs": True, "top_logprobs": 1})

    top = {"token": "a", "logprob": -1.0, "bytes": [97]}
    assert response.json()["choices"][0]["logprobs"] == {
        "content": [{"token": "yes", "logprob": -0.25, "bytes": [121, 101, 115], "top_logprobs": [top]}],
        "reasoning_content": [{"token": "hm", "logprob": -0.25, "bytes": [104, 109], "top_logprobs": [top]}],
    }


def test_legacy_logprobs_count_characters() -> None:
    client = RecordingClient([("content", "é"), ("content", "b")])
    response, _ = ask({"prompt": "x", "logprobs": 1}, "/v1/completions", client=client)

    assert response.json()["choices"][0]["logprobs"] == {
        "tokens": ["é", "b"],
        "token_logprobs": [-0.25, -0.25],
        "top_logprobs": [{"a": -1.0}, {"a": -1.0}],
        "text_offset": [0, 1],
    }


def test_an_answer_that_repeats_itself_says_so() -> None:
    client = RecordingClient(reason="length", repetition=True)
    whole, _ = ask(BODY, client=client)
    streamed, _ = ask({**BODY, "stream": True}, client=client)

    assert whole.json()["choices"][0]["finish_reason"] == "length"
    assert whole.json()["choices"][0]["ktllama"] == {"repetition": True}
    assert json.loads(events(streamed)[-2])["choices"][0]["ktllama"] == {"repetition": True}


def test_the_stop_text_that_matched_is_told() -> None:
    response, _ = ask(BODY, client=RecordingClient(stop="END"))

    assert response.json()["choices"][0]["ktllama"] == {"stop": "END"}


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ([], {"role": "assistant", "content": "", "reasoning_content": None}),
        ([("reasoning", "cut")], {"role": "assistant", "content": None, "reasoning_content": "cut"}),
        ([("content", "a")], {"role": "assistant", "content": "a", "reasoning_content": None}),
    ],
)
def test_a_side_without_text_is_null(says: Any, message: dict[str, Any]) -> None:
    response, _ = ask(BODY, client=RecordingClient(says))

    assert response.json()["choices"][0]["message"] == message


class FailingClient(RecordingClient):
    """Fails every generation, before anything or after a word."""

    def __init__(self, code: str, *, late: bool = False, **fields: Any) -> None:
        super().__init__()
        self.refusal = (code, fields, late)

    async def script(self, request: Any) -> Any:
        code, fields, late = self.refusal
        self.asked.append(request)
        if late:
            events = super().script(request)
            yield await anext(events)
            yield await anext(events)
            await events.aclose()
        yield Failed(request_id=request.request_id, code=code, message=f"because {code}", fields=fields)

    async def embed(self, prompts: Sequence[Sequence[int] | str]) -> Embedded:
        code, fields, _ = self.refusal
        raise EngineRequestError(code, f"because {code}", fields)


@pytest.mark.parametrize(
    ("code", "fields", "status", "kind", "retry_after"),
    [
        ("invalid_grammar", {}, 400, "invalid_request_error", None),
        ("invalid_sampling", {"field": "top_k"}, 400, "invalid_request_error", None),
        ("queue_full", {"queued": 9, "retry_after": 3}, 429, "rate_limit_error", "3"),
        ("engine_died", {"retry_after": 0.2}, 503, "service_unavailable_error", "1"),
        ("draining", {}, 503, "service_unavailable_error", "2"),
        ("engine_error", {}, 500, "server_error", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_openais_envelope_with_its_status(
    code: str, fields: dict[str, Any], status: int, kind: str, retry_after: str | None, stream: bool
) -> None:
    response, _ = ask({**BODY, "stream": stream}, client=FailingClient(code, **fields))

    ErrorAnswer.model_validate(response.json())
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    assert response.json()["error"] == {
        "message": f"because {code}",
        "type": kind,
        "param": fields.get("field"),
        "code": code,
    }


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/chat/completions", BODY, "messages"),
        ("/beta/chat/completions", {**BODY, "stream": True}, "messages"),
        ("/v1/completions", {"prompt": "Hi"}, "prompt"),
        ("/completions", {"prompt": "Hi", "stream": True}, "prompt"),
        ("/v1/embeddings", {"input": "Hi"}, "input"),
    ],
)
def test_a_prompt_beyond_the_context_tells_both_numbers_and_its_field(path: str, body: Any, field: str) -> None:
    client = FailingClient("context_length_exceeded", n_ctx=100, prompt_tokens=120, max_tokens=0)
    response, _ = ask(body, path, client=client)

    assert (response.status_code, response.json()["error"]) == (400, {
        "message": "this model's context is 100 tokens, but the prompt has 120 tokens; shorten it or start the server with a larger --ctx",
        "type": "invalid_request_error",
        "param": field,
        "code": "context_length_exceeded",
    })  # fmt: skip


def test_a_prompt_that_was_not_counted_has_at_least_so_many_tokens() -> None:
    client = FailingClient("context_length_exceeded", n_ctx=100, prompt_tokens=120, max_tokens=0, at_least=1)
    response, _ = ask(BODY, client=client)

    assert "but the prompt has at least 120 tokens;" in response.json()["error"]["message"]


def test_a_failure_within_a_stream_is_an_event_and_the_end() -> None:
    response, _ = ask({**BODY, "stream": True}, client=FailingClient("engine_died", late=True))

    found = events(response)
    assert json.loads(found[-1])["error"]["code"] == "engine_died"
    assert json.loads(found[-2])["choices"][0]["delta"]["reasoning_content"] == "hm"
    assert "[DONE]" not in found


def test_one_choice_that_fails_ends_all() -> None:
    class Third(FailingClient):
        async def script(self, request: Any) -> Any:
            made = super().script(request) if request.request_id.endswith("-2") else None
            async for event in made or RecordingClient.script(self, request):
                yield event

    failing = Third("engine_error", late=True)
    response, _ = ask({**BODY, "n": 4}, client=failing)

    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_error")
    assert len(failing.closed) >= 3


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [("loading", 503, "model_loading"), ("restarting", 503, "engine_died"), ("draining", 503, "draining")],
)
def test_without_a_model_the_server_says_why(state: Any, status: int, code: str) -> None:
    client = RecordingClient()
    client.state = state
    response, _ = ask(BODY, client=client)

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_what_is_asked_of_the_engine_at_once_waits_for_the_model_too(path: str) -> None:
    client = EngineClient(Launch(executor="none:none"))
    client.state = "loading"
    app = create_app(ServerState(client=client))
    body = {"content": "a"} if path == "/tokenize" else {"tokens": [1]}
    response = TestClient(app).post(path, json=body)

    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
    assert response.headers["retry-after"] == "5"


def test_a_text_that_is_only_tokenized_has_its_limit_too() -> None:
    settings = EndpointSettings(limits=BodyLimits(text_bytes=6))
    for content in ("ééé", "abcdef"):
        assert ask({"content": content}, "/tokenize", settings=settings)[0].status_code == 200
    refused, client = ask({"content": "éééx"}, "/tokenize", settings=settings)

    assert (refused.status_code, client.calls) == (400, [])
    error = refused.json()["error"]
    assert (error["message"], error["param"]) == ("content: 7 is more than the 6 that this server takes", "content")


def test_many_pieces_are_written_with_turns_of_others_in_between() -> None:
    n_tokens = 3 * 4096 + 1
    made = Tokenized(request_id="t", tokens=tuple(range(n_tokens)), pieces=(b"\xff", *[b'"'] * (n_tokens - 1)))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def written() -> list[dict[str, object]]:
        counting = asyncio.create_task(count_turns())
        found: list[dict[str, object]] = json.loads(bytes(await with_pieces(made)))
        counting.cancel()
        return found

    found = asyncio.run(written())
    assert found == [{"id": 0, "piece": [255]}, *({"id": id, "piece": '"'} for id in range(1, n_tokens))]
    assert turns >= 4


def test_a_lenient_server_names_what_it_ignored() -> None:
    response, client = ask({**BODY, "moood": 1, "store": True}, settings=EndpointSettings(lenient=True))

    assert response.status_code == 200
    assert sorted(response.headers["x-ktllama-ignored-fields"].split(", ")) == ["moood", "store"]
    assert len(client.asked) == 1


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{}", None, 415, "unsupported_media_type"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{}", "application/json; charset=latin-1", 415, "unsupported_media_type"),
        (b"{}", "application/json; charset=utf-8", 400, "missing_field"),
        (b"{" + b" " * 3000, "application/json", 413, "body_too_large"),
        (b"\xff", "application/json", 400, "invalid_json"),
        (b'{"a":' * 5000, "application/json", 413, "body_too_large"),
    ],
)
def test_a_body_of_another_kind_or_size(content: bytes, content_type: str | None, status: int, code: str) -> None:
    from ktllama.server.state import BodyLimits

    headers = {} if content_type is None else {"content-type": content_type}
    settings = EndpointSettings(limits=BodyLimits(body_bytes=2000))
    response, client = ask(None, content=content, headers=headers, settings=settings)

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert client.asked == []


@pytest.mark.parametrize(("coding", "status"), [("gzip", 415), ("br", 415), ("gzip, identity", 415), ("identity", 200)])
def test_a_compressed_body_is_refused_by_name(coding: str, status: int) -> None:
    content = gzip.compress(json.dumps(BODY).encode()) if status == 415 else json.dumps(BODY).encode()
    headers = {"content-type": "application/json", "content-encoding": coding}
    response, client = ask(None, content=content, headers=headers)

    assert response.status_code == status
    if status == 415:
        error = response.json()["error"]
        assert (error["code"], error["message"]) == (
            "compressed_body",
            f"the body is compressed ('{coding}'); send it as it is",
        )
        assert client.asked == []


def test_what_the_engine_could_not_do_is_in_the_log_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(RecordingClient):
        async def script(self, request: Generate) -> AsyncGenerator[Answer, None]:
            yield Accepted(request_id=request.request_id, prompt_tokens=1)
            yield Failed(request_id=request.request_id, code="engine_error", message="the step failed: no luck")

    response, _ = ask(BODY, client=Failing())

    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_error")
    (record,) = [found for found in caplog.records if found.message == "a generation failed"]
    assert record.levelname == "ERROR"
    assert record.__dict__["fields"]["reason"] == "the step failed: no luck"
    assert record.__dict__["fields"]["request"].startswith("chatcmpl-")


def test_an_unread_template_variable_is_refused_by_name_or_left_out() -> None:
    body = {**BODY, "chat_template_kwargs": {"add_generation_promp": 1}}
    refused, client = ask(body)
    lenient, _ = ask(body, settings=EndpointSettings(lenient=True))

    path = "chat_template_kwargs.add_generation_promp"
    assert refused.json()["error"] == {
        "message": f"{path}: the model's chat template reads no such variable",
        "type": "invalid_request_error",
        "param": path,
        "code": "unsupported_value",
    }
    assert client.asked == []
    assert (lenient.status_code, lenient.headers["x-ktllama-ignored-fields"]) == (200, path)


def test_a_path_that_is_not_there() -> None:
    response, _ = ask({}, "/v1/nothing")

    assert response.status_code == 404
    assert response.json()["error"]["message"] == "there is no endpoint POST /v1/nothing; /docs lists them"


def test_models_are_known_by_their_names() -> None:
    settings = EndpointSettings(model_alias="r1")

    for name in ("r1", "recorded", "deepseek-reasoner", "deepseek-chat"):
        response, _ = ask({**BODY, "model": name}, settings=settings)
        assert response.json()["model"] == "r1"
    response, _ = ask({**BODY, "model": "gpt"}, settings=settings)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert response.json()["error"]["message"] == "there is no model 'gpt' here; this server has 'r1'"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions", "/beta/chat/completions"])
def test_deepseeks_addresses_answer_too(path: str) -> None:
    assert ask(BODY, path)[0].status_code == 200
