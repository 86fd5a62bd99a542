"""The child process behind GPU stand-ins: serves this machine's CPU as RPC devices on the loopback interface.

Run as ``python -m ktllama.runtime.rpc_worker N_DEVICES N_THREADS`` with a pipe as standard input. It prints what
llama.cpp's server prints: the endpoint, then ``Accepted client connection`` once its own probe was served, which
proves that the port is this server's. It ends when standard input closes, so it never outlives the process that
started it, however that one ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time

from ktllama.runtime import library as llama_library

LOOPBACK = "127.0.0.1"

_PROBE_SECONDS = 30.0


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _connect_once(port: int) -> None:
    """Connect and hang up, as soon as the server listens: it reports the connection, and the parent reads that."""
    deadline = time.monotonic() + _PROBE_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.002)


def _serve(n_devices: int, n_threads: int) -> None:
    library = llama_library.load_low_level_only()
    library.require_rpc()
    cpu = library.call("ggml_backend_dev_by_name", b"CPU")
    devices = (ctypes.c_void_p * n_devices)(*[cpu] * n_devices)
    port = _free_port()
    threading.Thread(target=_connect_once, args=(port,), daemon=True).start()
    endpoint = f"{LOOPBACK}:{port}".encode()
    library.call("ggml_backend_rpc_start_server", endpoint, None, n_threads, n_devices, devices)


def main() -> int:
    """Serve until standard input closes; return 1 when the server could not start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes the pipe
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _serve(int(sys.argv[1]), int(sys.argv[2]))
    return 1  # the server only returns when it could not bind its port


if __name__ == "__main__":
    sys.exit(main())
