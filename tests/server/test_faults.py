"""What goes wrong around a request: nothing hangs, nothing stays behind, everyone gets an answer or an error."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from ktllama.server.state import EndpointSettings
from tests.server.live import Live, live
from tests.server.recording import events

USER = [{"role": "user", "content": "hi"}]
ENDLESS: dict[str, Any] = {"messages": USER, "ignore_eos": True, "stream": True, "reasoning_budget": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    options = {"n_ctx": 20_000, "n_parallel": 16, "seconds_per_step": 0.002}
    with live(options, EndpointSettings(keep_alive_seconds=0.01)) as found:
        yield found


def until(holds: Callable[[], bool], seconds: float = 600) -> None:
    """Wait for what must come to be; the deadline is for a test that fails, also on a machine that is busy."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


def running(server: Live) -> int:
    stats = server.call(server.state.client.stats)
    return int(stats.running + stats.queued)


def test_an_engine_killed_under_eight_streams_tells_each_and_comes_back(server: Live) -> None:
    async def streamed(http: httpx.AsyncClient, begun: asyncio.Semaphore) -> list[str]:
        lines = []
        async with http.stream("POST", "/v1/chat/completions", json={**ENDLESS, "max_tokens": 15_000}) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    lines.append(line.removeprefix("data: "))
                    if len(lines) == 3:
                        begun.release()
        return lines

    async def killed() -> list[list[str]]:
        begun = asyncio.Semaphore(0)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            streams = [asyncio.create_task(streamed(http, begun)) for _ in range(8)]
            for _ in streams:
                await begun.acquire()
            assert server.state.client.pid is not None
            os.kill(server.state.client.pid, signal.SIGKILL)
            return await asyncio.gather(*streams)

    restarts = server.state.client.restarts
    for lines in asyncio.run(killed()):
        assert json.loads(lines[-1])["error"]["code"] == "engine_died"
        assert json.loads(lines[-1])["error"]["type"] == "service_unavailable_error"
    until(lambda: server.state.client.state == "ready" and server.state.client.restarts > restarts)
    assert server.chat(max_tokens=3).status_code == 200


def test_a_client_that_leaves_a_stream_frees_its_place(server: Live) -> None:
    with server.http.stream("POST", "/v1/chat/completions", json={**ENDLESS, "max_tokens": 15_000, "n": 2}) as response:
        next(response.iter_lines())
        until(lambda: running(server) == 2)

    until(lambda: running(server) == 0)


def test_a_client_that_leaves_before_the_whole_answer_frees_its_place(server: Live) -> None:
    body = json.dumps({**ENDLESS, "max_tokens": 15_000, "stream": False}).encode()
    with connection(server, body):
        until(lambda: running(server) == 1)

    until(lambda: running(server) == 0)


def connection(server: Live, body: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    made.sendall(head.encode() + b"\r\nConnection: close\r\n\r\n" + body)
    return made


def test_a_reader_of_single_bytes_stops_nobody(server: Live) -> None:
    body = json.dumps({**ENDLESS, "max_tokens": 300}).encode()
    with connection(server, body) as slow:
        for _ in range(50):
            assert slow.recv(1)
        assert server.chat(max_tokens=3).status_code == 200
        received = b""
        while piece := slow.recv(65536):
            received += piece
    assert b"data: [DONE]\n\n" in received


def test_a_reader_that_never_reads_stops_nobody(server: Live) -> None:
    body = json.dumps({**ENDLESS, "max_tokens": 500}).encode()
    with connection(server, body):
        until(lambda: running(server) == 1)
        assert server.chat(max_tokens=3).status_code == 200
        until(lambda: running(server) == 0)


def test_silence_is_filled_with_comments() -> None:
    with live({"seconds_per_step": 0.2}, EndpointSettings(keep_alive_seconds=0.02)) as slow:
        response = slow.chat(stream=True, max_tokens=3)

    assert ": keep-alive\n\n" in response.text
    assert events(response)[-1] == "[DONE]"


def test_hundreds_of_requests_wait_their_turn_and_are_all_answered() -> None:
    async def all_asked(url: str) -> list[int]:
        limits = httpx.Limits(max_connections=300)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
            body = {"messages": USER, "max_tokens": 4}
            answers = [http.post("/v1/chat/completions", json={**body, "stream": n % 2 == 0}) for n in range(300)]
            return [answer.status_code for answer in await asyncio.gather(*answers)]

    with live({"n_parallel": 4}) as server:
        codes = asyncio.run(all_asked(server.url))
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 256


def test_a_prompt_longer_than_the_context_tells_both_numbers(server: Live) -> None:
    response = server.chat("x" * 30_000)

    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith("this model's context is 20000 tokens, but the prompt has 300")
    assert response.json()["error"]["code"] == "context_length_exceeded"
