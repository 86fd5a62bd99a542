"""Compute buffers of several ubatches from few dry runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

#: Bytes by device.
Buffers: TypeAlias = Mapping[str, int]


def by_ubatch(sizes: Sequence[int], measure: Callable[[Sequence[int]], Mapping[int, Buffers]]) -> dict[int, Buffers]:
    """The buffers of each ubatch in ``sizes``, of which ``measure`` tells those that llama.cpp does not refuse.

    Only the smallest and the largest are measured. Those between are on the line through both: a buffer is the largest
    of sizes each linear in the ubatch, so it is never above that line.
    """
    ends = list(dict.fromkeys((sizes[0], sizes[-1])))
    made = measure(ends)
    if len(made) < len(ends):
        return dict(measure(sizes))
    (low, least), (high, most) = min(made.items()), max(made.items())
    return {size: made.get(size) or _between(least, most, (size - low) / (high - low)) for size in sizes}


def _between(least: Buffers, most: Buffers, share: float) -> Buffers:
    return {
        device: math.ceil(least.get(device, 0) * (1 - share) + most.get(device, 0) * share)
        for device in {**least, **most}
    }
