"""The fastest assignment of what is open, within every GPU's memory.

Layers go to devices in contiguous runs: first the host (as many as must), then one GPU after another. Within its run a
GPU holds the layers' cores, and those of their matrices that are worth it. That is a knapsack a run, and runs meet only
where a layer changes device: a dynamic programme over layers whose state is the GPU of the current run and the memory
used on it. Of partial plans with the same state only those are kept that no other beats in both memory and time.
It is exact, also in which GPU comes first, with two exceptions: more than ``MAX_LABELS`` partial plans in one state are
thinned to one for each 1/``MAX_LABELS`` of the memory, the fastest, and with more than three GPUs not every order is
tried, and the output layer is not left to the host. A test compares it with all assignments of small models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ktllama import devices
from ktllama.planner.cost import Assignment, core_seconds, part_seconds
from ktllama.planner.machine import Machine, Processor
from ktllama.planner.parts import Layer, ModelParts

MAX_LABELS = 384
_MAX_ORDERS = 24

#: With more GPUs than this, rooms that differ by less than one of so many steps count as the same for their order: a
#: buffer that is some MiB larger on one of eight cards would make thousands of orders.
_MAX_EXACT_GPUS = 3
_ROOM_STEPS = 8

#: A layer whose matrices are on different devices must be worth this share of the layer's time.
_SPLIT_PENALTY = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What to assign. ``room`` is by GPU what its open parts may take, in bytes, after all that is fixed there.

    ``host_price`` is added for each byte of host memory that the assignment takes, in seconds: 0 unless RAM is short.
    ``order`` begins the order of the GPUs' runs, and ``output`` is the output layer's device, where those are not free.
    """

    model: ModelParts
    machine: Machine
    room: Mapping[str, int]
    host_price: float = 0.0
    order: tuple[str, ...] = ()
    output: str | None = None


@dataclass(frozen=True, slots=True)
class _Option:
    """One way to treat a layer in a run: what it takes of the run's GPU, what it costs, and which devices it means."""

    n_bytes: int
    seconds: float
    core: str
    matrices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Labels:
    """Partial plans up to a layer, in order of memory. ``run`` and ``label`` say which one each continues."""

    n_bytes: NDArray[np.int64]
    seconds: NDArray[np.float64]
    run: NDArray[np.int64]
    label: NDArray[np.int64]
    option: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Found:
    seconds: float
    assignment: Assignment


def optimise(problem: Problem) -> Assignment:
    """The assignment with the least predicted time a token, among those that keep every GPU within its room."""
    known: _Known = {}
    found = [
        best
        for output in _output_devices(problem)
        for order in _orders(problem)
        if (best := _Search(problem, order, output, known).best()) is not None
    ]
    assert found, "an assignment of everything open to the host is always possible"
    return min(found, key=lambda best: best.seconds).assignment


def _output_devices(problem: Problem) -> list[str]:
    """Where the output layer may be: where the rules want it, else the host or any GPU that has room for it."""
    output = problem.model.output
    if output.device is not None:
        return [output.device]
    if problem.output is not None:
        return [problem.output]
    fits = [gpu.name for gpu in problem.machine.gpus if problem.room[gpu.name] >= output.n_bytes]
    alike: dict[tuple[object, ...], list[str]] = {}
    for name in fits:
        alike.setdefault(_kind(problem, name), []).append(name)
    if len(problem.machine.gpus) > _MAX_EXACT_GPUS and fits:
        return [names[-1] for names in alike.values()]  # with so many, the last has room for it if any has
    # of GPUs that are alike, the first and the last of the runs are the only ones that can differ
    chosen = {name for names in alike.values() for name in (names[0], names[-1])}
    return [devices.CPU, *(name for name in fits if name in chosen)]


def _kind(problem: Problem, name: str) -> tuple[object, ...]:
    """What makes two GPUs interchangeable: room and speed, and that no rule names them."""
    gpu = problem.machine.processor(name)
    named = {part.device for part in problem.model.all_fixed} | {layer.device for layer in problem.model.layers}
    own = name if name in named else None
    room = problem.room[name]
    if len(problem.machine.gpus) > _MAX_EXACT_GPUS:
        room = round(_ROOM_STEPS * room / max(1, *problem.room.values()))
    return (room, gpu.bandwidth, gpu.default_flops, tuple(sorted(gpu.flops.items())), own)


