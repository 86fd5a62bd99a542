"""Requests that ask for another protocol. This server speaks HTTP/1.1 alone, so it answers as if they had not.

RFC 9110, 7.8: a server may ignore the Upgrade header. ``curl --http2`` and Java's HttpClient send it with every first
request. The parser (httptools 0.9, parser.pyx) leaves a body behind such a head to the other protocol.
"""

from __future__ import annotations

from collections.abc import Sequence

_HEADERS = (b"upgrade", b"http2-settings")


def head_without_upgrade(method: bytes, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A request's head again, less what asks for the other protocol; header names come in lower case."""
    lines = [b"%s %s HTTP/%s" % (method, target, version.encode())]
    for name, value in headers:
        kept = _without_tokens(value) if name == b"connection" else value
        if name not in _HEADERS and (kept or name != b"connection"):
            lines.append(name + b": " + kept)
    return b"\r\n".join([*lines, b"", b""])


def _without_tokens(value: bytes) -> bytes:
    tokens = (token.strip() for token in value.split(b","))
    return b", ".join(token for token in tokens if token.lower() not in _HEADERS)
