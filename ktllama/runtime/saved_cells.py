"""What a sequence's cells hold, copied out of the context into main memory and back (``llama_state_seq_get_data``)."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ktllama.errors import LlamaCppError


class SavedSequence:
    """The cells of one sequence of ``n_tokens`` positions, as llama.cpp wrote them."""

    def __init__(self, data: Any, n_tokens: int) -> None:
        self._data = data
        self.n_tokens = n_tokens
        self.n_bytes: int = data.nbytes

    def restore(self, api: Any, context: Any, sequence: int) -> bool:
        """Give the cells to ``sequence``; False, and the sequence is empty, where there is no room for them."""
        return bool(api.llama_state_seq_set_data(context, _bytes_of(self._data), self.n_bytes, sequence))


def saved_bytes(api: Any, context: Any, sequence: int) -> int:
    """What :func:`save` would take."""
    return int(api.llama_state_seq_get_size(context, sequence))


def save(api: Any, context: Any, sequence: int, n_tokens: int) -> SavedSequence:
    """Copy the cells of ``sequence``, which has ``n_tokens`` positions.

    Raises:
        LlamaCppError: when llama.cpp does not write what it announced.
    """
    data = np.empty(saved_bytes(api, context, sequence), np.uint8)
    n_written = api.llama_state_seq_get_data(context, _bytes_of(data), data.nbytes, sequence)
    if n_written != data.nbytes:
        raise LlamaCppError(f"llama.cpp saved {n_written} of {data.nbytes} bytes of a sequence")
    return SavedSequence(data, n_tokens)


def _bytes_of(data: Any) -> Any:
    return ctypes.cast(data.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
