"""A dry run: llama.cpp places a whole model and sizes its context in a child process, without loading any weights.

The child lets llama.cpp load with ``no_alloc``, which reads the header only, and reports what the log and llama.cpp's
own tensor table say. It is a process of its own because a failed assertion in llama.cpp aborts the process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ktllama.errors import DeviceError, LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime import child_process, dry_run_log, preconditions
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.device_binding import BoundDevice
from ktllama.runtime.device_list import BackendDevice
from ktllama.runtime.dry_run_log import LoadLog
from ktllama.runtime.library import require_pinned_version
from ktllama.runtime.log_capture import DEBUG, ERROR, NONE, LogLine

_SHOWN_LINES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What llama.cpp did. Devices are named as in the settings wherever one of theirs is meant.

    ``layers`` maps every block, and the output as the last, to its device; ``kv`` every layer with a KV cache,
    ``recurrent`` every layer with a recurrent state;
    ``overridden`` every tensor that an override moved to the devices it went to (two for a tied output on two devices).
    ``tensors`` maps every tensor in memory to the devices that hold a copy, or is None where llama.cpp's table cannot
    be read; ``asked`` are the tensors it looked for and did not leave on disk. ``compute_bytes`` is by device, to
    0.01 MiB a buffer. ``seconds`` is llama.cpp's own time, without the start of processes.
    """

    layers: Mapping[int, str]
    kv: Mapping[int, str]
    overridden: Mapping[str, tuple[str, ...]]
    tensors: Mapping[str, tuple[str, ...]] | None
    asked: frozenset[str]
    compute_bytes: Mapping[str, int]
    graph_splits: tuple[int, int] | None
    bound: tuple[BoundDevice, ...]
    available: tuple[BackendDevice, ...]
    log: LoadLog
    seconds: float
    recurrent: Mapping[int, str] = field(default_factory=dict)

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """The devices of the settings that are not on this machine."""
        return tuple(device.name for device in self.bound if device.stand_in)


def dry_run(
    model_path: str | os.PathLike[str],
    settings: LlamaSettings,
    context: ContextOptions,
    *,
    explicit_devices: Collection[str] = (),
    stand_ins: bool = True,
) -> DryRun:
    """Let llama.cpp place the model at ``model_path`` (the first file of a split one) by ``settings``.

    The file may end after its header: the run then works on a sparse copy in the temporary directory.
    ``explicit_devices`` are device names that the user chose, which must exist as they are; with ``stand_ins`` other
    missing devices are stood in for by the CPU.

    Raises:
        LlamaCppError: when llama.cpp is missing, is another version, refuses the model or dies; ``log`` holds its last
            lines.
        ModelFileError: for metadata that llama.cpp would abort over.
        DeviceError: when a device is missing and may not be stood in for.
    """
    require_pinned_version()
    preconditions.check_file(model_path)
    request = {
        "model_path": os.fspath(model_path),
        "settings": asdict(settings),
        "context": asdict(context),
        "explicit": list(explicit_devices),
        "stand_ins": stand_ins,
        "sparse_directory": None,
    }
    reply, lines = _ask(request)
    if reply.get("error") == "refused" and dry_run_log.parse(lines).data_is_missing:
        with tempfile.TemporaryDirectory(prefix="ktllama-") as directory:
            reply, lines = _ask({**request, "sparse_directory": directory})
    raise_error(reply, lines)
    return read_reply(reply, dry_run_log.parse(lines))


def _ask(request: Mapping[str, object]) -> tuple[dict[str, Any], list[LogLine]]:
    """Run the child on one request; its reply and llama.cpp's log."""
    if not Path(str(request["model_path"])).is_file():
        raise LlamaCppError(f"{request['model_path']}: no such file")
    child = subprocess.run(
        child_process.command("ktllama.runtime.dry_run_child"),
        input=json.dumps(request).encode(),
        capture_output=True,
        env=child_process.environment(GGML_NO_BACKTRACE="1"),  # else ggml starts a debugger on itself
        check=False,
    )
    lines = [log_line(text) for text in child.stderr.decode(errors="replace").splitlines()]
    if child.returncode != 0:
        raise LlamaCppError(f"llama.cpp {how_it_ended(child.returncode)} during the dry run", log=last_words(lines))
    reply: dict[str, Any] = json.loads(child.stdout)
    return reply, lines


def log_line(text: str) -> LogLine:
    """A line of the child's standard error; what did not come through the log came from an abort or a traceback."""
    level, tab, message = text.partition("\t")
    return LogLine(int(level), message) if tab and level.isdecimal() else LogLine(NONE, text)


def how_it_ended(return_code: int) -> str:
    """A process's return code in words."""
    if return_code < 0:
        return f"was killed by {signal.Signals(-return_code).name}"
    return f"ended with status {return_code}"


def last_words(lines: list[LogLine]) -> tuple[str, ...]:
    """The lines that say most about a failure: errors if there are any, else the last that are no debugging."""
    errors = [line.text for line in lines if (line.level >= ERROR or line.level == NONE) and line.text]
    return tuple((errors or [line.text for line in lines if line.level > DEBUG])[-_SHOWN_LINES:])


def raise_error(reply: Mapping[str, Any], lines: list[LogLine]) -> None:
    """Raise what the child's reply says went wrong, if anything did."""
    kind = reply.get("error")
    if kind == "device":
        raise DeviceError(reply["reason"])
    if kind is not None:
        raise LlamaCppError(reply["reason"], log=last_words(lines) if kind == "refused" else ())


def read_reply(reply: Mapping[str, Any], log: LoadLog) -> DryRun:
    """What happened, from the child's reply and the log; llama.cpp's names turned into those of the settings."""
    bound = tuple(BoundDevice(**device) for device in reply["bound"])
    names = {device.backend_name: device.name for device in bound}
    by_buffer = {buffer: names.get(device, device) for buffer, device in reply["buffers"].items()}

    def named(device: str) -> str:
        return names.get(device, device)

    def holder(buffer_type: str) -> str:
        return str(by_buffer.get(buffer_type, buffer_type))

    overridden: dict[str, tuple[str, ...]] = {}
    for override in log.overrides:
        overridden[override.tensor] = (*overridden.get(override.tensor, ()), holder(override.buffer_type))
    compute_bytes: dict[str, int] = {}
    for buffer_type, n_bytes in log.compute_bytes.items():
        compute_bytes[holder(buffer_type)] = compute_bytes.get(holder(buffer_type), 0) + n_bytes
    tensors: dict[str, list[str]] | None = reply["tensors"]
    return DryRun(
        layers={layer: named(device) for layer, device in log.layers.items()},
        kv={layer: named(device) for layer, device in log.kv.items()},
        recurrent={layer: named(device) for layer, device in log.recurrent.items()},
        overridden=overridden,
        tensors=None if tensors is None else {name: tuple(map(named, held)) for name, held in tensors.items()},
        asked=frozenset(log.asked) - frozenset(log.unused),
        compute_bytes=compute_bytes,
        graph_splits=log.graph_splits,
        bound=bound,
        available=tuple(BackendDevice(**device) for device in reply["devices"]),
        log=log,
        seconds=reply["seconds"],
    )
