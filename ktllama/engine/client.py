"""The API process's side of the engine: one asyncio client that outlives any number of engine processes.

Every request gets its answer: the engine's, or, when the engine dies, a `Failed` that the client makes itself.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from ktllama.engine.answer_stream import AnswerStream
from ktllama.engine.errors import EngineFailedError, EngineRequestError
from ktllama.engine.heartbeat import Pulse
from ktllama.engine.launch import Launch
from ktllama.engine.messages import (
    Accepted,
    Cancel,
    Detokenize,
    Detokenized,
    Drain,
    Embed,
    Embedded,
    Emitted,
    Event,
    Failed,
    Finished,
    Generate,
    LoadFailed,
    Loading,
    ModelInfo,
    Ping,
    Pong,
    Ready,
    Report,
    Request,
    Segment,
    Stats,
    Tokenize,
    Tokenized,
)
from ktllama.engine.supervisor import EngineProcess
from ktllama.engine.wire import FrameError

State = Literal["starting", "loading", "ready", "unresponsive", "restarting", "draining", "failed", "stopped"]
_log = logging.getLogger("ktllama.engine")

_AnyEvent = TypeVar("_AnyEvent", Tokenized, Detokenized, Embedded, Stats)

#: Deaths in a row, none of them of an engine that had loaded, after which it is not started again.
LOAD_ATTEMPTS = 5


class EngineClient:
    """Starts an engine process, keeps one running, and asks it. All methods belong to one event loop.

    `on_state` is called with each new state, `on_abandoned` with the end of each request that was given up before it;
    both from that loop.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        on_state: Callable[[State], None] | None = None,
        on_abandoned: Callable[[Finished], None] | None = None,
    ) -> None:
        self.state: State = "stopped"
        self.load_fraction = 0.0
        self.model: ModelInfo | None = None
        self.failure: str | None = None  # why the last engine process ended, in one line
        self.restarts = 0
        self.last_stats: Stats | None = None
        self._launch = launch
        self._on_state = on_state
        self._on_abandoned = on_abandoned
        self._pulse = Pulse(launch.heartbeat)
        self._state_when_well: State = "stopped"
        self._ended_because: str | None = None  # where we ended the process ourselves
        self._process: EngineProcess | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._streams: dict[str, AnswerStream] = {}
        self._calls: dict[str, asyncio.Future[Event]] = {}
        self._ids = itertools.count(1)
        self._load_failure: str | None = None
        self._ready_at: float | None = None
        self._restart_at = 0.0
        self._draining = False

    @property
    def pid(self) -> int | None:
        """The engine process's, None between two of them."""
        return None if self._process is None else self._process.pid

    @property
    def complaint(self) -> str | None:
        """What is wrong with an unresponsive engine, in one clause."""
        return self._pulse.complaint if self.state == "unresponsive" else None

    @property
    def log(self) -> tuple[str, ...]:
        """The last lines that the running engine process wrote."""
        return () if self._process is None else tuple(self._process.last_lines)

    # ── the engine's life ────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Spawn the engine process; returns at once, loading goes on. Once a client."""
        assert self._supervision is None, "an EngineClient is started once"
        self._enter("starting")
        self._supervision = asyncio.create_task(self._supervise(), name="ktllama-engine-supervisor")

    async def wait_ready(self) -> ModelInfo:
        """The model, once it is loaded. Raises EngineFailedError if it never will be."""
        while self.state not in ("ready", "draining"):
            if self.state in ("failed", "stopped"):
                raise EngineFailedError(self.failure or "the engine is not running")
            await self._changed.wait()
        assert self.model is not None
        return self.model

    async def drain(self) -> None:
        """Take no new work; returns when all running requests have ended and the engine process has exited."""
        self._draining = True
        if self._supervision is None or self._supervision.done():
            return
        running = (self._state_when_well if self.state == "unresponsive" else self.state) == "ready"
        self._enter("draining")
        if running:
            self._send(Drain())
            await asyncio.wait([self._supervision])  # a close in the meantime ends it too
        else:
            await self.close()

    async def close(self) -> None:
        """End the engine process now. What is in flight fails: `draining` if a drain was asked for."""
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.gather(self._supervision, return_exceptions=True)
        code = "draining" if self._draining else "engine_died"
        self._fail_all(code, "the server is shutting down", {})
        if self.state != "failed":
            self._enter("stopped")

    async def _supervise(self) -> None:
        try:
            await self._keep_alive()
        except Exception as error:  # a bug of ours, or of the state callback: nobody may wait for ever
            _log.exception("the engine's supervisor failed")
            self._give_up(f"the engine's supervisor failed: {error}")

    async def _keep_alive(self) -> None:
        """Run engine processes until one is the last."""
        deaths = 0  # in a row
        loads_failed = 0
        while True:
            life = await self._live()
            reason = life.reason
            if life.load_failure is not None:
                self._give_up(life.load_failure)
                return
            if self._draining:
                self._fail_all("engine_died", reason, {})
                self._enter("stopped")
                return
            loads_failed = loads_failed + 1 if life.ready_seconds is None else 0
            if loads_failed == LOAD_ATTEMPTS:
                self._give_up(f"{reason} (while loading, {LOAD_ATTEMPTS} times in a row)")
                return
            healthy = (life.ready_seconds or 0.0) >= self._launch.backoff.healthy_seconds
            deaths = 1 if healthy else deaths + 1
            self.failure = reason
            self.restarts += 1
            delay = self._launch.backoff.delay(deaths)
            self._restart_at = time.monotonic() + delay
            self._enter("restarting")
            self._fail_all("engine_died", reason, {"retry_after": self._retry_after()})
            await asyncio.sleep(delay)

    async def _live(self) -> _Life:
        """Run one engine process to its end."""
        self._ready_at = self._load_failure = self._ended_because = None
        self.load_fraction = 0.0
        try:
            process = await EngineProcess.spawn(self._launch, self._on_events)
        except OSError as error:
            return _Life(f"the engine process cannot be started: {error}", None, None)
        self._process = process
        assert process.ended is not None
        beating = asyncio.create_task(self._watch_pulse(process), name="ktllama-engine-pulse")
        try:
            process.send([self._launch.load()])
            status = await asyncio.shield(process.ended)
        finally:
            beating.cancel()
            self._process = None
            process.kill()
            await process.ended
        ready_seconds = None if self._ready_at is None else time.monotonic() - self._ready_at
        return _Life(self._ended_because or process.reason(status), self._load_failure, ready_seconds)

    async def _watch_pulse(self, process: EngineProcess) -> None:
        """Ask the process again and again whether it is well; end it when it has not been for too long."""
        heartbeat = self._launch.heartbeat
        self._pulse = Pulse(heartbeat)
        while True:
            self._send(Ping())
            await asyncio.sleep(heartbeat.beat_seconds)
            finding = self._pulse.beat()
            if finding == "hung":
                self._ended_because = f"the engine hung and was ended: {self._pulse.complaint}"
                process.kill()
                return
            if finding == "unresponsive" and self.state in ("loading", "ready"):
                self._state_when_well = self.state
                self._enter("unresponsive")
            elif finding == "well" and self.state == "unresponsive":
                self._enter(self._state_when_well)

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        self._fail_all("engine_died", reason, {})
        self._enter("failed")

    def _enter(self, state: State) -> None:
        if self.state == state:
            return
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()
        if self._on_state is not None:
            self._on_state(state)

    def _retry_after(self) -> int:
        """Whole seconds until an engine may be there again."""
        loading = self.model.load_seconds if self.model is not None else 0.0
        return max(1, math.ceil(self._restart_at - time.monotonic() + loading))

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────

    def generate(self, *requests: Generate) -> AnswerStream:
        """Send generations; their events, in the order in which they come."""
        stream = AnswerStream(len(requests), self._give_up_stream)
        for request in requests:
            refusal = self._refusal(request.request_id)
            if refusal is None:
                self._streams[request.request_id] = stream
                self._ask(request)
            else:
                stream.put(refusal)
        return stream

    def _give_up_stream(self, stream: AnswerStream) -> None:
        """Cancel what runs of a stream that nobody reads any more."""
        for request_id in [request_id for request_id, other in self._streams.items() if other is stream]:
            del self._streams[request_id]
            self._send(Cancel(request_id=request_id))
        for end in stream.unread_ends:
            self._abandon(end)

    async def tokenize(
        self, segments: Sequence[Segment], *, add_bos: bool = False, with_pieces: bool = False
    ) -> Tokenized:
        """Text to token ids. Raises EngineRequestError."""
        request_id = self._call_id()
        request = Tokenize(request_id=request_id, segments=tuple(segments), add_bos=add_bos, with_pieces=with_pieces)
        return await self._call(request_id, request, Tokenized)

    async def detokenize(self, tokens: Sequence[int], *, special: bool = True) -> bytes:
        """Token ids to bytes. Raises EngineRequestError."""
        request_id = self._call_id()
        request = Detokenize(request_id=request_id, tokens=tuple(tokens), special=special)
        return (await self._call(request_id, request, Detokenized)).text

    async def embed(self, prompts: Sequence[Sequence[int] | str]) -> Embedded:
        """Pooled, unit-length vectors, one a prompt. Raises EngineRequestError."""
        request_id = self._call_id()
        inputs = tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts)
        return await self._call(request_id, Embed(request_id=request_id, prompts=inputs), Embedded)

    async def stats(self) -> Stats:
        """Where the engine stands now. Raises EngineRequestError."""
        request_id = self._call_id()
        return await self._call(request_id, Report(request_id=request_id), Stats)

    def _call_id(self) -> str:
        return f"call-{next(self._ids)}"

    async def _call(self, request_id: str, request: Request, answer: type[_AnyEvent]) -> _AnyEvent:
        refusal = self._refusal(request_id)
        if refusal is not None:
            raise EngineRequestError(refusal.code, refusal.message, refusal.fields)
        future: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._calls[request_id] = future
        try:
            self._ask(request)
            event = await future
        finally:
            if self._calls.pop(request_id, None) is not None and not isinstance(request, Report):
                self._send(Cancel(request_id=request_id))
        if isinstance(event, Failed):
            raise EngineRequestError(event.code, event.message, event.fields)
        assert isinstance(event, answer)
        return event

    def _refusal(self, request_id: str) -> Failed | None:
        """Why a request cannot be sent now, as its answer."""
        if request_id in self._streams or request_id in self._calls:
            raise ValueError(f"request id {request_id!r} is in use")
        fields: dict[str, int | float | str] = {}
        if self.state == "ready":
            return None
        if self.state in ("starting", "loading"):
            fields = {"retry_after": 5, "fraction": self.load_fraction}
            return Failed(request_id=request_id, code="loading", message="the model is being loaded", fields=fields)
        if self.state == "restarting":
            fields = {"retry_after": self._retry_after()}
            message = f"the engine is being restarted: {self.failure}"
            return Failed(request_id=request_id, code="engine_died", message=message, fields=fields)
        if self.state == "unresponsive":
            message = f"the engine does not answer: {self._pulse.complaint}"
            fields = {"retry_after": 5}
            return Failed(request_id=request_id, code="engine_unresponsive", message=message, fields=fields)
        if self.state == "failed":
            return Failed(request_id=request_id, code="engine_died", message=f"the engine has failed: {self.failure}")
        return Failed(request_id=request_id, code="draining", message="the server is shutting down")

    def _ask(self, request: Request) -> None:
        """Send a request that has somebody waiting for its answer."""
        try:
            self._send(request)
        except FrameError as error:
            request_id = getattr(request, "request_id", "")
            self._deliver(Failed(request_id=request_id, code="not_supported", message=str(error)))

    def _send(self, request: Request) -> None:
        if self._process is not None:
            self._process.send([request])

    def _on_events(self, events: list[Event]) -> None:
        self._pulse.heard()
        for event in events:
            if isinstance(event, Emitted):
                stream = self._streams.get(event.request_id)
                if stream is not None:  # there is none after a cancel
                    stream.put(event)
            elif isinstance(event, Accepted | Finished | Failed | Tokenized | Detokenized | Embedded):
                self._deliver(event)
            elif isinstance(event, Stats):
                self.last_stats = event
                if event.request_id is not None:
                    self._deliver(event)
            elif isinstance(event, Pong):
                self._pulse.told(step_seconds=event.step_seconds, reading_seconds=event.reading_seconds)
            elif isinstance(event, Loading):
                self.load_fraction = event.fraction
                if self.state == "starting":
                    self._enter("loading")
            elif isinstance(event, Ready):
                self.model = event.model
                self.load_fraction = 1.0
                self._ready_at = time.monotonic()
                self._enter("draining" if self._draining else "ready")
            elif isinstance(event, LoadFailed):
                self._load_failure = event.message

    def _deliver(self, event: Accepted | Finished | Failed | Tokenized | Detokenized | Embedded | Stats) -> None:
        """Hand an event to whoever waits for it; nobody does after a cancel."""
        assert event.request_id is not None
        if isinstance(event, Finished | Failed):
            stream = self._streams.pop(event.request_id, None)
            if stream is None and isinstance(event, Finished):
                self._abandon(event)
        else:
            stream = self._streams.get(event.request_id)
        if stream is not None:
            assert isinstance(event, Accepted | Finished | Failed)
            stream.put(event)
            return
        future = self._calls.pop(event.request_id, None)
        if future is not None and not future.done():
            future.set_result(event)

    def _abandon(self, end: Finished) -> None:
        if self._on_abandoned is not None:
            self._on_abandoned(end)

    def _fail_all(self, code: str, message: str, fields: dict[str, int | float | str]) -> None:
        for request_id in [*self._streams, *self._calls]:
            self._deliver(Failed(request_id=request_id, code=code, message=message, fields=fields))


@dataclass(frozen=True, slots=True)
class _Life:
    """How an engine process ended. `ready_seconds` is how long it was ready, None if it never was."""

    reason: str
    load_failure: str | None
    ready_seconds: float | None
