"""Reads the headers of models on web servers, by HTTP range requests: megabytes of a file of hundreds of gigabytes.

A server that knows no ranges sends the whole file; then its beginning is read and the connection closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse

from ktllama.errors import ModelFileError
from ktllama.model import address as addresses
from ktllama.model import gguf
from ktllama.model.address import Address
from ktllama.model.byte_source import ByteSource
from ktllama.model.http_session import Access, Session, broken_off
from ktllama.model.model_file import ModelFile

FIRST_CHUNK_BYTES = 1024**2
_PART_CHUNK_BYTES = 64 * 1024  # a further part of a split file has a short header: no vocabulary
_OK, _PARTIAL, _NOT_SATISFIABLE = 200, 206, 416

_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>\d{1,19})-(?P<last>\d{1,19})|\*)/(?:(?P<total>\d{1,19})|\*)", re.ASCII)
_HUB_PAGE = re.compile(r"(https?://[^/]+/[^/]+/[^/]+)/blob/")


def read_url(url: str, access: Access | None = None) -> ModelFile:
    """Read the header of the model at an http or https address; of a split one, the first file's.

    Raises:
        ModelFileError: as :func:`ktllama.model.gguf.read`, and for servers that do not give the file.
    """
    with Session(access or Access()) as session:
        return read(session, addresses.parse(url))


def read(session: Session, address: Address) -> ModelFile:
    """Like :func:`read_url`, within a session."""
    return gguf.read_from(RemoteFile(session, session.authorized(file_behind(session, address))), header_only=True)


def file_behind(session: Session, address: Address) -> Address:
    """The file, where ``address`` is the hub's page about it, which is what browsers show."""
    if not session.is_hub(address):
        return address
    return Address(_HUB_PAGE.sub(r"\1/resolve/", address.url), address.authorization)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a server; a :class:`ktllama.model.byte_source.Location`."""

    session: Session
    address: Address
    first_chunk_bytes: int = FIRST_CHUNK_BYTES

    @property
    def shown(self) -> str:
        """Its address without secrets."""
        return self.address.shown

    @property
    def file_name(self) -> str:
        """Its own name, without folders."""
        return self.address.file_name

    def sibling(self, file_name: str) -> RemoteFile:
        """The file of that name in the same folder."""
        return RemoteFile(self.session, self.address.sibling(file_name), _PART_CHUNK_BYTES)

    def is_missing(self) -> bool:
        """False: to know it, one must ask, and reading it asks."""
        return False

    @contextmanager
    def open(self) -> Iterator[ByteSource]:
        """Ask for its first chunk."""
        source = _RemoteBytes(self)
        try:
            source.begin()
            yield source
        finally:
            source.close()


class _RemoteBytes:
    """The bytes of a remote file. ``_body`` is open while a server without ranges sends the whole of it."""

    def __init__(self, file: RemoteFile) -> None:
        self.size: int | None = None
        self._session = file.session
        self._shown = file.shown
        self._address = file.address
        self._chunk_bytes = file.first_chunk_bytes
        self._body: HTTPResponse | None = None
        self._first = b""

    def begin(self) -> None:
        """Ask for the first chunk, whose answer says how long the file is."""
        self._first = self._next(0, 1)

    def read_at(self, offset: int, length: int) -> bytes:
        if offset == 0:
            return self._first
        return self._next(offset, length)

    def close(self) -> None:
        if self._body is not None:
            self._body.close()

    def _next(self, offset: int, length: int) -> bytes:
        n_bytes = self._wanted(offset, length)
        if n_bytes == 0:
            return b""
        self._chunk_bytes *= 2
        return self._range(offset, n_bytes) if self._body is None else self._from_body(self._body, offset, n_bytes)

    def _wanted(self, offset: int, length: int) -> int:
        """Bytes to ask for: a chunk if the file and the session have as many left, but ``length`` in any case."""
        wanted = max(length, min(self._chunk_bytes, self._session.bytes_left))
        return wanted if self.size is None else min(wanted, self.size - offset)

    def _range(self, offset: int, n_bytes: int) -> bytes:
        asked = {"Range": f"bytes={offset}-{offset + n_bytes - 1}"}
        response, self._address = self._session.get(self._address, asked, shown=self._shown)
        if response.status == _OK and offset == 0:
            self.size, self._body = response.length, response
            return self._from_body(response, offset, self._wanted(0, n_bytes))
        with response:
            if response.status == _PARTIAL:
                return self._from_range(response, offset, n_bytes)
            if response.status == _NOT_SATISFIABLE and self._ends_at(response.headers, offset):
                self.size = offset
                return b""
            if response.status == _OK:
                raise ModelFileError(self._shown, "the server gave a range of the file, then no longer; try again")
            raise self._session.refusal(response, self._address, shown=self._shown)

    def _from_range(self, response: HTTPResponse, offset: int, n_bytes: int) -> bytes:
        promised, total = self._checked_range(response, offset, n_bytes)
        if self.size is not None and total != self.size:
            raise ModelFileError(self._shown, "changed while it was read; try again")
        self.size = total
        content = self._session.read(response, promised, shown=self._shown)
        if len(content) < promised:
            raise broken_off(self._shown, len(content), promised)
        return content

    def _checked_range(self, response: HTTPResponse, offset: int, n_bytes: int) -> tuple[int, int | None]:
        """How many bytes the answer promises, and the file's length if it says so."""
        said = response.headers.get("Content-Range", "")
        found = _CONTENT_RANGE.fullmatch(said)
        if found is None or found["first"] is None:
            raise ModelFileError(self._shown, "the server gives a range of the file and does not say which")
        first, last = int(found["first"]), int(found["last"])
        total = int(found["total"]) if found["total"] else None
        promised = last - first + 1
        if first != offset or not 0 < promised <= n_bytes or (total is not None and total <= last):
            raise ModelFileError(
                self._shown, f"the server gives {said!r}, asked for bytes {offset}-{offset + n_bytes - 1}"
            )
        if response.length not in (None, promised):
            raise ModelFileError(self._shown, f"the server gives {said!r} in {response.length:,} bytes")
        return promised, total

    def _ends_at(self, headers: HTTPMessage, offset: int) -> bool:
        """Whether a range is refused because the file, whose length was not known, ends where it begins."""
        found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        said = int(found["total"]) if found and found["total"] else None
        return said == offset or (said is None and self.size is None and offset > 0)

    def _from_body(self, body: HTTPResponse, offset: int, n_bytes: int) -> bytes:
        content = self._session.read(body, n_bytes, shown=self._shown)
        if self.size is not None and len(content) < n_bytes:
            raise broken_off(self._shown, offset + len(content), self.size)
        return content
