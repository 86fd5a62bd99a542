"""A server's life in a process of its own, over the fake model: loading, load, signals, a killed engine, slow readers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ktllama.server.serving import AddressError, bind, url_of
from tests.server.served import Served, events, fake, say

#: Steps slow enough that a test can act between them, whatever the machine does.
SLOW = {"seconds_per_step": 0.02, "end_chance": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """One that nothing is done to."""
    with fake({"n_ctx": 8192, "n_parallel": 16, "n_sequences": 32, "end_chance": 0}) as served:
        served.wait_until_ready()
        yield served


class Streams:
    """Chat streams in threads; `began` counts those that have had text."""

    def __init__(self, served: Served, texts: Sequence[str], **fields: object) -> None:
        self._pool = ThreadPoolExecutor(len(texts))
        self._began = threading.Semaphore(0)
        self._count = len(texts)
        self._results = [self._pool.submit(self._read, served, text, fields) for text in texts]

    def _read(self, served: Served, text: str, fields: dict[str, Any]) -> list[Any]:
        found: list[Any] = []
        with served.stream(say(text, **fields)) as response:
            assert response.status == 200
            for event in events(response):
                found.append(event)
                if len(found) == 3:
                    self._began.release()
        return found

    def wait_until_all_began(self) -> None:
        for _ in range(self._count):
            assert self._began.acquire(timeout=300)

    def results(self) -> list[list[Any]]:
        found = [result.result(timeout=300) for result in self._results]
        self._pool.shutdown()
        return found


def text_of(found: list[Any]) -> str:
    deltas = [event["choices"][0]["delta"] for event in found if event != "[DONE]" and event.get("choices")]
    return "".join((delta.get("reasoning_content") or "") + (delta.get("content") or "") for delta in deltas)


# ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_health_says_how_far_the_load_is_and_a_signal_ends_it() -> None:
    with fake({"load_seconds": 600}) as served:
        served.wait_for_port()
        assert served.wait_for_health("loading")["progress"] == 0.0
        refused = served.post("/v1/chat/completions", say("hello"))
        assert (refused.status, refused.json()["error"]["code"]) == (503, "model_loading")
        assert refused.headers["retry-after"] == "5"
        served.signal(signal.SIGTERM)
        assert served.end() == 0


def test_a_model_that_cannot_be_loaded_is_one_line_and_status_1() -> None:
    with fake({"fail_load": "the file is no model\n\x1b[2J"}) as served:
        assert served.end() == 1
        told = [line for line in served.lines if not line.startswith(("{", "loading "))]
        assert told == ["ktllama: the file is no model", "ktllama: \\x1b[2J"]
        assert served.wait_for_log("engine", state="failed")["reason"].startswith("the file is no model")


def test_a_start_says_its_address_and_what_to_paste(server: Served) -> None:
    said = "\n".join(server.said)
    assert f"Listening on http://127.0.0.1:{server.port}\n" in said
    assert f"    curl -N http://127.0.0.1:{server.port}/v1/chat/completions \\\n" in said
    body = json.loads(said.partition("-d '")[2].partition("'")[0])
    assert server.post("/v1/chat/completions", {**body, "stream": False, "max_tokens": 2}).status == 200


# ── the process ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_api_process_is_small_and_computes_nothing(server: Served) -> None:
    server.post("/v1/chat/completions", say("hello", max_tokens=3))
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    for foreign in ("numpy", "torch", "llama_cpp", "libggml", "transformers", "tokenizers"):
        assert foreign not in maps
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) < 120 * 1000


def test_a_request_is_one_line_of_the_log_and_prompts_are_not_in_it(server: Served) -> None:
    answer = server.post("/v1/chat/completions", say("the very secret", max_tokens=5), **{"x-request-id": "mine-1"})
    assert (answer.status, answer.headers["x-request-id"]) == (200, "mine-1")
    line = server.wait_for_log("request", id="mine-1")
    assert (line["status"], line["completion_tokens"], line["finish"]) == (200, 5, "length")
    assert line["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert "secret" not in "\n".join(server.lines)


def test_metrics_count_what_was_asked(server: Served) -> None:
    before = metrics_of(server)
    server.post("/v1/chat/completions", say("count me", max_tokens=4))
    after = metrics_of(server)
    gained = {name: after[name] - before.get(name, 0) for name in after}
    assert gained['ktllama_requests_total{path="/v1/chat/completions",status="200"}'] == 1
    assert gained["ktllama_completion_tokens_total"] == 4
    assert gained['ktllama_generations_total{outcome="length"}'] == 1
    assert gained["ktllama_time_to_first_token_seconds_count"] == 1
    assert (after["ktllama_running_requests"], after["ktllama_queued_requests"]) == (0, 0)


def metrics_of(served: Served) -> dict[str, float]:
    lines = served.get("/metrics").body.decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def test_many_short_requests_leave_nothing_behind(server: Served) -> None:
    def ask(number: int) -> int:
        return server.post("/v1/chat/completions", say(f"question {number}", max_tokens=2)).status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(100))) == {200}  # warm: caches, pools and buffers have their size
        files, memory = held(server)
        assert set(pool.map(ask, range(100, 400))) == {200}
    wait_for_no_connections(server, files)
    assert held(server)[1] - memory < 4 * 1024
    after = metrics_of(server)
    assert after['ktllama_kv_cells{state="running"}'] == 0
    assert after['ktllama_kv_cells{state="cached"}'] + after['ktllama_kv_cells{state="free"}'] == 8192


def held(served: Served) -> tuple[int, int]:
    """Open files, and resident memory in KiB, of the API process."""
    folder = Path(f"/proc/{served.process.pid}")
    memory = int((folder / "status").read_text().partition("VmRSS:")[2].split()[0])
    return len(list((folder / "fd").iterdir())), memory


def wait_for_no_connections(served: Served, files: int) -> None:
    for _ in range(1000):
        if held(served)[0] <= files:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{held(served)[0]} files are open, of {files} before")


# ── many, and slow ───────────────────────────────────────────────────────────────────────────────────────────────


async def ask_raw(port: int, text: str) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = json.dumps(say(text, max_tokens=2)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        raw = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    head_bytes, _, answer = raw.partition(b"\r\n\r\n")
    return int(head_bytes.split()[1]), answer


async def ask_all(port: int, texts: Sequence[str]) -> list[tuple[int, bytes]]:
    return await asyncio.gather(*(ask_raw(port, text) for text in texts))


def test_a_thousand_requests_at_once_are_all_answered(server: Served) -> None:
    answers = asyncio.run(ask_all(server.port, [f"number {number}" for number in range(1000)]))
    assert [status for status, _ in answers] == [200] * 1000
    assert held(server)[1] < 120 * 1000
    assert all(b'"finish_reason":"length"' in body.replace(b": ", b":") for _, body in answers)


def test_beyond_the_queue_limit_a_request_is_told_to_come_back() -> None:
    with fake({**SLOW, "n_parallel": 2}, queue_limit=5) as served:
        served.wait_until_ready()
        streams = Streams(served, ["a", "b"], max_tokens=40)
        streams.wait_until_all_began()
        answers = asyncio.run(ask_all(served.port, [f"number {number}" for number in range(20)]))
        statuses = sorted(status for status, _ in answers)
        assert statuses == [200] * 5 + [429] * 15
        refused = next(json.loads(body)["error"] for status, body in answers if status == 429)
        assert refused["code"] == "queue_full"
        assert {found[-1] for found in streams.results()} == {"[DONE]"}


def test_a_client_that_reads_a_byte_at_a_time_holds_up_nobody_and_gets_its_answer(server: Served) -> None:
    body = json.dumps({**say("slow reader", max_tokens=3000), "stream": True}).encode()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.settimeout(300)
        slow.connect(("127.0.0.1", server.port))
        head = f"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body)
        received = slow.recv(1)
        for number in range(20):  # others go on beside it, a byte of its at a time
            assert server.post("/v1/chat/completions", say(f"other {number}", max_tokens=2)).status == 200
            received += slow.recv(1)
        while part := slow.recv(4096):
            received += part
    assert received.endswith(b"data: [DONE]\n\n")


# ── signals ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_lets_all_that_runs_finish(number: signal.Signals) -> None:
    with fake({**SLOW, "n_parallel": 4}) as served:
        served.wait_until_ready()
        streams = Streams(served, ["one", "two", "three", "four"], max_tokens=60)
        streams.wait_until_all_began()
        queued = ThreadPoolExecutor(1).submit(served.post, "/v1/chat/completions", say("five", max_tokens=3))
        while metrics_of(served)["ktllama_queued_requests"] != 1:
            pass
        served.signal(number)
        served.wait_for_health("draining")
        refused = served.post("/v1/chat/completions", say("late"))
        assert (refused.status, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) >= 1
        for found in streams.results():
            assert found[-1] == "[DONE]"
            assert found[-2]["choices"][0]["finish_reason"] == "length"
        assert queued.result().json()["usage"]["completion_tokens"] == 3
        assert served.end() == 0
        assert "Traceback" not in "\n".join(served.lines)


def test_a_second_signal_stops_at_once_and_says_so_to_clients() -> None:
    with fake({**SLOW}) as served:
        served.wait_until_ready()
        streams = Streams(served, ["one", "two"], max_tokens=3000)
        streams.wait_until_all_began()
        served.signal(signal.SIGTERM)
        served.wait_for_health("draining")
        served.signal(signal.SIGINT)
        for found in streams.results():
            assert found[-1]["error"]["code"] in ("draining", "engine_died")
        assert served.end() == 128 + signal.SIGINT
        assert "Traceback" not in "\n".join(served.lines)


def test_a_drain_that_takes_too_long_ends() -> None:
    with fake({**SLOW}, drain_timeout=0.2) as served:
        served.wait_until_ready()
        streams = Streams(served, ["one"], max_tokens=3000)
        streams.wait_until_all_began()
        served.signal(signal.SIGTERM)
        assert streams.results()[0][-1]["error"]["code"] in ("draining", "engine_died")
        assert served.end() == 0


# ── a dead engine ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_engine_killed_under_eight_clients_is_told_to_all_and_comes_back() -> None:
    with fake({**SLOW, "n_parallel": 8, "load_seconds": 0.5}, backoff={"first_seconds": 0.5}) as served:
        served.wait_until_ready()
        streams = Streams(served, [f"client {number}" for number in range(8)], max_tokens=3000)
        streams.wait_until_all_began()
        engine, api = served.engine_pid, served.process.pid
        os.kill(engine, signal.SIGKILL)
        for found in streams.results():
            assert found[-1]["error"]["code"] == "engine_died"
            assert len(text_of(found)) > 0
        assert served.wait_for_health("restarting")["restarts"] == 1
        refused = served.post("/v1/chat/completions", say("meanwhile"))
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        served.wait_for_health("ok")
        assert served.engine_pid != engine
        assert served.process.pid == api
        assert served.post("/v1/chat/completions", say("hello again", max_tokens=2)).status == 200
        line = served.wait_for_log("engine", state="restarting")
        assert (line["level"], line["restarts"]) == ("error", 1)
        assert "SIGKILL" in line["reason"]
        assert metrics_of(served)["ktllama_engine_restarts_total"] == 1


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_port_that_is_taken_is_said_so() -> None:
    (taken,) = bind("127.0.0.1", 0)
    with taken:
        port = taken.getsockname()[1]
        assert url_of("127.0.0.1", taken) == f"http://127.0.0.1:{port}"
        assert url_of("0.0.0.0", taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(AddressError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "256.1.1.1"])
def test_a_host_that_is_not_this_machine_is_said_so(host: str) -> None:
    with pytest.raises(AddressError):
        bind(host, 0)


def test_an_address_of_version_six_is_in_brackets() -> None:
    try:
        (listener,) = bind("::1", 0)
    except AddressError:
        pytest.skip("this machine has no IPv6")
    with listener:
        assert url_of("::1", listener) == f"http://[::1]:{listener.getsockname()[1]}"
