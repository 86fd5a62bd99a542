"""An engine process of this program's own; the answers take the same way as a server's."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from ktllama.chatting.speaker import Ended, Question, Said, SpeakerError
from ktllama.engine.client import EngineClient
from ktllama.engine.errors import EngineFailedError
from ktllama.engine.launch import Launch
from ktllama.engine.messages import Emitted, Failed, Finished
from ktllama.server.bodies import validated
from ktllama.server.chat import planned
from ktllama.server.errors import ApiError, from_failed
from ktllama.server.protocol.chat import ChatRequest
from ktllama.server.state import EndpointSettings, ServerState

_Result = TypeVar("_Result")
_PROGRESS_SECONDS = 0.1


class EngineSpeaker:
    """Starts an engine with :meth:`start`. The engine is watched from a thread, so it is cared for between questions.

    All methods belong to the main thread, which is the one that Ctrl-C interrupts.
    """

    def __init__(self, launch: Launch, settings: EndpointSettings) -> None:
        self._launch = launch
        self._settings = settings
        self._state: ServerState | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ktllama-engine", daemon=True)
        self._thread.start()

    def start(self, progress: Callable[[float], None]) -> None:
        """Load the model; ``progress`` hears the share. Raises EngineFailedError."""
        client = EngineClient(self._launch)
        self._state = ServerState(client=client, settings=self._settings)
        try:
            self._run(client.start())
            ready = self._begin(client.wait_ready())
            while not _done(ready, _PROGRESS_SECONDS):
                progress(client.load_fraction)
            ready.result()
        except BaseException:
            self._end_client()
            raise

    def restart(self, launch: Launch, progress: Callable[[float], None]) -> None:
        """Load again, as ``launch`` says; if that fails or is interrupted, as before.

        Raises EngineFailedError or KeyboardInterrupt after that. Interrupted once more, there is no engine until the
        next restart.
        """
        before, self._launch = self._launch, launch
        try:
            self._end_client()
            self.start(progress)
        except BaseException:
            self._launch = before
            self._end_client()
            self.start(progress)
            raise

    @property
    def name(self) -> str:
        """The model's."""
        return self._ready_state().model_name

    def plan(self) -> tuple[str, ...]:
        """The placement by device. Raises SpeakerError."""
        with _as_speaker_error():
            return self._ready_state().model.plan

    def answer(self, question: Question, hear: Callable[[Said], None]) -> Ended:
        """See `speaker.Speaker`."""
        pieces: SimpleQueue[Said | None] = SimpleQueue()
        speaking = self._begin(self._speak(question, pieces))
        try:
            while (piece := pieces.get()) is not None:
                hear(piece)
            with _as_speaker_error():
                return speaking.result()
        except BaseException:
            speaking.cancel()
            raise

    async def _speak(self, question: Question, pieces: SimpleQueue[Said | None]) -> Ended:
        try:
            state = self._ready_state()
            body, _ = validated({"messages": list(question.messages), **question.fields}, ChatRequest)
            (choice,) = planned(state, body).choices
            with contextlib.closing(state.client.generate(choice.generate)) as events:
                async for event in events:
                    if isinstance(event, Failed):
                        raise from_failed(event)
                    if isinstance(event, Finished):
                        return _ended(event)
                    if isinstance(event, Emitted):
                        for kind, text in event.deltas:
                            pieces.put(Said(kind=kind, text=text))
            raise AssertionError("a generation ended without its end")
        finally:
            pieces.put(None)

    def close(self) -> None:
        """End the engine and the thread."""
        if self._thread.is_alive():
            self._end_client()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _end_client(self) -> None:
        if self._state is not None:
            self._run(self._state.client.close())  # also of one that is being closed, where that was interrupted
            self._state = None

    def _ready_state(self) -> ServerState:
        if self._state is None:
            raise SpeakerError("there is no engine")
        return self._state

    def _begin(self, work: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return self._begin(work).result()


def _ended(event: Finished) -> Ended:
    return Ended(
        reason="repetition" if event.repetition else event.reason,
        prompt_tokens=event.usage.prompt_tokens,
        completion_tokens=event.usage.completion_tokens,
        reasoning_tokens=event.usage.reasoning_tokens,
    )


def _done(future: Future[Any], seconds: float) -> bool:
    try:
        future.exception(timeout=seconds)
    except TimeoutError:
        return False
    return True


@contextlib.contextmanager
def _as_speaker_error() -> Iterator[None]:
    try:
        yield
    except (ApiError, EngineFailedError) as fault:
        raise SpeakerError(str(fault)) from fault
