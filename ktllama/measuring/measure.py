"""The measurements that are wanted and not known yet, one after the other; each is kept as soon as it is there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ktllama.measuring.overheads import time_crossing, time_overheads
from ktllama.measuring.speeds import STAND_IN, DeviceSpeeds, Kind, Speeds
from ktllama.runtime.op_timing_session import OpTimingSession
from ktllama.units import counted

CPU = "CPU"

#: What stands in is asked for by a name that no machine has.
_STAND_IN_DEVICE = "CUDA0"

#: What is measured of attention (:data:`ktllama.runtime.op_timing.HEADS`), after the kind of model.
ATTENTION: Mapping[Kind, tuple[str, ...]] = {
    "mla-moe": ("mla",),
    "gqa-moe": ("gqa", "gqa-64"),
    "dense": ("gqa", "gqa-64"),
}

Keep = Callable[[Speeds], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to measure: llama.cpp's devices (:data:`CPU`, :data:`STAND_IN` among them), with each number of threads.

    ``types`` are ggml types of weights, ``kv_types`` those of the KV cache, ``kinds`` those of models.
    """

    devices: tuple[str, ...] = (CPU,)
    threads: tuple[int, ...]
    types: tuple[str, ...]
    kv_types: tuple[str, ...] = ("f16",)
    kinds: tuple[Kind, ...] = ("mla-moe", "gqa-moe", "dense")


class _Step(NamedTuple):
    """One measurement: what it is called, on which device, and how it is made."""

    name: str
    device: str
    n_threads: int
    run: Callable[[DeviceSpeeds], DeviceSpeeds]


def measure(wanted: Wanted, known: Speeds, keep: Keep | None = None, progress: Progress | None = None) -> Speeds:
    """``known`` with everything that is ``wanted``; what it has already is not measured again.

    ``keep`` gets the speeds after each measurement.

    Raises:
        LlamaCppError: when llama.cpp dies over one of them.
        DeviceError: when a device is not here.
    """
    with OpTimingSession() as session, tempfile.TemporaryDirectory(prefix="ktllama-") as folder:
        steps = list(_missing(wanted, known, session, Path(folder)))
        for number, step in enumerate(steps):
            if progress is not None:
                progress(step.name, number, len(steps))
            before = known.of(step.device, step.n_threads)
            known = known.with_device(step.device, step.n_threads, step.run(before))
            if keep is not None:
                keep(known)
    return known


def _missing(wanted: Wanted, known: Speeds, session: OpTimingSession, folder: Path) -> Iterator[_Step]:
    for device in wanted.devices:
        for n_threads in wanted.threads:
            found = known.of(device, n_threads)
            # a stand-in computes with the host's kernels, and a GPU with the same ones however many threads drive it
            if device == CPU or (device != STAND_IN and n_threads == wanted.threads[0]):
                yield from _operations(wanted, found, session, device, n_threads)
            yield from _overheads(wanted, found, folder, device, n_threads)


def _operations(
    wanted: Wanted, found: DeviceSpeeds, session: OpTimingSession, device: str, n_threads: int
) -> Iterator[_Step]:
    on = f"{device} with {counted(n_threads, 'thread')}" if device == CPU else device

    def matrix(before: DeviceSpeeds, type_name: str) -> DeviceSpeeds:
        times = session.matrices(device, n_threads, type_name)
        return replace(before, matrices={**before.matrices, type_name: {one.buffer: one for one in times}})

    def attention(before: DeviceSpeeds, key: str) -> DeviceSpeeds:
        kv_type, kind = key.split()
        seconds = session.attention(device, n_threads, kv_type.upper(), kind)
        return before if seconds is None else replace(before, attention={**before.attention, key: seconds})

    for name in wanted.types:
        if name not in found.matrices:
            yield _Step(f"{name} on {on}", device, n_threads, lambda before, name=name: matrix(before, name))  # type: ignore[misc]
    heads = {name for kind in wanted.kinds for name in ATTENTION[kind]}
    for key in sorted(f"{kv_type} {name}" for kv_type in wanted.kv_types for name in heads):
        if key not in found.attention:
            yield _Step(f"attention, {key}, on {on}", device, n_threads, lambda before, key=key: attention(before, key))  # type: ignore[misc]
    if device != CPU and found.copy is None:
        yield _Step(f"copies to {on}", device, n_threads, lambda before: replace(before, copy=session.copy(device)))


def _overheads(wanted: Wanted, found: DeviceSpeeds, folder: Path, device: str, n_threads: int) -> Iterator[_Step]:
    stands_in = device == STAND_IN
    there = _STAND_IN_DEVICE if stands_in else device

    def overheads(before: DeviceSpeeds, kind: Kind) -> DeviceSpeeds:
        times = time_overheads(kind, there, n_threads, folder, stand_ins=stands_in)
        return replace(before, overheads={**before.overheads, kind: times})

    def crossing(before: DeviceSpeeds) -> DeviceSpeeds:
        return replace(before, crossing=time_crossing(there, n_threads, folder, stand_ins=stands_in))

    for kind in wanted.kinds:
        if kind not in found.overheads:
            name = f"small {kind} models on {device} with {counted(n_threads, 'thread')}"
            yield _Step(name, device, n_threads, lambda before, kind=kind: overheads(before, kind))  # type: ignore[misc]
    if device != CPU and found.crossing is None:
        yield _Step(f"crossings to {device} with {counted(n_threads, 'thread')}", device, n_threads, crossing)
