"""A server in a process of its own, on a free port, and what a test asks it."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
_PATIENCE = 300.0  # a machine that is busy with something else
_ADDRESS = re.compile(r"Listening on http://127\.0\.0\.1:(\d+)")


class Served:
    """The process. What it logs (JSON lines) gathers in `lines`, what it says in `said`."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KTLLAMA_")}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environ or {})},
        )  # fmt: skip
        self.said: list[str] = []
        self.lines: list[str] = []
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._listen, args=(self.process.stdout, self.said)),
            threading.Thread(target=self._listen, args=(self.process.stderr, self.lines)),
        ]
        for thread in self._threads:
            thread.start()
        self.port = 0

    def _listen(self, stream: Any, kept: list[str]) -> None:
        for line in stream:
            kept.append(line.rstrip("\n"))
            self._news.put(line)
        self._news.put("")

    def wait_for_port(self) -> None:
        """Until the address is said."""
        self._wait(lambda: _ADDRESS.search("\n".join(self.said)) is not None, "its address")
        found = _ADDRESS.search("\n".join(self.said))
        assert found is not None
        self.port = int(found[1])

    def wait_until_ready(self) -> None:
        """Until requests are taken."""
        self.wait_for_port()
        self._wait(lambda: any("Ctrl-C ends" in line for line in self.said), "that it is ready")
        self.wait_for_health("ok")

    def wait_for_health(self, status: str) -> dict[str, Any]:
        """Until /health says so; what else it says."""
        end = time.monotonic() + _PATIENCE
        while True:
            found: dict[str, Any] = self.get("/health").json()
            if found["status"] == status:
                return found
            assert time.monotonic() < end, f"health is {found}, not {status}"
            time.sleep(0.01)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            try:
                line = self._news.get(timeout=_PATIENCE)
            except queue.Empty:
                raise AssertionError(f"it did not say {what}: {self.said} {self.lines}") from None
            assert line or self.process.poll() is None or condition(), f"it ended: {self.said} {self.lines}"

    def wait_for_log(self, message: str, **fields: object) -> dict[str, Any]:
        """The first log line of that message whose fields are these."""

        def found() -> dict[str, Any] | None:
            for line in self.records():
                if line["message"] == message and fields.items() <= line.items():
                    return line
            return None

        self._wait(lambda: found() is not None, f"{message} {fields}")
        line = found()
        assert line is not None
        return line

    def records(self) -> list[dict[str, Any]]:
        """The log so far."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: object, **headers: str) -> Answer:
        return self.ask("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})

    def ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    @contextmanager
    def stream(self, body: Mapping[str, object]) -> Iterator[http.client.HTTPResponse]:
        """A chat answer as it comes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE)
        try:
            connection.request(
                "POST", "/v1/chat/completions", json.dumps({"stream": True, **body}),
                {"Content-Type": "application/json"},
            )  # fmt: skip
            yield connection.getresponse()
        finally:
            connection.close()

    @property
    def engine_pid(self) -> int:
        """The engine process's: the only child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """The exit status, once it has ended; all it said is then in `said` and `lines`."""
        status = self.process.wait(timeout=_PATIENCE)
        for thread in self._threads:
            thread.join()
        return status

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


class Answer:
    """Status, headers (by lower-case name) and body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)


def fake(
    options: Mapping[str, object] | None = None,
    *,
    keys: Sequence[str] | None = None,
    backoff: Mapping[str, float] | None = None,
    **settings: object,
) -> Served:
    """A server over the fake executor."""
    told: dict[str, object] = {"options": dict(options or {}), "settings": settings}
    if keys is not None:
        told["keys"] = list(keys)
    if backoff is not None:
        told["backoff"] = dict(backoff)
    return Served([sys.executable, "-m", "tests.server.serving_process", json.dumps(told)])


def events(response: http.client.HTTPResponse) -> Iterator[Any]:
    """The JSON of each event; "[DONE]" as itself."""
    for line in response:
        if line.startswith(b"data: "):
            data = line[6:].strip()
            yield "[DONE]" if data == b"[DONE]" else json.loads(data)


def say(text: str, **fields: object) -> dict[str, object]:
    """The body of a chat request."""
    return {"messages": [{"role": "user", "content": text}], **fields}
