"""A server's life: bind, load, answer, drain, end. One engine process, one HTTP server, two signals.

    bound ── engine starts ──► loading ── ready ──► serving ── first signal ──► draining ──► 0
                                  │                    │ second signal: at once ──────────► 128 + signal
                                  └── cannot load ──► 1

The address answers from the start: ``/health`` says how far the load is. While draining, new work is refused with 503,
what was accepted ends, then the process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import resource
import signal
import socket
from collections.abc import Iterator
from typing import Protocol

import uvicorn
import uvloop

from ktllama.engine.client import EngineClient, State
from ktllama.engine.errors import EngineFailedError
from ktllama.engine.launch import Launch
from ktllama.engine.messages import ModelInfo
from ktllama.errors import KtllamaError
from ktllama.server.access import Keys, is_loopback
from ktllama.server.app import create_app
from ktllama.server.connections import GuardedProtocol, limited
from ktllama.server.limits import Limits
from ktllama.server.metrics import Metrics
from ktllama.server.settings import ServeSettings
from ktllama.server.state import BodyLimits, EndpointSettings, ServerState
from ktllama.server.surroundings import Surroundings, surrounded

_log = logging.getLogger("ktllama.serve")

LOAD_FAILED = 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Files that a process may open, where the system lets us choose; a connection is one.
_FILES = 65536
_PROGRESS_SECONDS = 0.1
#: What clients get to read the end of their answers, once the engine has made it.
_DELIVERY_SECONDS = 10
_LAST_WORDS_SECONDS = 1
#: A name may have an address of a kind that this machine does not speak; another one will do then.
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class AddressError(KtllamaError):
    """The address cannot be listened on."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        self.host = host
        self.port = port
        self.reason = reason
        super().__init__(host, port, reason)

    def __str__(self) -> str:
        return f"cannot listen on {self.host} port {self.port}: {self.reason}"


class Audience(Protocol):
    """Who is told how the start goes."""

    def listening(self, url: str) -> None:
        """The address answers, with 503 until the model is loaded."""

    def loading(self, fraction: float) -> None:
        """The share of the model that is loaded, 0 to 1; again and again."""

    def ready(self, model: ModelInfo) -> None:
        """Requests are taken."""

    def failed(self, reason: str) -> None:
        """The model cannot be loaded; the server ends."""

    def draining(self) -> None:
        """A signal came: what runs is finished, nothing new is taken."""


def serve(launch: Launch, settings: ServeSettings, *, keys: Keys | None, audience: Audience) -> int:
    """Serve until a signal ends it; the exit status.

    Raises:
        AddressError: when the address is taken, not this machine's, or needs rights.
    """
    _allow_many_files()
    listeners = bind(settings.host, settings.port)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Life(launch, settings, keys, audience, listeners).run())
    finally:
        for listener in listeners:
            listener.close()


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of ``host``, on one port; 0 is any that is free.

    Raises:
        AddressError: when that is not possible.
    """
    found: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, _, _, _, address in socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            chosen = found[0].getsockname()[1] if found else port
            try:
                found.append(_listener(family, (str(address[0]), chosen)))
            except OSError as fault:
                if fault.errno not in _ABSENT:
                    raise
                absent = fault
        if not found:
            raise absent or OSError("it has no address")
    except OSError as fault:
        for listener in found:
            listener.close()
        raise AddressError(host, port, fault.strerror or str(fault)) from fault
    return found


def _listener(family: int, address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """The address to give to clients; where all interfaces are listened on, this machine's own name for itself."""
    port = listener.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host.strip("[]"), host)
    return f"http://[{name}]:{port}" if ":" in name and not name.startswith("[") else f"http://{name}:{port}"


def endpoint_settings(settings: ServeSettings) -> EndpointSettings:
    """The part of the settings that changes what an endpoint answers."""
    return EndpointSettings(
        lenient=settings.lenient,
        system_prompt=settings.system_prompt,
        reasoning_format=settings.reasoning_format,
        reasoning_budget=settings.reasoning_budget,
        reasoning_budget_message=settings.reasoning_budget_message,
        model_alias=settings.alias,
        default_max_tokens=settings.max_tokens,
        limits=BodyLimits(body_bytes=settings.max_body, messages=settings.max_messages),
    )


