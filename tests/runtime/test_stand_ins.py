"""GPU stand-ins: they come up, they serve, and they never outlive the process that started them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ktllama.errors import LlamaCppError
from ktllama.runtime import child_process, library, stand_ins
from ktllama.runtime.device_list import available
from ktllama.runtime.stand_ins import StandInServer, serving


def _is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _wait_until_gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _is_running(pid)


def test_a_server_serves_on_the_loopback_interface_and_stops() -> None:
    with StandInServer(2) as server:
        host, _, port = server.endpoint().rpartition(":")
        pid = server.pid
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), timeout=5).close()
    assert pid is not None
    assert not _is_running(pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


def test_a_server_serves_however_much_it_has_to_say() -> None:
    with serving(1) as endpoint:
        host, _, port = endpoint.rpartition(":")
        for _ in range(1500):  # some 50 bytes each: more than a pipe holds
            with socket.create_connection((host, int(port)), timeout=20) as client:
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""  # it saw the end and closed


def test_its_devices_are_gpus_of_this_process_until_it_stops() -> None:
    loaded = library.load()
    before = [device.name for device in available(loaded)]
    with serving(2) as endpoint:
        names = stand_ins.register(loaded, endpoint)
        found = [device for device in available(loaded) if device.name in names]
        assert [(device.kind, device.backend, device.description) for device in found] == [("gpu", "RPC", endpoint)] * 2
        assert [device.buffer_type for device in found] == [f"RPC0[{endpoint}]", f"RPC1[{endpoint}]"]
    stand_ins.retire(loaded, endpoint)
    assert [device.name for device in available(loaded)] == before


def test_a_server_on_an_endpoint_that_llama_cpp_knew_before_starts_again_on_another() -> None:
    with StandInServer(1) as server:
        known, first_pid = server.endpoint(), server.pid
        other = server.endpoint(avoid={known})
        assert other != known
        assert first_pid is not None
        assert not _is_running(first_pid)
        assert server.endpoint(avoid={known}) == other
        host, _, port = other.rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()


def test_an_exception_stops_it() -> None:
    pids: list[int | None] = []

    def fail() -> None:
        with StandInServer(1) as server:
            server.endpoint()
            pids.append(server.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert pids[0] is not None
    assert not _is_running(pids[0])


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_its_parent(ending: signal.Signals) -> None:
    code = (
        "import time\n"
        "from ktllama.runtime.stand_ins import StandInServer\n"
        "with StandInServer(1) as server:\n"
        "    server.endpoint()\n"
        "    print(server.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_process.environment(),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _is_running(pid)
        # Ctrl-C reaches the whole group, the worker too
        (os.killpg if ending == signal.SIGINT else os.kill)(parent.pid, ending)
    assert _wait_until_gone(pid)


def test_a_port_that_was_taken_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = child_process.command
    modules = iter(["ktllama.no_such_module"])
    monkeypatch.setattr(child_process, "command", lambda module, *arguments: real(next(modules, module), *arguments))
    with StandInServer(1) as server:
        assert server.endpoint().startswith("127.0.0.1:")


def test_a_worker_that_never_comes_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = child_process.command
    monkeypatch.setattr(child_process, "command", lambda _module, *arguments: real("ktllama.no_such", *arguments))
    with pytest.raises(LlamaCppError) as raised, StandInServer(1) as server:
        server.endpoint()
    assert raised.value.reason == "the process that stands in for GPUs did not start"
    assert "No module named ktllama.no_such" in raised.value.log[-1]
