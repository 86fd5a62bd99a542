"""Reads numbers, strings and counts from the bytes of a GGUF header, never past its end and never without bound."""

from __future__ import annotations

import struct
from struct import Struct
from typing import Any, NoReturn

from ktllama.errors import ModelFileError
from ktllama.model.byte_source import ByteSource

MAX_HEADER_BYTES = 128 * 1024**2  # ours; the header of DeepSeek-R1 has 5 MB

U32 = Struct("<I")
U64 = Struct("<Q")


class Cursor:
    """A position in the bytes of a header. Every read is checked before it is made, if the file's size is known.

    ``path`` names the file in messages; ``file_bytes`` is its length, or None.
    """

    __slots__ = ("_data", "_source", "file_bytes", "path", "position")

    def __init__(self, path: str, source: ByteSource) -> None:
        self.path = path
        self.file_bytes = source.size
        self.position = 0
        self._source = source
        self._data = b""

    def fail(self, reason: str, offset: int) -> NoReturn:
        """Raise what was found at byte ``offset``."""
        raise ModelFileError(self.path, reason, offset=offset)

    def expect(self, n_bytes: int, what: str, offset: int | None = None) -> None:
        """Make sure that the file can hold ``n_bytes`` more, without reading them."""
        if self.file_bytes is None:
            return
        left = self.file_bytes - self.position  # negative after a string that reaches past the file's end
        if n_bytes > left:
            at = min(self.position if offset is None else offset, self.file_bytes)
            self.fail(f"is cut off or damaged: it ends within {what}", at)

    def peek(self, n_bytes: int) -> bytes:
        """The next bytes, fewer at the file's end."""
        end = self.position + n_bytes
        self._fetch(end if self.file_bytes is None else min(end, self.file_bytes))
        return self._data[self.position : self.position + n_bytes]

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next ``n_bytes``, which are ``what``."""
        start = self.position
        self.skip(n_bytes, what)
        return self._data[start : self.position]

    def skip(self, n_bytes: int, what: str) -> None:
        """Go past the next ``n_bytes``."""
        self.expect(n_bytes, what)
        self._load(self.position + n_bytes, what)
        self.position += n_bytes

    # Any: the item's type depends on the struct's format.
    def unpack(self, layout: Struct, what: str) -> tuple[Any, ...]:
        """The values of a struct."""
        start = self.position
        self.skip(layout.size, what)
        return layout.unpack_from(self._data, start)

    def u32(self, what: str) -> int:
        """An unsigned number of 32 bits."""
        return int(self.unpack(U32, what)[0])

    def u64(self, what: str) -> int:
        """An unsigned number of 64 bits."""
        return int(self.unpack(U64, what)[0])

    def count(self, what: str, *, smallest_bytes: int, limit: int) -> int:
        """How many ``what`` follow, each of which takes at least ``smallest_bytes``."""
        at = self.position
        n_items = self.u64(f"the number of {what}")
        self.expect(n_items * smallest_bytes, f"a header with {n_items:,} {what}", at)
        if n_items > limit:
            self.fail(f"has {n_items:,} {what}; at most {limit:,} are read", at)
        return n_items

    def name(self, what: str, max_bytes: int) -> str:
        """A string that must be UTF-8 and no longer than ``max_bytes``."""
        at = self.position
        n_bytes = self.u64(what)
        self.expect(n_bytes, what, at)
        if n_bytes > max_bytes:
            self.fail(f"{what} is {n_bytes:,} bytes long; at most {max_bytes:,} are allowed", at)
        try:
            return self.take(n_bytes, what).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8", at)

    def text(self, what: str) -> str:
        """A string; bytes that are not UTF-8 become ``\\xNN``."""
        return self.take(self.u64(what), what).decode("utf-8", errors="backslashreplace")

    def skip_strings(self, n_items: int, what: str) -> None:
        """Walk over strings by their lengths: the one loop that a large vocabulary makes long."""
        unpack_length = U64.unpack_from
        position, left = self.position, n_items
        while left:
            data = self._data
            try:
                while left:
                    position += 8 + unpack_length(data, position)[0]
                    left -= 1
            except (struct.error, OverflowError):
                self.position = position
                self.expect(8, what)
                self._load(position + 8, what)
        self.position = position
        self.expect(0, what)

    def _load(self, end: int, what: str) -> None:
        """Hold the file's bytes up to ``end``, which :meth:`expect` has checked."""
        if end <= len(self._data):
            return
        if end > MAX_HEADER_BYTES:
            self.fail(f"is damaged: with {what} its header is over {MAX_HEADER_BYTES:,} bytes", self.position)
        size_was_known = self.file_bytes is not None
        self._fetch(end)
        if end <= len(self._data):
            return
        if size_was_known:  # it shrank since we asked for its size
            self.fail("became shorter while it was read", len(self._data))
        self.expect(end - self.position, what)

    def _fetch(self, end: int) -> None:
        """Read up to ``end`` or the file's end, whose place is known then."""
        while len(self._data) < end:
            more = self._source.read_at(len(self._data), end - len(self._data))
            if not more:
                self.file_bytes = len(self._data)
                return
            self._data += more
