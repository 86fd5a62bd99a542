"""A whole server under test: the API on a free port in a thread, a real engine process behind it that does arithmetic."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from ktllama.engine.client import EngineClient
from ktllama.engine.launch import Backoff, Launch
from ktllama.server.app import create_app
from ktllama.server.state import EndpointSettings, ServerState

FAKE = str(Path(__file__).parents[1] / "engine" / "fake_executor.py") + ":open_fake"


@dataclass
class Live:
    """A running server. `call` runs a coroutine function in its event loop."""

    url: str
    state: ServerState
    loop: asyncio.AbstractEventLoop
    http: httpx.Client

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return self.http.post(path, json=body, **more)

    def chat(self, text: str = "hi", **fields: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})

    def call(self, work: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(30)


@dataclass
class _Run:
    """What the server's thread tells the test's."""

    ready: threading.Event = field(default_factory=threading.Event)
    state: ServerState | None = None
    loop: asyncio.AbstractEventLoop | None = None
    failure: BaseException | None = None
    server: uvicorn.Server | None = None


@contextmanager
def live(
    options: Mapping[str, Any] | None = None, settings: EndpointSettings | None = None, *, executor: str = FAKE
) -> Iterator[Live]:
    """A server with an engine of the executor's `options`, the fake's by default, as long as the block."""
    launch = Launch(executor=executor, options=dict(options or {}), backoff=Backoff(first_seconds=0.05))
    listener = socket.create_server(("127.0.0.1", 0))
    run = _Run()
    thread = threading.Thread(target=_serve, args=(run, listener, launch, settings or EndpointSettings()))
    thread.start()
    try:
        assert run.ready.wait(60)
        if run.failure is not None:
            raise run.failure
        assert run.state is not None
        assert run.loop is not None
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=60) as http:
            yield Live(url=url, state=run.state, loop=run.loop, http=http)
    finally:
        if run.server is not None:
            run.server.should_exit = True
        thread.join(60)


def _serve(run: _Run, listener: socket.socket, launch: Launch, settings: EndpointSettings) -> None:
    async def lived() -> None:
        client = EngineClient(launch)
        await client.start()
        try:
            await client.wait_ready()
            run.state = ServerState(client=client, settings=settings)
            app = create_app(run.state)
            config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=5)
            run.server = uvicorn.Server(config)
            run.loop = asyncio.get_running_loop()
            run.ready.set()
            await run.server.serve(sockets=[listener])
        finally:
            await client.close()

    try:
        asyncio.run(lived())
    except BaseException as error:
        run.failure = error
        run.ready.set()
