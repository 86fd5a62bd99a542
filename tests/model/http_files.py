"""A web server on a free port of this machine, for tests: serves bytes with ranges, or misbehaves as told."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ktllama.model.http_session import Access


@dataclass(slots=True)
class Site:
    """What a server serves: ``files`` by path, or ``answers`` that write to the handler themselves.

    ``asked`` is every request's path and headers, ``n_sent`` the bytes of all bodies of ``files``.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Callable[[Handler], None]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    n_sent: int = 0
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def access(self, **options: Any) -> Access:
        """Access with this server as the hub, and short times."""
        return Access(hub=self.url, **{"wait_seconds": 5.0, "total_seconds": 20.0, **options})


class Handler(BaseHTTPRequestHandler):
    site: Site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.site.asked.append((self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        if path in self.site.answers:
            self.site.answers[path](self)
        elif path in self.site.files:
            self.ranged(self.site.files[path])
        else:
            self.answer(404)

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        """A whole answer; header names with _ for -. ``Content_Length=""`` leaves it out."""
        sent = {"Content-Length": str(len(content))} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        self.send_response(status)
        for name, value in sent.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def asked_range(self) -> tuple[int, int]:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert found is not None
        return int(found[1]), int(found[2])

    def ranged(self, content: bytes, *, most: int | None = None, **headers: str) -> None:
        """The range that was asked for, of ``most`` bytes at most."""
        if "Range" not in self.headers:
            self.answer(200, content, **headers)
            return
        first, last = self.asked_range()
        if first >= len(content):
            self.answer(416, Content_Range=f"bytes */{len(content)}")
            return
        piece = content[first : last + 1][:most]
        self.site.n_sent += len(piece)
        said = {"Content_Range": f"bytes {first}-{first + len(piece) - 1}/{len(content)}", **headers}
        self.answer(206, piece, **said)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what many tests are about."""


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """A server that lives as long as the block."""
    site = Site()
    server = _Server(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    site.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
