"""Whatever a body says, the answer is an answer or the caller's error; never a mistake of the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktllama.server.app import create_app
from ktllama.server.protocol.answers import ErrorAnswer
from ktllama.server.protocol.chat import ChatRequest
from ktllama.server.protocol.completion import CompletionRequest
from ktllama.server.protocol.embedding import EmbeddingRequest
from ktllama.server.protocol.tokens import DetokenizeRequest, TokenizeRequest
from ktllama.server.state import ServerState
from tests.server.recording import CONTROL, RecordingClient

PATHS: dict[str, type[Any]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/apply-template": ChatRequest,
}
TEXT = st.text(max_size=8) | st.sampled_from(
    [*CONTROL, "auto", "user", "assistant", "tool", "function", "\ue000", "\0"]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
SCHEMA = st.fixed_dictionaries(
    {"type": st.just("object")}, optional={"properties": JSON, "required": JSON, "$ref": JSON}
)
TOOL = st.fixed_dictionaries(
    {"type": st.just("function")},
    optional={
        "function": st.fixed_dictionaries(
            {"name": st.sampled_from(["f", "g"])}, optional={"parameters": SCHEMA, "strict": st.booleans()}
        )
    },
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "x"])},
    optional={
        "content": TEXT | st.lists(st.fixed_dictionaries({"type": TEXT | st.just("text"), "text": TEXT}), max_size=2),
        "tool_calls": JSON,
        "tool_call_id": TEXT,
        "reasoning_content": TEXT,
        "prefix": st.booleans(),
        "name": TEXT,
    },
)
KNOWN: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(MESSAGE, max_size=4),
    "tools": st.lists(TOOL, max_size=3),
    "tool_choice": st.sampled_from(["auto", "none", "required"]),
    "stream": st.booleans(),
    "prompt": TEXT | st.lists(TEXT, max_size=2) | st.lists(st.integers(0, 9), max_size=3),
    "input": TEXT | st.lists(TEXT, max_size=2),
    "content": TEXT,
    "tokens": st.lists(st.integers(0, 9), max_size=3),
    "chat_template_kwargs": st.dictionaries(TEXT, JSON, max_size=2),
    "n": st.integers(1, 3),
}


def bodies(model: type[Any]) -> st.SearchStrategy[Any]:
    fields = {name: KNOWN[name] | JSON if name in KNOWN else JSON for name in model.model_fields}
    needed = {name: fields.pop(name) for name, field in model.model_fields.items() if field.is_required()}
    return st.fixed_dictionaries(needed, optional=fields)


class Server:
    """An application in this process, and a loop to call it in."""

    def __init__(self) -> None:
        self.app = create_app(ServerState(client=RecordingClient()))
        self.runner = asyncio.Runner()

    def post(self, path: str, content: bytes) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)  # what the application raises comes through
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.post(path, content=content, headers={"content-type": "application/json"})

        return self.runner.run(asked())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    with made.runner:
        yield made


def check(response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 404, 413, 415), response.text
    if response.status_code != 200:
        ErrorAnswer.model_validate_json(response.content)


FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("path", PATHS)
@FUZZ
@given(data=st.data())
def test_fields_of_any_value(server: Server, path: str, data: st.DataObject) -> None:
    body = data.draw(bodies(PATHS[path]))

    check(server.post(path, json.dumps(body).encode()))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
@FUZZ
@given(raw=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_bytes_of_any_kind(server: Server, path: str, raw: bytes) -> None:
    check(server.post(path, raw))


@FUZZ
@given(
    messages=st.lists(MESSAGE, min_size=1, max_size=4),
    tools=st.none() | st.lists(TOOL, max_size=2),
    rest=st.fixed_dictionaries(
        {},
        optional={
            "stream": st.booleans(),
            "tool_choice": st.sampled_from(["auto", "none", "required"]),
            "n": st.integers(1, 3),
            "logprobs": st.booleans(),
            "reasoning_format": st.sampled_from(["none", "deepseek", "deepseek-legacy"]),
            "chat_template_kwargs": st.dictionaries(TEXT, JSON, max_size=2),
        },
    ),
)
def test_conversations_of_any_shape(server: Server, messages: Any, tools: Any, rest: Any) -> None:
    body = {"messages": messages, "tools": tools, **rest}

    check(server.post("/v1/chat/completions", json.dumps(body).encode()))
