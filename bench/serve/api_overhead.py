"""What the API process costs per streamed token, with an engine that computes nothing.

    python -m bench.serve.api_overhead

An engine process with the tests' arithmetic model answers as fast as it can be asked, at a pace (`--pace`, seconds a
step) that keeps every token an event of its own. The CPU time of this process, which serves, is read before and after;
the clients are a process of their own. Three figures: encoding a chunk; the application (routing, reading, deltas,
encoding, ASGI) fed by an engine client without a process; and all of it: sockets, event loop, the engine's pipe.
On a machine that is busy with other things caches are cold at every token, and the last figure is several times higher.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import time
from pathlib import Path

import uvicorn
import uvloop
from starlette.types import Message, Scope

from ktllama.engine.client import EngineClient
from ktllama.engine.launch import Launch
from ktllama.server.app import create_app
from ktllama.server.chat_answer import ChatChunks, Head
from ktllama.server.deltas import TextAdded
from ktllama.server.state import ServerState
from tests.server.recording import RecordingClient

FAKE = str(Path(__file__).parents[2] / "tests" / "engine" / "fake_executor.py") + ":open_fake"


async def _clients(port: int, n_clients: int, max_tokens: int) -> tuple[int, int]:
    """Stream from all clients at once with bare sockets; how many tokens and chunks came."""

    async def one() -> tuple[int, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(
            {
                "messages": [{"role": "user", "content": "hi"}],
                "stream": True,
                "stream_options": {"include_usage": True},
                "ignore_eos": True,
                "max_tokens": max_tokens,
            }
        ).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}"
        writer.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + body)
        answer = await reader.read(-1)
        writer.close()
        usage = json.loads(answer.rpartition(b'"usage":')[2].partition(b"}\n\ndata: [DONE]")[0])
        return usage["completion_tokens"], answer.count(b"data: {")

    each = await asyncio.gather(*(one() for _ in range(n_clients)))
    return sum(tokens for tokens, _ in each), sum(chunks for _, chunks in each)


def _client_process(port: int, n_clients: int, max_tokens: int, answer: multiprocessing.Queue[tuple[int, int]]) -> None:
    answer.put(asyncio.run(_clients(port, n_clients, max_tokens)))


async def _measured(n_clients: int, max_tokens: int, pace: float) -> tuple[float, int, int]:
    """CPU seconds of this process, tokens and chunks."""
    options = {"n_ctx": 200_000, "n_parallel": 32, "n_sequences": 64, "seconds_per_step": pace}
    client = EngineClient(Launch(executor=FAKE, options=options))
    await client.start()
    await client.wait_ready()
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(ServerState(client=client))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, server_header=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    port = listener.getsockname()[1]
    try:
        await asyncio.to_thread(_asked, port, n_clients, 8)  # everything imported, every template compiled
        before = time.process_time()
        tokens, chunks = await asyncio.to_thread(_asked, port, n_clients, max_tokens)
        return time.process_time() - before, tokens, chunks
    finally:
        server.should_exit = True
        await serving
        await client.close()


def _asked(port: int, n_clients: int, max_tokens: int) -> tuple[int, int]:
    context = multiprocessing.get_context("spawn")
    answer: multiprocessing.Queue[tuple[int, int]] = context.Queue()
    process = context.Process(target=_client_process, args=(port, n_clients, max_tokens, answer))
    process.start()
    found = answer.get()
    process.join()
    return found


def _encoding(n: int = 20_000) -> float:
    """Microseconds to encode one chunk."""
    head = Head(id="chatcmpl-" + "0" * 32, created=1, model="model", system_fingerprint="fp_0")
    chunks = ChatChunks(head, n_choices=1, shows_reasoning=True, include_usage=False)
    deltas = [TextAdded(0, "content", " word")]
    before = time.process_time()
    for _ in range(n):
        chunks.encoded(deltas)
    return (time.process_time() - before) / n * 1e6


async def _application(n_tokens: int) -> float:
    """Microseconds a chunk, from the engine client's event to the ASGI message."""
    app = create_app(ServerState(client=RecordingClient([("content", " word")] * n_tokens)))
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
    n_messages = 0
    asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return asked.pop() if asked else await asyncio.Future()

    async def send(_: Message) -> None:
        nonlocal n_messages
        n_messages += 1

    before = time.process_time()
    await app(_scope(), receive, send)
    return (time.process_time() - before) / n_messages * 1e6


def _scope() -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=400, help="a client")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--pace", type=float, default=0.002)
    given = parser.parse_args()
    print(f"encoding a chunk: {_encoding():.1f} µs")
    print(f"the application alone: {asyncio.run(_application(3000)):.1f} µs a chunk")
    for n_clients in given.clients:
        per_token, per_chunk = [], []
        for _ in range(given.runs):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                seconds, tokens, chunks = runner.run(_measured(n_clients, given.tokens, given.pace))
            per_token.append(seconds / tokens * 1e6)
            per_chunk.append(seconds / chunks * 1e6)
        print(
            f"{n_clients:>3} clients: {statistics.median(per_token):.0f} µs CPU a token, "
            f"{statistics.median(per_chunk):.0f} µs a chunk (median of {given.runs})"
        )


if __name__ == "__main__":
    main()
