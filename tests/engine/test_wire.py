"""Frames arrive whole, however the bytes come, and nonsense is refused."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktllama.engine import wire
from ktllama.engine.messages import (
    FAILURES,
    Accepted,
    Cancel,
    Detokenize,
    Drain,
    Embed,
    Emitted,
    Event,
    Failed,
    Finished,
    Generate,
    Load,
    Loading,
    Report,
    Request,
    Sampling,
    Segment,
    Thinking,
    Tokenize,
    TokenLogprob,
    Usage,
)

REQUESTS: list[Request] = [
    Load(executor="a:b", options={"n": 1, "nested": {"x": [1, 2.5, None, "s"]}}, queue_limit=3),
    Generate(
        request_id="r",
        prompt=(Segment("<think>", True), Segment("text", False)),
        max_tokens=5,
        sampling=Sampling(temperature=0.6, logit_bias={7: -100.0}, seed=2**63),
        thinking=Thinking(start="<think>", end="</think>", begins_inside=True, budget=3, closing="</think>"),
        stop=("\n", "End"),
        logprobs=2,
        deterministic=True,
    ),
    Generate(request_id="ids", tokens=(1, 2, 3)),
    Cancel(request_id="r"),
    Embed(request_id="e", prompts=("text", (1, 2))),
    Tokenize(request_id="t", segments=(Segment("x", False),)),
    Detokenize(request_id="d", tokens=(1,)),
    Drain(),
    Report(request_id="s"),
]
LOGPROB = TokenLogprob(token=1, piece=b"\xff", logprob=-0.5, top=((1, b"\xff", -0.5),))
USAGE = Usage(prompt_tokens=1, cached_tokens=0, completion_tokens=2, reasoning_tokens=1)
EVENTS: list[Event] = [
    Loading(fraction=0.5),
    Accepted(request_id="r", prompt_tokens=2),
    Emitted(
        request_id="r",
        deltas=(("reasoning", "hm"), ("content", "é")),
        tokens=2,
        logprobs=(LOGPROB,),
        logprob_kinds=("reasoning",),
    ),
    Finished(request_id="r", reason="stop", usage=USAGE, stop="\n"),
    Failed(request_id="r", code="queue_full", message="full", fields={"queued": 3, "retry_after": 1.5}),
]


def bodies(data: bytes) -> list[bytearray]:
    return wire.FrameSplitter().feed(data)


def test_every_message_survives_the_wire() -> None:
    (body,) = bodies(wire.frame(REQUESTS))
    assert wire.requests(body) == REQUESTS
    (body,) = bodies(wire.frame(EVENTS))
    assert wire.events(body) == EVENTS


@given(st.lists(st.integers(1, 40), max_size=200))
def test_frames_come_whole_however_the_bytes_come(sizes: list[int]) -> None:
    data = b"".join(wire.frame([event]) for event in EVENTS)
    splitter = wire.FrameSplitter()
    found: list[Event] = []
    start = 0
    for size in [*sizes, len(data)]:
        for body in splitter.feed(data[start : start + size]):
            found += wire.events(body)
        start += size
    assert found == EVENTS
    assert splitter.rest == 0


def test_a_frame_over_the_limit_is_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(wire.FrameError, match="a frame of 4294967295 bytes"):
        wire.FrameSplitter().feed(b"\xff\xff\xff\xff")
    monkeypatch.setattr(wire, "FRAME_LIMIT", 10)
    with pytest.raises(wire.FrameError, match="at most 10 can be sent"):
        wire.frame([Cancel(request_id="longer than that")])


@pytest.mark.parametrize(
    "body", [b"", b"\x91", msgspec.msgpack.encode([{"type": "Nothing"}]), b"\x91\x81\xa4type\xa6Cancel"]
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(wire.FrameError):
        wire.requests(body)


def test_a_frame_waits_for_its_last_byte() -> None:
    data = wire.frame([Drain()])
    splitter = wire.FrameSplitter()
    assert splitter.feed(data[:-1]) == []
    assert splitter.rest == len(data) - 1
    (body,) = splitter.feed(data[-1:])
    assert wire.requests(body) == [Drain()]
    assert struct.unpack("<I", data[:4]) == (len(body),)


def test_failures_are_statuses() -> None:
    assert all(400 <= status < 600 for status in FAILURES.values())