def surroundings(settings: ServeSettings, keys: Keys | None) -> Surroundings:
    """The part of the settings that says who may ask, and how much."""
    return Surroundings(
        limits=Limits(
            body_bytes=settings.max_body,
            all_bodies_bytes=16 * settings.max_body,
            header_bytes=settings.max_header,
            connections=settings.max_connections,
            header_seconds=settings.header_timeout,
            body_seconds=settings.body_timeout,
            write_seconds=settings.write_timeout,
        ),
        keys=keys,
        loopback_names=settings.allowed_host if is_loopback(settings.host) else None,
        cors_origins=settings.cors_origin,
        log_prompts=settings.log_prompts,
        shown=settings.public(),
    )


class _Life:
    """See the module."""

    def __init__(
        self,
        launch: Launch,
        settings: ServeSettings,
        keys: Keys | None,
        audience: Audience,
        listeners: list[socket.socket],
    ) -> None:
        self._settings = settings
        self._audience = audience
        self._listeners = listeners
        self._client = EngineClient(launch, on_state=self._entered, on_abandoned=lambda end: metrics.abandoned(end))
        metrics = Metrics(self._client)
        state = ServerState(client=self._client, settings=endpoint_settings(settings), observer=metrics)
        around = surroundings(settings, keys)
        self._http = _HttpServer(
            uvicorn.Config(
                surrounded(create_app(state), around, metrics),
                http=limited(around.limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=max(1, round(settings.keep_alive)),
            )
        )
        self._signals: list[int] = []
        self._signalled = asyncio.Event()

    async def run(self) -> int:
        """Live; the exit status."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        answering = asyncio.create_task(self._http.serve(sockets=self._listeners), name="ktllama-http")
        try:
            await self._client.start()
            self._audience.listening(url_of(self._settings.host, self._listeners[0]))
            if not await self._load():
                return LOAD_FAILED
            await self._signalled.wait()
            return await self._end()
        finally:
            await self._client.close()
            self._http.end(_DELIVERY_SECONDS)
            await answering

    async def _load(self) -> bool:
        """Whether the model came to be loaded, or a signal came first."""
        ready = asyncio.create_task(self._client.wait_ready())
        stop = asyncio.create_task(self._signalled.wait())
        try:
            while not (ready.done() or stop.done()):
                self._audience.loading(self._client.load_fraction)
                await asyncio.wait((ready, stop), timeout=_PROGRESS_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not stop.done():
                self._audience.ready(ready.result())
                gc.collect()
                gc.freeze()  # what starting made stays: a later collection that looked at it would hold up streams
        except EngineFailedError as fault:
            self._audience.failed(fault.reason)
            return False
        finally:
            ready.cancel()
            stop.cancel()
            await asyncio.gather(ready, stop, return_exceptions=True)
        return True

    async def _end(self) -> int:
        """Drain; the exit status: 0, or by the signal that cut it short."""
        self._audience.draining()
        _log.info("draining", extra={"fields": {"signal": signal.Signals(self._signals[0]).name}})
        drained = asyncio.create_task(self._client.drain())
        again = asyncio.create_task(self._second_signal())
        await asyncio.wait((drained, again), timeout=self._settings.drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        finished = drained.done()
        for task in (drained, again):
            task.cancel()
        await asyncio.gather(drained, again, return_exceptions=True)
        if len(self._signals) > 1:
            _log.warning("stopped at once by a second signal")
            return 128 + self._signals[1]
        if not finished:
            _log.warning("stopped: requests still ran at the end of the drain timeout")
        return 0

    async def _second_signal(self) -> None:
        while len(self._signals) < 2:
            self._signalled.clear()
            await self._signalled.wait()

    def _on_signal(self, number: int) -> None:
        self._signals.append(number)
        self._signalled.set()
        if len(self._signals) == 2:
            asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, self._http.hang_up)

    def _entered(self, state: State) -> None:
        fields: dict[str, object] = {"state": state}
        level = logging.INFO
        if state == "unresponsive":
            level = logging.ERROR
            fields["reason"] = self._client.complaint
        elif state in ("restarting", "failed"):
            level = logging.ERROR
            fields |= {"reason": self._client.failure, "restarts": self._client.restarts}
        _log.log(level, "engine", extra={"fields": fields})


class _HttpServer(uvicorn.Server):
    """uvicorn's server, whose signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield

    def end(self, seconds: int) -> None:
        """Take no connection more, and give those that are there ``seconds``."""
        self.config.timeout_graceful_shutdown = seconds
        self.should_exit = True

    def hang_up(self) -> None:
        """Close every connection now, whatever is still to be said on it."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, GuardedProtocol):
                connection.transport.abort()


def _allow_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
