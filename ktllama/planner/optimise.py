"""The fastest assignment of what is open, within every GPU's memory.

Layers go to devices in contiguous runs: first the host (as many as must), then one GPU after another. Within its run a
GPU holds the layers' cores, and those of their matrices that are worth it. That is a knapsack a run, and runs meet only
where a layer changes device: a dynamic programme over layers whose state is the GPU of the current run and the memory
used on it. Of partial plans with the same state only those are kept that no other beats in both memory and time, and
that could still become faster than the best assignment known, or than little more than a bound of it
(:mod:`ktllama.planner.relaxation`).
It is exact, also in which GPU comes first, with two exceptions: of more than ``MAX_LABELS`` partial plans in one state
only the most promising are kept, and with more than three GPUs few orders are tried, none any more once one is within
0.25% of the bound, and the output layer is not left to the host. A test compares it with all assignments of small
models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ktllama import devices
from ktllama.planner.cost import Assignment, part_seconds
from ktllama.planner.machine import Processor
from ktllama.planner.options import Option, Options, Problem
from ktllama.planner.relaxation import Relaxation

MAX_LABELS = 384

#: Where host memory has a limit, each of at most so many is compared with each.
_MAX_COMPARED = 1024

#: By how much more than the bound the best assignment may take: as little as may be is tried first, since the less that
#: is, the fewer partial plans are worth keeping.
_SLACKS = (0.005, 0.02, 0.1, np.inf)
_MAX_ORDERS = 6

#: With more GPUs than this, rooms that differ by less than one of so many steps count as the same for their order: a
#: buffer that is some MiB larger on one of eight cards would make thousands of orders.
_MAX_EXACT_GPUS = 3
_ROOM_STEPS = 8

#: With so many, an order that is within this share of the bound is good enough: others gain less than that.
_GOOD_ENOUGH = 0.0025

#: An assignment that is faster by less than this share is no better: sums differ by rounding.
_ROUNDING = 1e-9


_NOTHING = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Labels:
    """Partial plans up to a layer. ``run`` and ``label`` say which one each continues, ``n_bytes`` counts on the GPU of
    its run, ``host_bytes`` on the host."""

    n_bytes: NDArray[np.int64]
    host_bytes: NDArray[np.int64]
    seconds: NDArray[np.float64]
    run: NDArray[np.int64]
    label: NDArray[np.int64]
    option: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Source:
    """What a layer in some run may continue: labels of the layer before, in that run or another."""

    run: int
    label: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    host_bytes: NDArray[np.int64]
    seconds: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Solution:
    """An assignment and the seconds of its layers and its output, with the price of host memory if it has no limit."""

    seconds: float
    assignment: Assignment


def optimise(problem: Problem) -> Assignment:
    """The assignment with the least predicted time a token, among those that keep every GPU within its room.

    There is one unless the problem has a limit of host memory, or its output a GPU without room for it.
    """
    best = solve(problem)
    assert best is not None, "an assignment of everything open to the host is always possible"
    return best.assignment


def solve(problem: Problem, faster_than: float = np.inf) -> Solution | None:
    """The best assignment if it takes less than ``faster_than`` seconds.

    With ``host_room`` there may be none without such a limit too; it should be that of an assignment that is known.
    """
    best: Solution | None = None
    near = 1 + (_GOOD_ENOUGH if len(problem.machine.gpus) > _MAX_EXACT_GPUS else 0.0)
    for search in sorted(_searches(problem), key=lambda one: one.least_seconds):
        if best is not None and best.seconds <= search.least_seconds * near:
            break
        best = search.best(best.seconds if best else faster_than) or best
    return best


def least_seconds(problem: Problem) -> float:
    """A bound: no assignment of the layers and the output takes less."""
    return min(search.least_seconds for search in _searches(problem))


def _searches(problem: Problem) -> list[_Search]:
    options = Options(problem)
    relaxation = Relaxation(problem.model.layers, problem.machine.gpus, options)
    return [
        _Search(problem, order, output, options, relaxation)
        for output in _output_devices(problem)
        for order in _orders(problem)
    ]


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


class _Search:
    """The dynamic programme for one order of the GPUs and one place of the output layer.

    ``least_seconds`` is a bound: no assignment of it is faster; infinite if this output leaves its GPU without room.
    Bounds count host memory at its price. Where it has a limit, no assignment takes more than that, so what all of it
    costs is taken off again.
    """

    def __init__(
        self, problem: Problem, order: Sequence[Processor], output: str, options: Options, relaxation: Relaxation
    ) -> None:
        self.problem = problem
        self.layers = problem.model.layers
        self.runs: tuple[Processor, ...] = (problem.machine.cpu, *order)
        self.output = output
        self.crossing = problem.machine.crossing_seconds
        self.options = [[options.of(layer, run) for run in self.runs] for layer in self.layers]
        self.relaxation = relaxation
        self.rooms = [self._room(run) for run in range(len(self.runs))]
        self.later = [sum(max(0, room) for room in self.rooms[run + 1 :]) for run in range(len(self.runs))]
        on_host = problem.model.output.n_bytes if output == devices.CPU else 0
        self.host_room = None if problem.host_room is None else problem.host_room - on_host
        self.bound_price = 0.0 if self.host_room is None else problem.host_price
        self.end = part_seconds(problem.model.output, problem.machine.processor(output))
        self.end += self.crossing * (output != devices.CPU)
        if self.host_room is None:
            self.end += problem.host_price * on_host
        self.least_end = self.end - self.bound_price * (self.host_room or 0)
        self.least_seconds = self._least_seconds()

    def _room(self, run: int) -> int:
        if run == 0:
            return 0
        name, output = self.runs[run].name, self.problem.model.output
        return self.problem.room[name] - (output.n_bytes if self.output == name and output.device is None else 0)

    def _least_seconds(self) -> float:
        here = {run.name: room for run, room in zip(self.runs, self.rooms, strict=True)}
        if self.problem.model.output.device is None and here[self.output] < 0:
            return float("inf")
        of_layer = [(one.seconds + self.bound_price * one.host_bytes).min() for one, *_ in self.options]
        on_host = np.concatenate(([0.0], np.cumsum(of_layer)))
        everything = np.array([self.later[0]])
        begins = range(len(self.layers) + 1 if len(self.runs) > 1 else 0)
        mixed = [on_host[at] + self.relaxation.seconds(at, everything)[0] for at in begins]
        return float(min(on_host[-1], *mixed, np.inf)) + self.least_end

    def best(self, limit: float) -> Solution | None:
        """The best assignment if it is faster than ``limit`` seconds."""
        if self.least_seconds >= limit:
            return None
        for slack in _SLACKS:
            below = min(limit, self.least_seconds + abs(self.least_seconds) * slack)
            found = self._search(below)
            if found is not None or below == limit:
                return found
        return None

    def _search(self, limit: float) -> Solution | None:
        """The best assignment if it is faster than ``limit`` seconds."""
        limit *= 1 - _ROUNDING
        table: list[list[_Labels | None]] = []
        for index in range(len(self.layers)):
            before = table[-1] if table else []
            table.append([self._extend(before, index, run, limit) for run in range(len(self.runs))])
        ends = [
            (labels.seconds[at] + self.end + self.crossing * (self._core_device(-1, run) != self.output), run, at)
            for run, labels in enumerate(table[-1])
            if labels is not None
            for at in [int(labels.seconds.argmin())]
        ]
        seconds, run, at = min(ends, default=(limit, 0, 0))
        return Solution(float(seconds), self._assignment(table, run, at)) if seconds < limit else None

    def _core_device(self, index: int, run: int) -> str:
        return self.layers[index].device or self.runs[run].name

    def _extend(self, before: list[_Labels | None], index: int, run: int, limit: float) -> _Labels | None:
        """Labels of layers 0 … index with the last in ``run``: those that stay in it, and those that enter it."""
        sources = self._sources(before, index, run, limit)
        if not sources:
            return None
        options = self.options[index][run]
        every = _Labels(
            n_bytes=_sums([one.n_bytes for one in sources], options.n_bytes),
            host_bytes=_sums([one.host_bytes for one in sources], options.host_bytes),
            seconds=_sums([one.seconds for one in sources], options.seconds),
            run=np.repeat([one.run for one in sources], [len(one.label) for one in sources]),
            label=np.concatenate([one.label for one in sources]),
            option=_NOTHING,
        )
        kept = self._worth_keeping(index, run, every, limit)
        if not len(kept):
            return None
        source, option = np.divmod(kept, len(options.options))
        return _Labels(
            n_bytes=every.n_bytes[kept],
            host_bytes=every.host_bytes[kept],
            seconds=every.seconds[kept],
            run=every.run[source],
            label=every.label[source],
            option=option,
        )

    def _worth_keeping(self, index: int, run: int, labels: _Labels, limit: float) -> NDArray[np.int64]:
        """The indexes of what has room, may become faster than ``limit`` and is beaten by no other."""
        least = self._least(index + 1, run, labels.n_bytes, labels.host_bytes, labels.seconds)
        possible = (labels.n_bytes <= self.rooms[run]) & (least < limit)
        if self.host_room is not None:
            possible &= labels.host_bytes <= self.host_room
        kept = np.flatnonzero(possible)
        if self.host_room is None:
            kept = kept[_undominated(labels.n_bytes[kept], labels.seconds[kept])]
        else:
            kept = _most_promising(kept, least, _MAX_COMPARED)
            kept = kept[_undominated_3d(labels.n_bytes[kept], labels.host_bytes[kept], labels.seconds[kept])]
        return _most_promising(kept, least, MAX_LABELS)

    def _least(
        self,
        begin: int,
        run: int,
        n_bytes: NDArray[np.int64],
        host_bytes: NDArray[np.int64],
        seconds: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """How fast partial plans of the layers before ``begin``, with ``n_bytes`` on this run's GPU, may become."""
        priced = seconds + self.bound_price * host_bytes if self.bound_price else seconds
        if run == 0:
            return priced + self.least_end
        left = self.rooms[run] + self.later[run] - n_bytes
        return priced + (self.least_end + self.relaxation.seconds(begin, left))

    def _sources(self, table: list[_Labels | None], index: int, run: int, limit: float) -> list[_Source]:
        """What layer ``index`` in ``run`` may continue, of the labels of the layer before."""
        if index == 0:
            start = self.crossing * (self._core_device(0, run) != devices.CPU)
            return [_Source(-1, _NOTHING, _NOTHING, _NOTHING, np.array([start]))]
        found = []
        for before, labels in enumerate(table[: run + 1]):
            if labels is None:
                continue
            seconds = labels.seconds
            if self._core_device(index - 1, before) != self._core_device(index, run):
                seconds = seconds + self.crossing
            at, n_bytes = np.arange(len(seconds)), labels.n_bytes
            if before != run:
                # what a GPU holds that is done with does not matter; without a limit of the host the fastest is best
                if self.host_room is None:
                    at = np.array([seconds.argmin()])
                n_bytes = np.zeros(len(at), dtype=np.int64)
                at = at[self._least(index, run, n_bytes, labels.host_bytes[at], seconds[at]) < limit]
            if len(at):
                found.append(_Source(before, at, n_bytes[: len(at)], labels.host_bytes[at], seconds[at]))
        return found

    def _assignment(self, table: list[list[_Labels | None]], run: int, at: int) -> Assignment:
        chosen: list[Option] = []
        for index in reversed(range(len(self.layers))):
            labels = table[index][run]
            assert labels is not None
            chosen.append(self.options[index][run].options[int(labels.option[at])])
            run, at = int(labels.run[at]), int(labels.label[at])
        chosen.reverse()
        return Assignment(
            cores=tuple(option.core for option in chosen),
            matrices=tuple(option.matrices for option in chosen),
            output=self.output,
        )


