"""Who may ask: API keys, and the names under which a server on this machine may be addressed."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ktllama.errors import KtllamaError
from ktllama.server.errors import ApiError
from ktllama.server.refusal import refuse

#: Paths that answer without a key: whoever watches the server must not need one.
OPEN_PATHS = frozenset({"/health"})
_LONGEST_KEY = 4096


class KeyFileError(KtllamaError):
    """A key file that cannot be used. It says the line, never what is in it."""

    def __init__(self, path: str, reason: str, *, line: int | None = None) -> None:
        self.path = path
        self.reason = reason
        self.line = line
        super().__init__(path, reason, line)

    def __str__(self) -> str:
        return f"{self.path}{'' if self.line is None else f':{self.line}'}: {self.reason}"


class Keys:
    """API keys, kept as digests: all are of one length, and no key is in memory to be shown by accident."""

    __slots__ = ("_digests",)

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, given: object) -> bool:
        """Whether ``given`` (bytes) is a key; it takes as long for each, whichever matches."""
        assert isinstance(given, bytes)
        digest = _digest(given)
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(path: str) -> Keys:
    """The keys of a file: one a line; empty lines and lines that begin with ``#`` do not count.

    Raises:
        KeyFileError: when it cannot be read, holds no key, or a line that no client could send.
    """
    return Keys(_keys_of(path))


def first_key(path: str) -> str:
    """The first key of such a file, for a client. Raises KeyFileError."""
    return _keys_of(path)[0]


def _keys_of(path: str) -> list[str]:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as fault:
        raise KeyFileError(path, fault.strerror or str(fault)) from fault
    except UnicodeDecodeError as fault:
        raise KeyFileError(path, "not UTF-8") from fault
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not (key.isascii() and key.isprintable() and " " not in key and len(key) <= _LONGEST_KEY):
            raise KeyFileError(path, "a key is one word of printable ASCII characters", line=number)
        keys.append(key)
    if not keys:
        raise KeyFileError(path, "no key in it; write one a line")
    return keys


def is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine only."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


_NO_KEY = ApiError(401, "no API key; send the header Authorization: Bearer KEY")
_WRONG_KEY = ApiError(401, "this API key is not known here")
_CHALLENGE = ("www-authenticate", "Bearer")


class KeyCheck:
    """ASGI middleware: asks every request for a key, but those for :data:`OPEN_PATHS`."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        key = key.strip()
        if scheme.lower() != b"bearer" or not key:
            await refuse(send, _NO_KEY, _CHALLENGE)
        elif key not in self.keys:
            await refuse(send, _WRONG_KEY, _CHALLENGE)
        else:
            await self.app(scope, receive, send)


class HostCheck:
    """ASGI middleware for a server on the loopback interface: refuses requests that were addressed to another name.

    A web page whose name is made to resolve to 127.0.0.1 (DNS rebinding) is, for the browser, of the server's own
    origin; the ``Host`` header still says the page's name.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str] = ()) -> None:
        self.app = app
        self.allowed = frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse."""
        if scope["type"] == "lifespan" or self.allows(Headers(scope=scope).get("host", "")):
            await self.app(scope, receive, send)
            return
        message = "this server answers to this machine's own names; --allowed-host NAME adds one"
        await refuse(send, ApiError(403, message, code="foreign_host"))

    def allows(self, header: str) -> bool:
        """Whether a ``Host`` header names this machine. HTTP/1.0 sends none, and no browser speaks it."""
        if not header:
            return True
        host = header.rpartition(":")[0] if _has_port(header) else header
        return is_loopback(host) or host.lower() in self.allowed or host.lower().endswith(".localhost")


def _has_port(header: str) -> bool:
    before, colon, port = header.rpartition(":")
    return bool(colon) and port.isdecimal() and (before.endswith("]") or ":" not in before)
