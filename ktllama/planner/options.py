"""The ways to treat a layer in the run of a device: where its core and its matrices go, and what that costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ktllama import devices
from ktllama.planner.cost import core_seconds, part_seconds
from ktllama.planner.machine import Machine, Processor
from ktllama.planner.parts import Layer, ModelParts

#: A layer whose matrices are on different devices must be worth this share of the layer's time.
_SPLIT_PENALTY = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What to assign. ``room`` is by GPU what its open parts may take, in bytes, after all that is fixed there.

    ``host_price`` is added for each byte of host memory that the assignment takes, in seconds: 0 unless RAM is short.
    ``host_room`` is what layers and output may take of it at most; the price is then only for bounds.
    ``order`` begins the order of the GPUs' runs, and ``output`` is the output layer's device, where those are not free.
    """

    model: ModelParts
    machine: Machine
    room: Mapping[str, int]
    host_price: float = 0.0
    host_room: int | None = None
    order: tuple[str, ...] = ()
    output: str | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One way to treat a layer in a run: what it takes of the run's GPU and of the host, what it costs, and which
    devices it means."""

    n_bytes: int
    host_bytes: int
    seconds: float
    core: str
    matrices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choices:
    """Options that no other beats in both memory and time, by memory, and their figures in a row.

    ``seconds`` are what an assignment has least of: with the price of host memory, unless that has a limit.
    """

    options: tuple[Option, ...]
    n_bytes: NDArray[np.int64]
    host_bytes: NDArray[np.int64]
    seconds: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Options:
    """The options of every layer of ``problem`` in the run of any device; most layers of a model are alike."""

    problem: Problem
    _known: dict[tuple[object, ...], Choices] = field(default_factory=dict)

    def of(self, layer: Layer, run: Processor) -> Choices:
        """The options of ``layer`` in the run of one device."""
        key = (run.name, *like(layer))
        if key not in self._known:
            options = self._undominated(self._all(layer, run))
            price = self.problem.host_price if self.problem.host_room is None else 0.0
            self._known[key] = Choices(
                options,
                np.array([option.n_bytes for option in options], dtype=np.int64),
                np.array([option.host_bytes for option in options], dtype=np.int64),
                np.array([option.seconds + price * option.host_bytes for option in options]),
            )
        return self._known[key]

    def priced(self, option: Option) -> float:
        """Its seconds, with the price of what it takes of the host."""
        return option.seconds + self.problem.host_price * option.host_bytes

    def _undominated(self, options: Iterable[Option]) -> tuple[Option, ...]:
        if self.problem.host_room is None:
            key = self.priced
            return _undominated(sorted(options, key=lambda one: (one.n_bytes, key(one))), lambda one: (key(one),))
        ordered = sorted(options, key=lambda one: (one.n_bytes, one.seconds, one.host_bytes))
        return _undominated(ordered, lambda one: (one.seconds, one.host_bytes))

    def _all(self, layer: Layer, run: Processor) -> Iterator[Option]:
        core = layer.device or run.name
        places = [
            [part.device] if part.device else list(dict.fromkeys((devices.CPU, run.name))) for part in layer.matrices
        ]
        for matrices in itertools.product(*places):
            yield self._option(layer, run, core, matrices)

    def _option(self, layer: Layer, run: Processor, core: str, matrices: tuple[str, ...]) -> Option:
        machine = self.problem.machine
        taken = layer.core_bytes if layer.device is None else 0
        host = layer.core_bytes if core == devices.CPU else 0
        seconds = core_seconds(layer, machine.processor(core))
        for part, device in zip(layer.matrices, matrices, strict=True):
            seconds += part_seconds(part, machine.processor(device))
            taken += part.n_bytes if device == run.name and part.device is None else 0
            host += part.n_bytes if device == devices.CPU else 0
        seconds += machine.crossing_seconds * sum(a != b for a, b in itertools.pairwise((core, *matrices, core)))
        if len({device for part, device in zip(layer.matrices, matrices, strict=True) if part.device is None}) > 1:
            seconds *= 1 + _SPLIT_PENALTY
        return Option(taken if run.name != devices.CPU else 0, host, seconds, core, matrices)


def like(layer: Layer) -> tuple[object, ...]:
    """What decides a layer's options: everything but its number and its tensors' names."""
    parts = ((part.n_bytes, part.reads, part.device, part.chosen) for part in (layer.core, *layer.matrices))
    return (layer.device, layer.kv_bytes, layer.kv_read_bytes, layer.attention_operations, layer.n_nodes, *parts)


def _undominated(options: Iterable[Option], key: Callable[[Option], tuple[float, ...]]) -> tuple[Option, ...]:
    """Those of ``options``, which are in order of memory, for which none before is as good in all of ``key``."""
    kept: list[Option] = []
    for option in options:
        own = key(option)
        if not any(all(a <= b for a, b in zip(key(other), own, strict=True)) for other in kept):
            kept.append(option)
    return tuple(kept)
