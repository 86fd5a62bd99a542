"""Measured speeds on disk: one JSON file for each hardware, in the user's cache directory.

A file is for one processor model with so many cores, the same devices, and the same build of llama.cpp. What has
another of these has another file, so nothing that was measured elsewhere is taken for this machine's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pydantic

from ktllama.errors import PathError
from ktllama.measuring.speeds import DeviceSpeeds, Overheads, Speeds
from ktllama.runtime.op_timing import MatrixTimes

_VERSION = 1
_CPU_WORDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")


# what a machine can measure: outside of it a figure is damage, and dividing by it no prediction
_Rate = Annotated[float, pydantic.Field(ge=1, le=1e24)]  # bytes or operations a second
_SecondsAPiece = Annotated[float, pydantic.Field(ge=1e-24, le=1)]  # seconds a byte or an operation
_Seconds = Annotated[float, pydantic.Field(ge=0, le=3600)]
_Threads = Annotated[int, pydantic.Field(ge=1, le=512)]


class SpeedsFileError(PathError):
    """A file of measured speeds that cannot be read or written."""


class _Matrices(pydantic.BaseModel, extra="forbid"):
    buffer: str
    decode: _SecondsAPiece
    experts: _SecondsAPiece | None
    prefill_flops: _Rate


class _Overheads(pydantic.BaseModel, extra="forbid"):
    node: _Seconds
    token: _Seconds
    layer: _Seconds


class _Device(pydantic.BaseModel, extra="forbid"):
    device: str
    n_threads: _Threads
    matrices: dict[str, list[_Matrices]]
    attention: dict[str, _SecondsAPiece]
    overheads: dict[str, _Overheads]
    crossing: _Seconds | None
    copy_speed: _Rate | None


class _File(pydantic.BaseModel, extra="forbid"):
    version: int
    hardware: dict[str, Any]
    devices: list[_Device]


def directory(environment: Mapping[str, str]) -> Path:
    """Where the files are: ``$XDG_CACHE_HOME/ktllama``, or ``~/.cache/ktllama`` (XDG base directories)."""
    chosen = environment.get("XDG_CACHE_HOME", "")
    base = Path(chosen) if Path(chosen).is_absolute() else Path.home() / ".cache"
    return base / "ktllama"


def hardware(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, object]:
    """What speeds depend on here: the processor, its cores, llama.cpp's devices and its build.

    Raises:
        LlamaCppError: when llama-cpp-python is missing or does not load.
    """
    from ktllama.planner.budgets import n_physical_cores
    from ktllama.runtime import library as llama_library
    from ktllama.runtime.device_list import available

    library = llama_library.load()
    return {
        "processor": _processor(cpuinfo),
        "n_cores": n_physical_cores(),
        "n_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": [
            f"{device.name}: {device.description}, {device.memory_total} bytes"
            for device in available(library)
            if device.kind != "cpu" and device.backend != "RPC"
        ],
        "llama_cpp": llama_library.installed_version(),
        "build": library.api.llama_print_system_info().decode(errors="replace"),
    }


def path_of(known: Mapping[str, object], folder: Path) -> Path:
    """The file of a hardware."""
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"speeds-{digest}.json"


def read(path: Path) -> Speeds | None:
    """The speeds in a file; None where there is none.

    Raises:
        SpeedsFileError: when it cannot be read or holds something else.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise SpeedsFileError(str(path), f"cannot be read: {fault.strerror}") from fault
    try:
        found = _File.model_validate_json(text)
    except pydantic.ValidationError as fault:
        raise SpeedsFileError(str(path), "holds no measured speeds; delete it and measure again") from fault
    if found.version != _VERSION:
        return None  # of another ktllama: measured anew
    return Speeds(devices={(one.device, one.n_threads): _device(one) for one in found.devices})


def write(path: Path, known: Mapping[str, object], speeds: Speeds) -> None:
    """Replace the file of a hardware, whole or not at all.

    Raises:
        SpeedsFileError: when it cannot be written.
    """
    text = json.dumps({"version": _VERSION, "hardware": dict(known), "devices": document(speeds)}, indent=1)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as fault:
        raise SpeedsFileError(str(path), f"cannot be written: {fault.strerror}") from fault


def document(speeds: Speeds) -> list[dict[str, object]]:
    """Speeds as JSON: seconds a byte and an operation, operations and bytes a second."""
    return [_document(name, n_threads, one) for (name, n_threads), one in speeds.devices.items()]


def _device(one: _Device) -> DeviceSpeeds:
    return DeviceSpeeds(
        matrices={
            name: {times.buffer: MatrixTimes(**times.model_dump()) for times in listed}
            for name, listed in one.matrices.items()
        },
        attention=one.attention,
        overheads={kind: Overheads(**overheads.model_dump()) for kind, overheads in one.overheads.items()},
        crossing=one.crossing,
        copy=one.copy_speed,
    )


def _document(name: str, n_threads: int, one: DeviceSpeeds) -> dict[str, object]:
    return {
        "device": name,
        "n_threads": n_threads,
        "matrices": {kind: [asdict(times) for times in found.values()] for kind, found in one.matrices.items()},
        "attention": dict(one.attention),
        "overheads": {kind: asdict(overheads) for kind, overheads in one.overheads.items()},
        "crossing": one.crossing,
        "copy_speed": one.copy,
    }


def _processor(cpuinfo: Path) -> dict[str, str]:
    """The first processor's words that say what it is; nothing where the system does not say."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip() in _CPU_WORDS}