def _orders(problem: Problem) -> Iterator[tuple[Processor, ...]]:
    """The orders of the GPUs that can differ, their own first; at most ``_MAX_ORDERS``."""
    alike: dict[tuple[object, ...], list[Processor]] = {}
    head = tuple(problem.machine.processor(name) for name in problem.order)
    for gpu in problem.machine.gpus:
        if gpu.name in problem.order:
            continue
        alike.setdefault(_kind(problem, gpu.name), []).append(gpu)
    kinds = tuple(alike)

    def continued(left: tuple[int, ...]) -> Iterator[tuple[Processor, ...]]:
        if not any(left):
            yield ()
        for number, kind in enumerate(kinds):
            if left[number]:
                nearest = alike[kind][-left[number]]
                for tail in continued((*left[:number], left[number] - 1, *left[number + 1 :])):
                    yield (nearest, *tail)

    tails = continued(tuple(len(gpus) for gpus in alike.values()))
    return ((*head, *tail) for tail in itertools.islice(tails, _MAX_ORDERS))


#: The ways to treat a layer in a run, by what the layer is like and the run's GPU: most layers of a model are alike.
_Known: TypeAlias = dict[tuple[object, ...], "list[_Option]"]


class _Search:
    """The dynamic programme for one order of the GPUs and one place of the output layer."""

    def __init__(self, problem: Problem, order: Sequence[Processor], output: str, known: _Known) -> None:
        self.problem = problem
        self.layers = problem.model.layers
        self.cpu = problem.machine.cpu
        self.runs: tuple[Processor, ...] = (self.cpu, *order)
        self.output = output
        self.crossing = problem.machine.crossing_seconds
        self.options = [self._options_by_run(layer, known) for layer in self.layers]

    def room(self, run: int) -> int:
        if run == 0:
            return 0
        name = self.runs[run].name
        taken = (
            self.problem.model.output.n_bytes if self.output == name and self.problem.model.output.device is None else 0
        )
        return self.problem.room[name] - taken

    def best(self) -> _Found | None:
        """The best assignment, None if this place of the output layer leaves a GPU without room."""
        if any(self.room(run) < 0 for run in range(len(self.runs)) if self.runs[run].name == self.output):
            return None
        table: list[list[_Labels | None]] = []
        for index in range(len(self.layers)):
            table.append([self._extend(table, index, run) for run in range(len(self.runs))])
        ends = [
            (labels.seconds[at] + self._end_seconds(run), run, at)
            for run, labels in enumerate(table[-1])
            if labels is not None
            for at in [int(labels.seconds.argmin())]
        ]
        if not ends:
            return None
        seconds, run, at = min(ends)
        return _Found(float(seconds), self._assignment(table, run, at))

    def _end_seconds(self, run: int) -> float:
        output = self.problem.model.output
        processor = self.problem.machine.processor(self.output)
        last = self._core_device(len(self.layers) - 1, run)
        crossings = (last != self.output) + (self.output != devices.CPU)
        return part_seconds(output, processor) + self.crossing * crossings + self._host(self.output, output.n_bytes)

    def _core_device(self, index: int, run: int) -> str:
        return self.layers[index].device or self.runs[run].name

    def _extend(self, table: list[list[_Labels | None]], index: int, run: int) -> _Labels | None:
        """Labels of layers 0 … index with the last in ``run``: those that stay in it, and those that enter it."""
        sources = self._sources(table, index, run)
        if not sources:
            return None
        options = self.options[index][run]
        taken = np.array([option.n_bytes for option in options], dtype=np.int64)
        cost = np.array([option.seconds for option in options])
        n_bytes = np.concatenate([(used[:, None] + taken).ravel() for _, _, used, _ in sources])
        seconds = np.concatenate([(time[:, None] + cost).ravel() for _, _, _, time in sources])
        runs = np.concatenate([np.full(len(used) * len(options), source) for source, _, used, _ in sources])
        labels = np.concatenate([np.repeat(at, len(options)) for _, at, _, _ in sources])
        chosen = np.tile(np.arange(len(options)), len(labels) // len(options))
        kept = _pareto(n_bytes, seconds, self.room(run))
        if not len(kept):
            return None
        return _Labels(n_bytes[kept], seconds[kept], runs[kept], labels[kept], chosen[kept])

    def _sources(
        self, table: list[list[_Labels | None]], index: int, run: int
    ) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
        """What layer ``index`` in ``run`` may continue: (run, labels, memory used on this run's GPU, seconds)."""
        nothing = np.zeros(1, dtype=np.int64)
        if index == 0:
            start = self.crossing * (self._core_device(0, run) != devices.CPU)
            return [(-1, nothing, nothing, np.array([start]))]
        found = []
        for before in range(run + 1):
            labels = table[index - 1][before]
            if labels is None:
                continue
            step = self.crossing * (self._core_device(index - 1, before) != self._core_device(index, run))
            if before == run:
                found.append((before, np.arange(len(labels.seconds)), labels.n_bytes, labels.seconds + step))
            else:
                at = int(labels.seconds.argmin())
                found.append((before, np.array([at]), nothing, labels.seconds[at : at + 1] + step))
        return found

    def _options_by_run(self, layer: Layer, known: _Known) -> list[list[_Option]]:
        found = []
        like = _like(layer)
        for run in self.runs:
            key = (run.name, *like)
            if key not in known:
                known[key] = list(self._options(layer, run))
            found.append(known[key])
        return found

    def _options(self, layer: Layer, run: Processor) -> Iterator[_Option]:
        core = layer.device or run.name
        places = [
            [part.device] if part.device else list(dict.fromkeys((self.cpu.name, run.name))) for part in layer.matrices
        ]
        for matrices in itertools.product(*places):
            yield self._option(layer, run, core, matrices)

    def _option(self, layer: Layer, run: Processor, core: str, matrices: tuple[str, ...]) -> _Option:
        machine = self.problem.machine
        taken = layer.core_bytes if layer.device is None else 0
        seconds = core_seconds(layer, machine.processor(core)) + self._host(core, layer.core_bytes)
        for part, device in zip(layer.matrices, matrices, strict=True):
            seconds += part_seconds(part, machine.processor(device)) + self._host(device, part.n_bytes)
            taken += part.n_bytes if device == run.name and part.device is None else 0
        seconds += self.crossing * sum(a != b for a, b in itertools.pairwise((core, *matrices, core)))
        if len({device for part, device in zip(layer.matrices, matrices, strict=True) if part.device is None}) > 1:
            seconds *= 1 + _SPLIT_PENALTY
        return _Option(taken if run.name != devices.CPU else 0, seconds, core, matrices)

    def _host(self, device: str, n_bytes: int) -> float:
        return self.problem.host_price * n_bytes if device == devices.CPU else 0.0

    def _assignment(self, table: list[list[_Labels | None]], run: int, at: int) -> Assignment:
        cores: list[str] = []
        matrices: list[tuple[str, ...]] = []
        for index in reversed(range(len(self.layers))):
            labels = table[index][run]
            assert labels is not None
            option = self.options[index][run][int(labels.option[at])]
            cores.append(option.core)
            matrices.append(option.matrices)
            run, at = int(labels.run[at]), int(labels.label[at])
        return Assignment(cores=tuple(reversed(cores)), matrices=tuple(reversed(matrices)), output=self.output)


def _like(layer: Layer) -> tuple[object, ...]:
    """What decides a layer's options: everything but its number and its tensors' names."""
    parts = ((part.n_bytes, part.reads, part.device, part.chosen) for part in (layer.core, *layer.matrices))
    return (layer.device, layer.kv_bytes, layer.kv_read_bytes, layer.attention_operations, layer.n_nodes, *parts)


def _pareto(n_bytes: NDArray[np.int64], seconds: NDArray[np.float64], room: int) -> NDArray[np.int64]:
    """Indexes of the labels within ``room`` that no other beats in both, by memory; at most ``MAX_LABELS``."""
    order = np.lexsort((seconds, n_bytes))
    order = order[n_bytes[order] <= room]
    if not len(order):
        return order
    best = np.minimum.accumulate(seconds[order])
    better = np.concatenate(([True], best[1:] < best[:-1]))
    order = order[better]
    if len(order) > MAX_LABELS:
        bucket = n_bytes[order] * MAX_LABELS // (room + 1)
        order = order[np.concatenate((bucket[1:] != bucket[:-1], [True]))]  # the last of a bucket is its fastest
    return order
