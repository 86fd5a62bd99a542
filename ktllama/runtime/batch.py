"""``llama_batch`` over arrays that are made once and filled again and again; one token is of one sequence."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ktllama.engine.executor import Row

#: Up to so many rows are put in one by one: collecting them costs more.
_FEW_ROWS = 8


class Batch:
    """Room for ``capacity`` tokens. ``value`` is llama.cpp's structure, valid while this object lives."""

    def __init__(self, api: Any, capacity: int) -> None:
        self.capacity = capacity
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        self._n_sequences = np.ones(capacity, np.int32)
        columns: tuple[Any, ...] = (self._tokens, self._positions, self._sequences, self._outputs)
        self._columns = tuple(memoryview(column) for column in columns)
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
        self.value.n_tokens = size
        tokens, positions, sequences, outputs = self._columns
        if size <= _FEW_ROWS:
            for index, row in enumerate(rows):
                tokens[index], positions[index] = row.token, row.position
                sequences[index], outputs[index] = row.sequence, row.sample
            return
        put, put_flags = _packers(size)  # numpy takes lists several times as slowly
        put(tokens, 0, *[row.token for row in rows])
        put(positions, 0, *[row.position for row in rows])
        put(sequences, 0, *[row.sequence for row in rows])
        put_flags(outputs, 0, *[row.sample for row in rows])

    def fill_prompt(self, tokens: Sequence[int], start: int) -> None:
        """Take consecutive ``tokens`` of sequence 0 from position ``start`` on, all of them outputs."""
        size = len(tokens)
        self._tokens[:size] = tokens
        self._positions[:size] = np.arange(start, start + size)
        self._sequences[:size] = 0
        self._outputs[:size] = 1
        self.value.n_tokens = size


@cache
def _packers(size: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Write ``size`` numbers of 32 bits, or ``size`` flags of 8, into an array from a place on."""
    return struct.Struct(f"={size}i").pack_into, struct.Struct(f"={size}?").pack_into


class OutputRows:
    """The rows of logits that a context has for a batch: llama.cpp's own memory, at the address of the last time."""

    def __init__(self, api: Any, context: Any, n_columns: int) -> None:
        address_of = ctypes.cast(api.llama_get_logits, ctypes.c_void_p).value
        assert address_of is not None
        self._get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(address_of)  # an address, not a pointer object
        self._context = context
        self._n_columns = n_columns
        self._address: int | None = None
        self._rows = np.zeros((0, n_columns), np.float32)

    def first(self, n_rows: int) -> npt.NDArray[np.float32]:
        """The first ``n_rows``, valid until the next batch; waits until they are computed."""
        address = self._get(self._context)
        if address != self._address or n_rows > len(self._rows):
            self._rows = output_rows(ctypes.c_void_p(address), n_rows, self._n_columns)
            self._address = address
        return self._rows[:n_rows]


def output_rows(pointer: Any, n_rows: int, n_columns: int) -> npt.NDArray[np.float32]:
    """llama.cpp's own memory at a ``float *``, which must not be NULL, as an array (n_rows, n_columns); not a copy."""
    address = ctypes.cast(pointer, ctypes.c_void_p).value
    assert address is not None
    memory: Any = (ctypes.c_float * (n_rows * n_columns)).from_address(address)
    return np.frombuffer(memory, np.float32).reshape(n_rows, n_columns)


def _pointer(array: Any, kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
