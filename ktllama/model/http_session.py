"""Asks web servers, for the reading of one model: bounded in time and bytes, every failure a clear sentence.

Redirects are followed here and not by urllib, which would send credentials along to other hosts.
"""

from __future__ import annotations

import functools
import http
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from types import TracebackType
from typing import Any
from urllib.error import URLError
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

import ktllama
from ktllama.errors import ModelFileError
from ktllama.model import address as addresses
from ktllama.model.address import Address
from ktllama.model.gguf_cursor import MAX_HEADER_BYTES

HUB = "https://huggingface.co"
MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How servers are asked. ``hub_token`` is sent to ``hub`` only; ``proxies`` maps schemes to proxies.

    ``wait_seconds`` bounds one connection and one wait for bytes, ``total_seconds`` the reading of a model.
    """

    hub: str = HUB
    hub_token: str | None = field(default=None, repr=False)
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    wait_seconds: float = 10.0
    total_seconds: float = 120.0


class Session:
    """The requests for one model. ``bytes_left`` of bodies may still be read. Use it in a ``with`` block."""

    def __init__(self, access: Access, *, max_bytes: int = MAX_HEADER_BYTES) -> None:
        self.access = access
        self.max_bytes = max_bytes
        self.bytes_left = max_bytes
        self._deadline = _Deadline(access.total_seconds)
        self._opener = _opener(access.proxies, self._deadline)
        self._hub_origin = addresses.parse(access.hub).origin

    def __enter__(self) -> Session:
        self._deadline.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadline.cancel()

    def is_hub(self, address: Address) -> bool:
        """Whether ``address`` is the Hugging Face Hub's."""
        return address.origin == self._hub_origin

    def authorized(self, address: Address) -> Address:
        """``address`` with the hub's token, if it is the hub's and has no credentials of its own."""
        if self.access.hub_token and address.authorization is None and self.is_hub(address):
            return Address(address.url, f"Bearer {self.access.hub_token}")
        return address

    def get(self, address: Address, headers: Mapping[str, str], *, shown: str) -> tuple[HTTPResponse, Address]:
        """The answer, whatever its status, and the address that gave it after redirects.

        Raises:
            ModelFileError: when there is none.
        """
        for _ in range(MAX_REDIRECTS + 1):
            response = self._ask(address, headers, shown)
            if response.status not in _REDIRECTS:
                if response.status < http.HTTPStatus.MULTIPLE_CHOICES:
                    _check_encoding(response, shown)
                return response, address
            location = response.headers.get("Location")
            response.close()
            if not location:
                raise ModelFileError(
                    shown, f"the server answers {described(response.status)} and does not say where to"
                )
            address = address.redirected(location)
        raise ModelFileError(shown, f"redirects more than {MAX_REDIRECTS} times")

    def read(self, response: HTTPResponse, n_bytes: int, *, shown: str) -> bytes:
        """Up to ``n_bytes`` of a body; fewer only where it ends.

        Raises:
            ModelFileError: when the connection fails, time is over, or a model's bytes are used up.
        """
        if n_bytes > self.bytes_left:
            raise ModelFileError(shown, f"its header is not read within {self.max_bytes:,} bytes")
        pieces: list[bytes] = []
        left = n_bytes
        with self._told(shown):
            while left and (piece := response.read1(min(left, _PIECE_BYTES))):
                self._deadline.check()
                pieces.append(piece)
                left -= len(piece)
            self._deadline.check()  # its end may be our own shutting down
        self.bytes_left -= n_bytes - left
        return b"".join(pieces)

    def body(self, address: Address, max_bytes: int, *, shown: str) -> bytes:
        """The whole body of a successful answer.

        Raises:
            ModelFileError: for another answer than 200, and a body longer than ``max_bytes`` or broken off.
        """
        response, last = self.get(self.authorized(address), {}, shown=shown)
        with response:
            if response.status != http.HTTPStatus.OK:
                raise self.refusal(response, last, shown=shown)
            promised = response.length
            content = self.read(response, max_bytes + 1, shown=shown)
        if len(content) > max_bytes:
            raise ModelFileError(shown, f"the server's answer is over {max_bytes:,} bytes")
        if promised is not None and len(content) < promised:
            raise broken_off(shown, len(content), promised)
        return content

    def refusal(self, response: HTTPResponse, address: Address, *, shown: str) -> ModelFileError:
        """The error for an answer that gives nothing."""
        advice = _advice(response.status, response.headers.get("Retry-After"), from_hub=self.is_hub(address))
        return ModelFileError(shown, f"the server answers {described(response.status)}{advice}")

    def _ask(self, address: Address, headers: Mapping[str, str], shown: str) -> HTTPResponse:
        sent = {"User-Agent": f"ktllama/{ktllama.__version__}", "Accept-Encoding": "identity", **headers}
        if address.authorization:
            sent["Authorization"] = address.authorization
        with self._told(shown):
            self._deadline.check()
            response = self._opener.open(Request(address.url, headers=sent), timeout=self.access.wait_seconds)
        assert isinstance(response, HTTPResponse)
        return response

    @contextmanager
    def _told(self, shown: str) -> Iterator[None]:
        """Failures of the network as sentences."""
        try:
            yield
        except (OSError, HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
            if self._deadline.is_over:
                reason = f"the server is too slow: not done within {self.access.total_seconds:g} s"
            elif isinstance(cause, TimeoutError):
                reason = f"the server is too slow: nothing came for {self.access.wait_seconds:g} s"
            else:
                reason = _failure(cause)
            raise ModelFileError(shown, reason) from error


def described(status: int) -> str:
    """``HTTP 404 Not Found``; the words are the standard's, not the server's."""
    try:
        return f"HTTP {status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def broken_off(shown: str, n_bytes: int, promised: int) -> ModelFileError:
    """The error for a body shorter than promised."""
    return ModelFileError(shown, f"the connection broke off after {n_bytes:,} of {promised:,} bytes; try again")


def _check_encoding(response: HTTPResponse, shown: str) -> None:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        response.close()
        raise ModelFileError(shown, "the server compresses the file, though it was asked not to, so it cannot be read")


def _advice(status: int, retry_after: str | None, *, from_hub: bool) -> str:
    if status in (401, 403) and from_hub:
        return "; the repository is private or gated, or does not exist: set HF_TOKEN to a token that may read it"
    if status in (401, 403):
        return "; the file needs a login: give the address as https://USER:PASSWORD@HOST/FILE"
    if status in (404, 410):
        return "; check the address"
    if status == http.HTTPStatus.TOO_MANY_REQUESTS:
        seconds = (
            f" in {retry_after} s" if retry_after and retry_after.isascii() and retry_after.isdecimal() else " later"
        )
        return f"; try again{seconds}"
    return "; try again later" if status >= 500 else ""


def _failure(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no secure connection: {error.reason or error}"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "the host's name cannot be resolved; is there a network?"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the server closed the connection without an answer"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection broke off; try again"
    if isinstance(error, OSError):
        return f"cannot be reached: {error.strerror or error}"
    return f"the server's answer is not HTTP ({type(error).__name__})"


# --- Time -------------------------------------------------------------------------------------------------------------


class _Deadline:
    """Ends connections when time is over. A server that drips bytes never runs into a socket's timeout."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, self._shut_down)
        self._timer.daemon = True
        self._socket: socket.socket | None = None

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def start(self) -> None:
        self._timer.start()

    def cancel(self) -> None:
        self._timer.cancel()

    def check(self) -> None:
        if self.is_over:
            raise TimeoutError

    def watch(self, connected: socket.socket) -> None:
        self._socket = connected
        self.check()  # the timer may have run out while the connection was made

    def _shut_down(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # not TLS's own, which another thread is in


class _Connection(HTTPConnection):
    def __init__(self, *args: Any, deadline: _Deadline, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deadline = deadline

    def connect(self) -> None:
        super().connect()
        self._deadline.watch(self.sock)


class _TlsConnection(HTTPSConnection):
    def __init__(self, *args: Any, deadline: _Deadline, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deadline = deadline

    def connect(self) -> None:
        super().connect()
        self._deadline.watch(self.sock)


class _Http(HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._connection: Any = functools.partial(_Connection, deadline=deadline)

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self._connection, req)


class _Https(HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._connection: Any = functools.partial(_TlsConnection, deadline=deadline)
        self._tls = ssl.create_default_context()

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self._connection, req, context=self._tls)


def _opener(proxies: Mapping[str, str], deadline: _Deadline) -> OpenerDirector:
    """Without urllib's handlers of redirects and errors: every answer comes back as it is."""
    opener = OpenerDirector()
    for handler in (ProxyHandler(dict(proxies)), _Http(deadline), _Https(deadline)):
        opener.add_handler(handler)
    return opener
