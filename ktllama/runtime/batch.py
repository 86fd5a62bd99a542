"""``llama_batch`` over arrays that are made once and filled by slices; one token is of one sequence."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ktllama.engine.executor import Row


class Batch:
    """Room for ``capacity`` tokens. ``value`` is llama.cpp's structure, valid while this object lives."""

    def __init__(self, api: Any, capacity: int) -> None:
        self.capacity = capacity
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        self._n_sequences = np.ones(capacity, np.int32)
        # seq_id[i] points at the i-th entry of one array
        self._sequence_pointers = self._sequences.ctypes.data + 4 * np.arange(capacity, dtype=np.uint64)
        self.value = api.llama_batch()
        self.value.token = _pointer(self._tokens, ctypes.c_int32)
        self.value.pos = _pointer(self._positions, ctypes.c_int32)
        self.value.n_seq_id = _pointer(self._n_sequences, ctypes.c_int32)
        self.value.seq_id = _pointer(self._sequence_pointers, ctypes.POINTER(ctypes.c_int32))
        self.value.logits = _pointer(self._outputs, ctypes.c_int8)

    def fill(self, rows: Sequence[Row]) -> None:
        """Take ``rows``, at most ``capacity``."""
        size = len(rows)
        self._tokens[:size] = [row.token for row in rows]
        self._positions[:size] = [row.position for row in rows]
        self._sequences[:size] = [row.sequence for row in rows]
        self._outputs[:size] = [row.sample for row in rows]
        self.value.n_tokens = size

    def fill_prompt(self, tokens: Sequence[int], start: int) -> None:
        """Take consecutive ``tokens`` of sequence 0 from position ``start`` on, all of them outputs."""
        size = len(tokens)
        self._tokens[:size] = tokens
        self._positions[:size] = np.arange(start, start + size)
        self._sequences[:size] = 0
        self._outputs[:size] = 1
        self.value.n_tokens = size


def output_rows(pointer: Any, n_rows: int, n_columns: int) -> npt.NDArray[np.float32]:
    """llama.cpp's own memory at a ``float *``, which must not be NULL, as an array (n_rows, n_columns); not a copy."""
    address = ctypes.cast(pointer, ctypes.c_void_p).value
    assert address is not None
    memory: Any = (ctypes.c_float * (n_rows * n_columns)).from_address(address)
    return np.frombuffer(memory, np.float32).reshape(n_rows, n_columns)


def _pointer(array: Any, kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
