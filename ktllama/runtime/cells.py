"""Which KV cells are taken: our own books beside llama.cpp's, which tells no such number.

A cell holds one token at one position and may belong to several sequences (``llama_memory_seq_cp`` in a unified cache
shares it); it is free again when the last of them gives it up.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np


class Cells:
    """``n_cells`` cells and the sequences that hold them; a sequence's i-th cell is its position i."""

    def __init__(self, n_cells: int, n_sequences: int) -> None:
        self._holders = np.zeros(n_cells, np.int32)
        self._holders_by_one = memoryview(self._holders)  # type: ignore[arg-type]
        self._free = list(range(n_cells))
        self._held = [array("i") for _ in range(n_sequences)]
        self._n_cells = n_cells

    @property
    def n_used(self) -> int:
        """Cells that hold a token."""
        return self._n_cells - len(self._free)

    @property
    def n_free(self) -> int:
        """Cells that hold none."""
        return len(self._free)

    def length(self, sequence: int) -> int:
        """Positions that ``sequence`` holds."""
        return len(self._held[sequence])

    def append(self, sequence: int) -> None:
        """The sequence's next position takes a free cell; there must be one."""
        self.append_each((sequence,))

    def append_each(self, sequences: Sequence[int]) -> None:
        """The next position of each takes a free cell, again where one is named again; there must be as many."""
        free, held, holders = self._free, self._held, self._holders_by_one
        for sequence in sequences:
            cell = free.pop()
            held[sequence].append(cell)
            holders[cell] = 1

    def extend(self, sequence: int, n_positions: int) -> None:
        """The sequence's next positions take free cells; there must be as many."""
        self.append_each((sequence,) * n_positions)

    def copy(self, source: int, target: int, n_positions: int) -> None:
        """``target``, which must be empty, shares the first cells of ``source``."""
        assert not self._held[target], "the target sequence of a copy is not empty"
        shared = self._held[source][:n_positions]
        self._held[target] = shared
        self._holders[_view(shared)] += 1

    def remove(self, sequence: int, start: int) -> None:
        """``sequence`` gives up its positions from ``start`` on."""
        held = self._held[sequence]
        given_up = held[start:]
        self._held[sequence] = held[:start]
        cells = _view(given_up)
        self._holders[cells] -= 1
        self._free += cells[self._holders[cells] == 0].tolist()


def _view(cells: array[int]) -> Any:
    return np.frombuffer(cells, np.int32) if cells else np.zeros(0, np.int32)
