"""The least time that the rest of a model can take: a bound for partial plans.

All GPUs left are one memory, every layer may be in the run of any of them, and its options may be mixed in shares. That
is a linear programme whose optimum is greedy: along each layer's convex hull of (memory, seconds), the steepest step of
any layer first. No assignment undercuts it, and it is close: one layer's step at most is mixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ktllama.planner.machine import Processor
from ktllama.planner.options import Options, like
from ktllama.planner.parts import Layer


class Relaxation:
    """Bounds for layers that are in GPUs' runs."""

    def __init__(self, layers: Sequence[Layer], gpus: Sequence[Processor], options: Options) -> None:
        if not gpus:  # then no layer is in a GPU's run
            layers = ()
        hulls: dict[tuple[object, ...], list[tuple[int, float]]] = {}
        of_layer = []
        for layer in layers:
            kind = like(layer)
            if kind not in hulls:
                hulls[kind] = _hull(
                    (option.n_bytes, options.priced(option))
                    for gpu in gpus
                    for option in options.of(layer, gpu).options
                )
            of_layer.append(hulls[kind])
        steps = [
            (index, after[0] - before[0], after[1] - before[1])
            for index, hull in enumerate(of_layer)
            for before, after in itertools.pairwise(hull)
        ]
        steps.sort(key=lambda step: step[2] / step[1])
        owners = np.array([index for index, _, _ in steps], dtype=np.int64)
        n_bytes = np.array([taken for _, taken, _ in steps], dtype=np.float64)
        seconds = np.array([saved for _, _, saved in steps], dtype=np.float64)
        self._curves: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        for begin in range(len(layers) + 1):
            left = owners >= begin
            first = (sum(hull[0][0] for hull in of_layer[begin:]), sum(hull[0][1] for hull in of_layer[begin:]))
            self._curves.append((_summed(first[0], n_bytes[left]), _summed(first[1], seconds[left])))

    def seconds(self, begin: int, room: NDArray[np.int64]) -> NDArray[np.float64]:
        """At least the seconds of layers ``begin`` … within ``room`` bytes, infinite where they have no room."""
        n_bytes, seconds = self._curves[begin]
        return np.asarray(np.interp(room, n_bytes, seconds, left=np.inf))


def _summed(first: float, steps: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate(([first], first + np.cumsum(steps)))


def _hull(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """The lower convex hull of points (bytes, seconds), from the least bytes to the least seconds."""
    hull: list[tuple[int, float]] = []
    for n_bytes, seconds in sorted(set(points)):
        if hull and seconds >= hull[-1][1]:
            continue
        if hull and n_bytes == hull[-1][0]:
            hull.pop()
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], (n_bytes, seconds)):
            hull.pop()
        hull.append((n_bytes, seconds))
    return hull


def _is_above(first: tuple[int, float], middle: tuple[int, float], last: tuple[int, float]) -> bool:
    """Whether ``middle`` is on or above the line from ``first`` to ``last``."""
    return (middle[1] - first[1]) * (last[0] - first[0]) >= (last[1] - first[1]) * (middle[0] - first[0])
