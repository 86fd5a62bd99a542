"""What many short requests leave behind: cells, open files, memory of both processes.

Starts `ktllama serve` on a free port, asks for a few tokens again and again from several clients (every tenth of them
hangs up within its answer), and compares the API process and the engine process before and after.

    python -m bench.serve.leaks [--requests 10000] [--clients 8] [-- OPTIONS OF ktllama serve]
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_ADDRESS = re.compile(r"Listening on http://127\.0\.0\.1:(\d+)")
_WARM = 500
#: What the resident memory of a process may gain, in KiB, before it counts as a leak.
_ALLOWED_KIB = 8 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Open files and resident KiB of a process."""

    files: int
    memory_kib: int


def holdings(pid: int) -> Holdings:
    folder = Path(f"/proc/{pid}")
    memory = int((folder / "status").read_text().partition("VmRSS:")[2].split()[0])
    return Holdings(files=len(list((folder / "fd").iterdir())), memory_kib=memory)


def ask(port: int, number: int) -> None:
    """One short answer; every tenth is streamed and left after its first bytes."""
    leaves = number % 10 == 9
    body = {
        "messages": [{"role": "user", "content": f"Question {number}: say yes."}],
        "max_tokens": 64 if leaves else 3,
        "stream": leaves,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            if response.status != 200:
                raise RuntimeError(f"status {response.status}: {response.read()!r}")
            response.read(64 if leaves else None)
    finally:
        connection.close()


def metrics(port: int) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def settled(port: int) -> dict[str, float]:
    """The metrics once nothing runs."""
    while True:
        found = metrics(port)
        if found["ktllama_running_requests"] == found["ktllama_queued_requests"] == 0:
            return found
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("serve", nargs="*", help="options of ktllama serve")
    words = parser.parse_args()
    command = [sys.executable, "-m", "ktllama", "serve", "--port", "0", "--log-level", "error", *words.serve]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            return measured(server, words.requests, words.clients)
        finally:
            server.send_signal(signal.SIGTERM)


def measured(server: subprocess.Popen[str], requests: int, clients: int) -> int:
    assert server.stdout is not None
    port = 0
    for line in server.stdout:
        if found := _ADDRESS.search(line):
            port = int(found[1])
        if line.startswith("Ready"):
            break
    engine = int(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()[0])
    numbers = itertools.count()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda number: ask(port, number), itertools.islice(numbers, min(_WARM, requests))))
        settled(port)
        before = {"API": holdings(server.pid), "engine": holdings(engine)}
        began = time.monotonic()
        list(pool.map(lambda number: ask(port, number), itertools.islice(numbers, requests)))
        seconds = time.monotonic() - began
    last = settled(port)
    after = {"API": holdings(server.pid), "engine": holdings(engine)}
    return report(requests, seconds, before, after, last)


def report(
    requests: int, seconds: float, before: dict[str, Holdings], after: dict[str, Holdings], last: dict[str, float]
) -> int:
    print(f"{requests} requests in {seconds:.0f} s, {requests / seconds:.0f} a second")
    leaks = 0
    for name, old in before.items():
        new = after[name]
        print(f"{name}: files {old.files} -> {new.files}, memory {old.memory_kib} -> {new.memory_kib} KiB")
        leaks += new.files > old.files
        leaks += new.memory_kib - old.memory_kib > _ALLOWED_KIB
    running = last['ktllama_kv_cells{state="running"}']
    print(f"cells still held by requests: {running:.0f}")
    return 1 if leaks or running else 0


if __name__ == "__main__":
    sys.exit(main())
