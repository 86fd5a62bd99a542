"""The servers that are compared: how each is started, when it is ready, and the memory of its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_READY_SECONDS = 300.0
_STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What every server is given alike: the model, the context that all slots share, slots, and threads."""

    model: Path
    ctx: int
    parallel: int
    threads: int
    llama_server: str
    peer_python: str | None = None  # an interpreter that has the peers written in Python; None: this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that answers on ``port``."""

    name: str
    port: int
    pid: int

    def memory(self) -> dict[str, int]:
        """Resident bytes by process: ``engine`` is the one that holds the model, ``api`` the one before it."""
        sizes = {pid: _resident_bytes(pid) for pid in _family(self.pid)}
        engine = max(sizes, key=lambda pid: sizes[pid])
        names = {pid: "engine" if pid == engine else "api" if pid == self.pid else "others" for pid in sizes}
        return {name: sum(sizes[pid] for pid in sizes if names[pid] == name) for name in sorted(set(names.values()))}


def _ktllama(setup: Setup, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "ktllama", "serve", "--model", str(setup.model), "--port", str(port)),
        *("--ctx", str(setup.ctx), "--parallel", str(setup.parallel), "--threads", str(setup.threads)),
    ]


def _llama_server(setup: Setup, port: int) -> list[str]:
    return [
        *(setup.llama_server, "-m", str(setup.model), "--host", "127.0.0.1", "--port", str(port)),
        *("-c", str(setup.ctx), "-np", str(setup.parallel), "-t", str(setup.threads), "-tb", str(setup.threads)),
        *("-kvu", "--load-mode", "none", "-ub", "512", "-b", "512", "--jinja"),
    ]


def _llama_cpp_server(setup: Setup, port: int) -> list[str]:
    return [
        *(_python(setup), "-m", "llama_cpp.server", "--model", str(setup.model), "--host", "127.0.0.1"),
        *("--port", str(port), "--n_ctx", str(setup.ctx), "--n_threads", str(setup.threads)),
        *("--n_threads_batch", str(setup.threads)),
    ]


def _xllamacpp(setup: Setup, port: int) -> list[str]:
    return [
        _python(setup),
        "-c",
        _XLLAMACPP,
        str(setup.model),
        *map(str, (port, setup.ctx, setup.parallel, setup.threads)),
    ]


_XLLAMACPP = """
import sys, time
import xllamacpp
model, port, ctx, parallel, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = model, ["127.0.0.1"], port
params.n_ctx, params.n_parallel, params.kv_unified = ctx, parallel, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
while True:
    time.sleep(1)
"""

SERVERS: Mapping[str, Callable[[Setup, int], list[str]]] = {
    "ktllama": _ktllama,
    "llama-server": _llama_server,
    "llama_cpp.server": _llama_cpp_server,
    "xllamacpp": _xllamacpp,
}


def _python(setup: Setup) -> str:
    return setup.peer_python or sys.executable


def missing(name: str, setup: Setup) -> str | None:
    """Why a server cannot be started here, or None."""
    if name == "llama-server" and not Path(setup.llama_server).is_file():
        return f"{setup.llama_server} does not exist; python -m bench.serve.llama_cpp_build builds it"
    module = {"llama_cpp.server": "llama_cpp.server.app", "xllamacpp": "xllamacpp"}.get(name)
    if module:
        tried = subprocess.run([_python(setup), "-c", f"import {module}"], capture_output=True, check=False)
        return f"{module} cannot be imported by {_python(setup)}" if tried.returncode else None
    return None


@contextmanager
def serving(name: str, setup: Setup) -> Iterator[Running]:
    """Start a server and wait until it answers; it is stopped at the end."""
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            SERVERS[name](setup, port), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait(process, port)
            yield Running(name=name, port=port, pid=process.pid)
        except RuntimeError as error:
            log.seek(0)
            raise RuntimeError(f"{name}: {error}\n{log.read()[-2000:].decode(errors='replace')}") from error
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own: nobody else's processes
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ended with status {process.returncode}")
        if any(_answers(port, path) for path in ("/health", "/v1/models")):
            return
        time.sleep(0.1)
    raise RuntimeError("did not become ready")


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _family(pid: int) -> list[int]:
    """``pid`` and all that descend from it, in the order of their numbers."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return sorted(found)


def _resident_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0
