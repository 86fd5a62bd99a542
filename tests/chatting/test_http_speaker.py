"""A server as speaker: whatever it answers, there is an answer or one error."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ktllama.chatting.http_speaker import HttpSpeaker
from ktllama.chatting.speaker import Ended, Question, Said, SpeakerError

QUESTION = Question(messages=[{"role": "user", "content": "hi"}], fields={"max_tokens": 3})
MODELS = json.dumps({"data": [{"id": "m"}]}).encode()


def answer(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def chunk(**delta: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": None}]}).encode() + b"\n\n"


END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 2}}}\n\n'


class Script:
    """What a server answers, request by request; what it was asked."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = [answer(MODELS), *answers]
        self.asked: list[bytes] = []


@contextmanager
def serving(script: Script) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while script.answers:
            connection, _ = listener.accept()
            with connection:
                script.asked.append(request_of(connection))
                with contextlib.suppress(OSError):  # who has heard enough hangs up
                    connection.sendall(script.answers.pop(0))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join()
        listener.close()


def request_of(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def asked(stream: bytes, status: str = "200 OK") -> tuple[list[Said], Ended]:
    heard: list[Said] = []
    with serving(Script(answer(stream, status))) as url:
        return heard, HttpSpeaker(url).answer(QUESTION, heard.append)


def test_a_stream_is_heard_piece_by_piece() -> None:
    stream = b": keep\n\n" + chunk(role="assistant", content="") + chunk(reasoning_content="hm", content=None) + chunk(content="hi ü") + END + USAGE + b"data: [DONE]\n\n"  # fmt: skip
    heard, ended = asked(stream)
    assert heard == [Said(kind="reasoning", text="hm"), Said(kind="content", text="hi ü")]
    assert ended == Ended(reason="stop", prompt_tokens=9, completion_tokens=4, reasoning_tokens=2)


def test_what_is_sent() -> None:
    script = Script(answer(END + b"data: [DONE]\n\n"))
    with serving(script) as url:
        HttpSpeaker(f"{url}/v1/", "sk-1").answer(QUESTION, lambda _: None)
    models, chat = script.asked
    assert models.startswith(b"GET /v1/models HTTP/1.1\r\n")
    assert b"Authorization: Bearer sk-1\r\n" in models
    assert chat.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert json.loads(chat.partition(b"\r\n\r\n")[2]) == {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True,
        "stream_options": {"include_usage": True}, "max_tokens": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "status", "reason"),
    [
        (b'{"error": {"message": "too long"}}', "400 Bad Request", "the server refused (400): too long"),
        (b"<html>", "502 Bad Gateway", "the server refused (502): Bad Gateway"),
        (b'{"error": []}', "500 X", "the server refused (500): it does not say why"),
        (chunk(content="a"), "200 OK", "the server's answer broke off"),
        (b"", "200 OK", "the server's answer broke off"),
        (b"data: [DONE]\n\n", "200 OK", "the server's answer broke off"),
        (chunk(content="a") + b'data: {"error": {"message": "the engine died"}}\n\n', "200 OK", "the engine died"),
        (b"data: {nonsense\n\n", "200 OK", "the server sent what is no JSON"),
        (b"data: []\n\n", "200 OK", "the server sent what is no JSON object"),
        (b'data: {"choices": [7]}\n\ndata: {"choices": [{"delta": 7}]}\n\n', "200 OK", "the server's answer broke off"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "200 OK", "the server sent what is no JSON"),
    ],
)
def test_anything_else_is_one_error(stream: bytes, status: str, reason: str) -> None:
    with pytest.raises(SpeakerError) as caught:
        asked(stream, status)
    assert caught.value.reason == reason


def test_a_connection_that_breaks_is_one_error() -> None:
    with serving(Script(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nda")) as url:
        speaker = HttpSpeaker(url)
        with pytest.raises(SpeakerError, match="broke"):
            speaker.answer(QUESTION, lambda _: None)


def test_what_is_no_http_is_one_error() -> None:
    with serving(Script(b"SSH-2.0-OpenSSH\r\n")) as url:
        speaker = HttpSpeaker(url)
        with pytest.raises(SpeakerError, match="the connection broke"):
            speaker.answer(QUESTION, lambda _: None)


@pytest.mark.parametrize("body", [b"{}", b'{"data": []}', b'{"data": [{"id": 7}]}', b'{"data": "m"}'])
def test_a_server_without_models_is_refused(body: bytes) -> None:
    script = Script()
    script.answers = [answer(body)]
    with serving(script) as url, pytest.raises(SpeakerError, match="no model"):
        HttpSpeaker(url)


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://", "http://x:port", "", "http://[::1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SpeakerError):
        HttpSpeaker(url)


def test_nothing_that_answers_is_one_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SpeakerError, match=f"nothing answers at 127.0.0.1:{port}: Connection refused"):
        HttpSpeaker(f"http://127.0.0.1:{port}")


def test_placement_is_told_where_the_server_knows_it() -> None:
    with serving(Script(answer(b'{"plan": ["CPU: all"]}'), answer(b"{}"))) as url:
        speaker = HttpSpeaker(url)
        assert speaker.plan() == ("CPU: all",)
        with pytest.raises(SpeakerError, match="nothing about its placement"):
            speaker.plan()
