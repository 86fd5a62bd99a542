"""An engine of one's own: it is there again after whatever came between it and its restart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ktllama.chatting.engine_speaker import EngineSpeaker
from ktllama.chatting.speaker import Question, Said, SpeakerError
from ktllama.engine.errors import EngineFailedError
from ktllama.engine.launch import Launch
from ktllama.server.state import EndpointSettings
from tests.server.live import FAKE

SLOW = Launch(executor=FAKE, options={"load_seconds": 600.0})
BROKEN = Launch(executor=FAKE, options={"no": "such option"})


class Interrupting:
    """Hears of the load, and is Ctrl-C the first times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, _: float) -> None:
        if self.times:
            self.times -= 1
            raise KeyboardInterrupt


@pytest.fixture
def speaker() -> Iterator[EngineSpeaker]:
    made = EngineSpeaker(Launch(executor=FAKE, options={"load_seconds": 0.5}), EndpointSettings())
    try:
        made.start(Interrupting(0))
        yield made
    finally:
        made.close()


def said(speaker: EngineSpeaker) -> str:
    heard: list[Said] = []
    speaker.answer(Question(messages=[{"role": "user", "content": "hi"}], fields={"max_tokens": 8}), heard.append)
    return "".join(piece.text for piece in heard)


def test_an_interrupted_restart_brings_the_model_back(speaker: EngineSpeaker) -> None:
    before = said(speaker)
    with pytest.raises(KeyboardInterrupt):
        speaker.restart(SLOW, Interrupting(1))
    assert speaker.plan() == ("CPU: everything",)
    assert said(speaker) == before != ""


def test_a_failed_restart_brings_the_model_back(speaker: EngineSpeaker) -> None:
    before = said(speaker)
    with pytest.raises(EngineFailedError):
        speaker.restart(BROKEN, Interrupting(0))
    assert said(speaker) == before


def test_interrupted_twice_there_is_no_engine_until_the_next_restart(speaker: EngineSpeaker) -> None:
    with pytest.raises(KeyboardInterrupt):
        speaker.restart(SLOW, Interrupting(2))
    with pytest.raises(SpeakerError, match="there is no engine"):
        said(speaker)
    speaker.restart(Launch(executor=FAKE, options={}), Interrupting(0))
    assert said(speaker) != ""