_Number = TypeVar("_Number", np.int64, np.float64)


def _sums(before: Sequence[NDArray[_Number]], options: NDArray[_Number]) -> NDArray[_Number]:
    """Every sum of one of ``before`` and one of ``options``, those of one label together."""
    used = before[0] if len(before) == 1 else np.concatenate(before)
    return (used[:, None] + options).ravel()


def _undominated(n_bytes: NDArray[np.int64], seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indexes of those that no other beats in both, by memory."""
    order = np.lexsort((seconds, n_bytes))
    fastest = np.minimum.accumulate(seconds[order])
    return order[np.concatenate(([True], fastest[1:] < fastest[:-1]))[: len(order)]]


def _undominated_3d(
    n_bytes: NDArray[np.int64], host_bytes: NDArray[np.int64], seconds: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Indexes of those that no other beats in all three."""
    order = np.lexsort((host_bytes, seconds, n_bytes))
    host, time = host_bytes[order], seconds[order]
    # before[i, j]: j is before i in that order, so it has no more bytes on the GPU, and no more of the others either
    before = np.tri(len(order), k=-1, dtype=bool)
    before &= (host[None, :] <= host[:, None]) & (time[None, :] <= time[:, None])
    return order[~before.any(axis=1)]


def _most_promising(kept: NDArray[np.int64], least: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """At most so many of ``kept``: those that may become fastest."""
    if len(kept) <= most:
        return kept
    return kept[np.sort(np.argpartition(least[kept], most)[:most])]
