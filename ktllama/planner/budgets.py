"""Budgets as people write them, and as a machine has them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ktllama import devices
from ktllama.planner.errors import BudgetError
from ktllama.units import format_bytes, parse_bytes

DETECTED = "detected"
NONE = "none"

MAX_GPUS = 15  # llama.cpp takes 16 devices (llama_max_devices), and the host may be one
_MIN_BYTES = 1 << 20  # less is a number without its unit
_MAX_BYTES = 1 << 50
_SPEED = re.compile(r"([0-9]+(?:\.[0-9]+)?)([GT]?)(?:B/s)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """What this machine has: bytes by GPU that are free, what GPUs call themselves, and the host's memory."""

    vram: Mapping[str, int]
    descriptions: Mapping[str, str]
    ram: int
    llama_names: Mapping[str, str] = field(default_factory=dict)


def parse_vram(text: str) -> dict[str, int]:
    """``24G,12G`` → the budgets of cuda:0 and cuda:1; ``cuda:1=24G`` names a device; ``none`` is no GPU.

    Raises:
        BudgetError: for anything else, a device named twice, more GPUs than llama.cpp takes.
    """
    if text == NONE:
        return {}
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise BudgetError(f"--vram {text!r}: a size is missing; expected one for each GPU, as in 24G or 24G,12G")
    named = ["=" in word for word in words]
    if any(named) and not all(named):
        raise BudgetError(f"--vram {text!r}: name every device or none, as in cuda:0=24G,cuda:1=12G or 24G,12G")
    found: dict[str, int] = {}
    for number, word in enumerate(words):
        name, _, size = word.rpartition("=") if all(named) else (f"cuda:{number}", "", word)
        device = _gpu(text, name)
        if device in found:
            raise BudgetError(f"--vram {text!r}: {device} is named twice")
        found[device] = parse_size("--vram", size)
    if len(found) > MAX_GPUS:
        raise BudgetError(f"--vram: {len(found)} GPUs; llama.cpp takes {MAX_GPUS} beside the host")
    return found


def parse_size(option: str, text: str) -> int:
    """``24G`` → bytes.

    Raises:
        BudgetError: for what is no size above 0, or none that a machine has.
    """
    try:
        n_bytes = parse_bytes(text)
    except (ValueError, OverflowError):
        n_bytes = 0
    if n_bytes <= 0:
        words = {"--vram": ", detected or none", "--ram": ", or detected"}.get(option, "")
        raise BudgetError(f"{option} {text!r}: expected a size above 0, such as 24G or 512M{words}")
    if n_bytes < _MIN_BYTES:
        raise BudgetError(f"{option} {text!r}: that is {n_bytes} bytes; expected a size with its unit, such as 24G")
    if n_bytes > _MAX_BYTES:
        raise BudgetError(f"{option} {text!r}: no machine has that much; expected a size such as 24G or 512M")
    return n_bytes


def parse_margin(text: str) -> int:
    """``512M`` → bytes; a margin may be 0.

    Raises:
        BudgetError: for what is no size.
    """
    return 0 if text.strip() == "0" else parse_size("--margin", text)


def parse_speed(option: str, text: str) -> float:
    """``936G`` → 936 × 10⁹ bytes a second, as data sheets count.

    Raises:
        BudgetError: for what is no speed above 0.
    """
    found = _SPEED.fullmatch(text.strip())
    speed = float(found.group(1)) * {"": 1.0, "G": 1e9, "T": 1e12}[found.group(2)] if found else 0.0
    if not 1e6 <= speed <= 1e15:
        raise BudgetError(f"{option} {text!r}: expected bytes a second, such as 936G")
    return speed


def parse_bandwidths(pairs: Iterable[str]) -> dict[str, float]:
    """``cuda:0=936G`` pairs, ``cpu=200G`` among them.

    Raises:
        BudgetError: for anything else, and a device named twice.
    """
    found: dict[str, float] = {}
    for pair in pairs:
        name, equals, speed = pair.partition("=")
        try:
            device = devices.canonical(name)
        except ValueError:
            device = devices.AUTO
        if device == devices.AUTO or not equals:
            raise BudgetError(f"--bandwidth {pair!r}: expected DEVICE=SPEED, such as cuda:0=936G or cpu=200G")
        if device in found:
            raise BudgetError(f"--bandwidth: {device} is named twice")
        found[device] = parse_speed("--bandwidth", speed)
    return found


def host_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of host memory that this process may have: the machine's, or less where its control group says so.

    Source: ``MemTotal`` of proc_meminfo(5), ``memory.max`` of cgroup v2 and ``memory.limit_in_bytes`` of v1.

    Raises:
        BudgetError: on a system that has neither.
    """
    known = [_total_memory(proc), *(_limit(path) for path in _limit_files(proc, groups))]
    found = [n_bytes for n_bytes in known if n_bytes]
    if not found:
        raise BudgetError("--ram detected: this system does not say how much memory it has; give a size")
    return min(found)


def n_physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores that this process may use, hyperthreads counted once: decoding waits for memory, and two threads of one
    core wait for the same."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for number in allowed:
        siblings = topology / f"cpu{number}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text(encoding="ascii").strip())
        except OSError:
            cores.add(str(number))
    return max(1, len(cores))


def check_against(detected: Detected, vram: Mapping[str, int], ram: int | None) -> None:
    """Refuse budgets that this machine, for which the plan is, does not have.

    Raises:
        BudgetError: naming the device.
    """
    if ram is not None and ram > detected.ram:
        raise BudgetError(
            f"--ram {format_bytes(ram)}: this machine has {format_bytes(detected.ram)}; "
            "to plan for another, say its --vram too"
        )
    for device, n_bytes in vram.items():
        there = detected.vram.get(device)
        if there is not None and n_bytes > there:
            raise BudgetError(f"--vram {device}={format_bytes(n_bytes)}: it has {format_bytes(there)}")


def _gpu(text: str, name: str) -> str:
    try:
        device = devices.canonical(name)
    except ValueError:
        device = devices.CPU
    if device in (devices.CPU, devices.AUTO):
        raise BudgetError(f"--vram {text!r}: '{name}' is no GPU of a rule; expected cuda:N, xpu:N or npu:N")
    return device


def _total_memory(proc: Path) -> int | None:
    try:
        text = (proc / "meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemTotal:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _limit_files(proc: Path, groups: Path) -> list[Path]:
    """The files that may hold a limit: those of this process's group and of all groups above it."""
    files = [groups / "memory.max", groups / "memory" / "memory.limit_in_bytes"]
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return files
    for line in lines:
        own = line.rpartition(":")[2].strip("/")
        parts = own.split("/") if own else []
        for depth in range(1, len(parts) + 1):
            files.append(groups.joinpath(*parts[:depth]) / "memory.max")
    return files


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max" is none
