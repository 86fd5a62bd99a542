"""One line a request, whatever is in it; prompts only where they are asked for."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from ktllama.server import logs
from ktllama.server.logs import CLIENT_LEFT, JsonLines, RequestLog, TextLines
from ktllama.server.notes import notes_of
from tests.server.asgi import Answer, call, says_ok, scope_of

SECRET = b'{"messages": [{"role": "user", "content": "my secret"}]}'


class Counted:
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def answered(self, path: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.seen.append((path, status))


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged as JSON; the loggers are afterwards as they were."""
    names = ("ktllama", "uvicorn", "asyncio")
    before = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in map(logging.getLogger, names)]
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    yield stream
    for logger, handlers, propagate, level in before:
        logger.handlers[:] = handlers
        logger.propagate = propagate
        logger.setLevel(level)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


async def notes_much(scope: Scope, receive: Receive, send: Send) -> None:
    notes = notes_of(scope)
    notes.model, notes.stream, notes.choices = "fake", True, 2
    notes.prompt_tokens, notes.cached_tokens, notes.completion_tokens, notes.reasoning_tokens = 9, 4, 7, 3
    notes.finish_reasons = ["stop", "length"]
    await says_ok(scope, receive, send)


def test_a_request_is_one_line_with_counts_and_no_text(log: io.StringIO) -> None:
    counted = Counted()
    scope = scope_of("/v1/chat/completions", "POST")
    answer = asyncio.run(call(RequestLog(notes_much, counter=counted), scope, [SECRET]))
    (line,) = lines(log)
    assert line.pop("seconds") >= line.pop("first_seconds") >= 0
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info", "logger": "ktllama.request", "message": "request", "id": answer.headers["x-request-id"],
        "method": "POST", "path": "/v1/chat/completions", "status": 200, "model": "fake", "stream": "yes", "choices": 2,
        "prompt_tokens": 9, "cached_tokens": 4, "completion_tokens": 7, "reasoning_tokens": 3, "finish": "stop,length",
    }  # fmt: skip
    assert "secret" not in log.getvalue()
    assert counted.seen == [("other", 200)]


def test_prompts_are_logged_where_they_are_asked_for_up_to_a_limit(log: io.StringIO) -> None:
    asyncio.run(call(RequestLog(says_ok, log_prompts=True), scope_of("/x", "POST"), [SECRET, b"y" * 100_000]))
    (line,) = lines(log)
    assert line["body"].startswith(SECRET.decode())
    assert len(line["body"]) == 65536


@pytest.mark.parametrize("given", ["abc-1.2_Z", "0"])
def test_a_plain_request_id_is_kept(given: str, log: io.StringIO) -> None:
    answer = asyncio.run(call(RequestLog(says_ok), scope_of(headers=[("x-request-id", given)])))
    assert answer.headers["x-request-id"] == lines(log)[0]["id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a\nb", "é", "-a", "x" * 65, '"'])
def test_any_other_is_replaced(given: str, log: io.StringIO) -> None:
    answer = asyncio.run(call(RequestLog(says_ok), scope_of(headers=[("x-request-id", given)])))
    assert answer.headers["x-request-id"].startswith("req-")
    assert answer.headers["x-request-id"] != given


def test_two_requests_have_two_ids(log: io.StringIO) -> None:
    ids = {asyncio.run(call(RequestLog(says_ok), scope_of())).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2


def test_an_application_that_fails_is_answered_and_logged_with_its_traceback(log: io.StringIO) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("broken inside")

    counted = Counted()
    answer: Answer = asyncio.run(call(RequestLog(fails, counter=counted), scope_of()))
    assert (answer.status, answer.code) == (500, "internal_error")
    assert b"broken" not in answer.body
    failed, request = lines(log)
    assert "RuntimeError: broken inside" in failed["traceback"]
    assert failed["id"] == request["id"] == answer.headers["x-request-id"]
    assert (request["level"], request["status"]) == ("warning", 500)
    assert counted.seen == [("other", 500)]


def test_a_client_that_left_without_an_answer_counts_as_such(log: io.StringIO) -> None:
    async def leaves(scope: Scope, receive: Receive, send: Send) -> None:
        notes_of(scope).client_left = True

    asyncio.run(call(RequestLog(leaves), scope_of()))
    (line,) = lines(log)
    assert (line["status"], line["client"]) == (CLIENT_LEFT, "left")


def test_health_is_not_worth_a_line(log: io.StringIO) -> None:
    asyncio.run(call(RequestLog(says_ok), scope_of("/health")))
    assert lines(log) == []


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("ktllama.request", logging.INFO, __file__, 1, message, None, None)
    made.fields = fields
    return made


def test_text_lines_quote_what_came_from_outside() -> None:
    line = TextLines().format(record("request", path="/a b\n\x1b[2J", n=3, seconds=0.12345, plain="stop"))
    assert line.endswith(r'info    ktllama.request: request path="/a b\n\u001b[2J" n=3 seconds=0.123 plain=stop')
    assert "\x1b" not in line


def test_a_message_of_the_engine_cannot_begin_a_line() -> None:
    made = record("llama said\n2026 forged\x1b[0m")
    assert "\n" not in TextLines().format(made)
    assert "\x1b" not in TextLines().format(made)
    assert len(JsonLines().format(made).splitlines()) == 1


def test_lines_of_the_engine_carry_its_process() -> None:
    made = record("loading")
    made.engine_pid = 7
    assert json.loads(JsonLines().format(made))["engine_pid"] == 7
    assert TextLines().format(made).endswith("loading engine_pid=7")
