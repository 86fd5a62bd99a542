"""Frames on the socket between the API process and the engine: four bytes of length, then a MessagePack list.

A frame holds the messages of one step, so that a step costs one write however many requests it served.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from ktllama.engine.messages import Event, Request

_LENGTH = struct.Struct("<I")

#: Bytes of the longest frame that either side takes. The longest honest one is a prompt of a million tokens.
FRAME_LIMIT = 256 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(list[Request])
_events = msgspec.msgpack.Decoder(list[Event])


class FrameError(Exception):
    """What came is no frame: too long, cut off, or not messages. The connection cannot be read any further."""


def frame(messages: Sequence[Request | Event]) -> bytes:
    """The bytes of one frame. Raises FrameError if it is over the limit."""
    body = _encoder.encode(messages)
    if len(body) > FRAME_LIMIT:
        raise FrameError(f"a message of {len(body)} bytes, at most {FRAME_LIMIT} can be sent")
    return _LENGTH.pack(len(body)) + body


def requests(body: bytes | bytearray) -> list[Request]:
    """The requests of a frame's body."""
    try:
        return _requests.decode(body)
    except msgspec.MsgspecError as error:
        raise FrameError(str(error)) from error


def events(body: bytes | bytearray) -> list[Event]:
    """The events of a frame's body."""
    try:
        return _events.decode(body)
    except msgspec.MsgspecError as error:
        raise FrameError(str(error)) from error


class FrameSplitter:
    """Cuts bytes that come in any pieces into the bodies of frames."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytearray]:
        """The bodies that are complete now. Raises FrameError at a length over the limit."""
        held = self._held
        held += data
        bodies = []
        start = 0
        while len(held) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held, start)
            if length > FRAME_LIMIT:
                raise FrameError(f"a frame of {length} bytes, at most {FRAME_LIMIT} are taken")
            end = start + _LENGTH.size + length
            if len(held) < end:
                break
            bodies.append(held[start + _LENGTH.size : end])
            start = end
        del held[:start]
        return bodies

    @property
    def rest(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._held)
