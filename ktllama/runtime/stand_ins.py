"""GPU stand-ins: a child process that serves this machine's CPU as any number of llama.cpp devices.

With llama.cpp's RPC backend a process on the loopback interface looks like so many GPUs: layers, KV caches and tensors
are placed on them as on real ones. So every placement can be tried, verified and even run where no GPU is.
"""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO

from ktllama.errors import LlamaCppError
from ktllama.runtime import child_process
from ktllama.runtime.library import Library

_ATTEMPTS = 5
_READY_SECONDS = 60.0
_STOP_SECONDS = 5.0
_ENDPOINT = re.compile(rb"^\s*endpoint\s*: (\S+)$", re.MULTILINE)
_READY = b"Accepted client connection\n"

#: The worker serves the CPU only, so it must not wake real GPUs.
_NO_GPUS = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "GGML_VK_VISIBLE_DEVICES": ""}


class StandInServer:
    """One worker process. ``start`` returns at once; ``endpoint`` waits until the worker serves.

    Use it as a context manager, or call :meth:`stop`. The worker also ends by itself when this process does.
    """

    def __init__(self, n_devices: int, n_threads: int | None = None) -> None:
        self.n_devices = n_devices
        self._n_threads = n_threads or os.cpu_count() or 1
        self._process: subprocess.Popen[bytes] | None = None
        self._endpoint = ""
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start the worker."""
        assert self._process is None
        self._process = subprocess.Popen(
            child_process.command("ktllama.runtime.rpc_worker", str(self.n_devices), str(self._n_threads)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=child_process.environment(**_NO_GPUS),
        )

    def endpoint(self, avoid: Collection[str] = ()) -> str:
        """``127.0.0.1:port`` of the serving worker; another port is tried when one was taken meanwhile.

        The system may hand out a port that an earlier worker had. llama.cpp keeps the devices of an endpoint that it
        once knew, so those go into ``avoid`` (:attr:`Library.retired`), and a worker that got one starts again.

        Raises:
            LlamaCppError: when the worker does not come up.
        """
        output = b""
        for _ in range(_ATTEMPTS):
            if self._process is None:
                self.start()
            if not self._endpoint:
                output = self._read_until_ready()
                found = _ENDPOINT.search(output)
                if output.endswith(_READY) and found:
                    self._endpoint = found[1].decode()
                    self._drain()
            if self._endpoint and self._endpoint not in avoid:
                break
            self.stop()
        if not self._endpoint:
            lines = tuple(output.decode(errors="replace").splitlines()[-10:])
            raise LlamaCppError("the process that stands in for GPUs did not start", log=lines)
        return self._endpoint

    @property
    def pid(self) -> int | None:
        """The worker's process id while it runs."""
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """End the worker and wait until it is gone. Safe to call twice."""
        process, self._process, self._endpoint = self._process, None, ""
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            if self._reader is not None:
                self._reader.join(
                    _STOP_SECONDS
                )  # the pipe ends with the worker, and may not be closed under the reader
                self._reader = None
            process.stdout.close()

    def _drain(self) -> None:
        """Read what the worker goes on to say, a few lines a model: it would stop for good at a pipe that is full."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=_read_to_end, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def __enter__(self) -> StandInServer:
        if self._process is None:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _read_until_ready(self) -> bytes:
        """What the worker printed until it served its probe, or until it ended or took too long."""
        assert self._process is not None
        assert self._process.stdout is not None
        output = b""
        deadline = time.monotonic() + _READY_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not output.endswith(_READY) and selector.select(max(0.0, deadline - time.monotonic())):
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    break
                output += chunk
                # the probe's end may be reported in the same breath
                if _READY in output:
                    return output[: output.index(_READY) + len(_READY)]
        return output


def _read_to_end(pipe: IO[bytes]) -> None:
    while os.read(pipe.fileno(), 65536):
        pass


def register(library: Library, endpoint: str) -> tuple[str, ...]:
    """Make the devices of an RPC server known to this process's llama.cpp; their names, in the server's order.

    Raises:
        LlamaCppError: when the build has no RPC backend or the server has no devices.
    """
    library.require_rpc()
    registry: int | None = library.call("ggml_backend_rpc_add_server", endpoint.encode())
    if not registry:
        raise LlamaCppError(f"the RPC server at {endpoint} offers no devices")
    library.call("ggml_backend_register", registry)
    n_devices = library.call("ggml_backend_reg_dev_count", registry)
    handles = [library.call("ggml_backend_reg_dev_get", registry, index) for index in range(n_devices)]
    return tuple(library.text("ggml_backend_dev_name", handle) for handle in handles)


def retire(library: Library, endpoint: str) -> None:
    """Note that a server has stopped: its devices stay in llama.cpp's list and must not be asked anything."""
    library.retired.add(endpoint)


@contextmanager
def serving(n_devices: int, n_threads: int | None = None) -> Iterator[str]:
    """Serve ``n_devices`` stand-ins while the block runs; gives the endpoint."""
    with StandInServer(n_devices, n_threads) as server:
        yield server.endpoint()
