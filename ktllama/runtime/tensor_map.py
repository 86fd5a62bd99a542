"""Where a loaded model's tensors really are, read from llama.cpp's own table.

``llama_internal_get_tensor_map`` (``src/llama-model.h``) gives a vector of ``std::pair<std::string, ggml_tensor *>``.
It is C++, so this module reads it only where the symbol's name proves the layout: the tag ``cxx11`` in it means GNU
libstdc++, whose string takes 32 bytes and whose vector begins with a begin and an end pointer. Elsewhere there is no
map, and the caller goes by the log alone. Works on models that were loaded with ``no_alloc`` too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

from ktllama.runtime.library import Library

_SYMBOL = "_Z29llama_internal_get_tensor_mapB5cxx11PK11llama_model"

_STRING_BYTES = 32
_PAIR_BYTES = _STRING_BYTES + ctypes.sizeof(ctypes.c_void_p)

#: Offset of ``buffer`` in ``struct ggml_tensor``: after the enum ``type`` and its padding (``ggml/include/ggml.h``).
_BUFFER_OFFSET = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTensor:
    """One tensor in memory. A tied output is a second entry of the same name.

    ``buffer_type`` is llama.cpp's handle of the kind of memory it lies in; ``alloc_bytes`` what it takes there, padded
    to the buffer's alignment.
    """

    name: str
    buffer_type: int
    alloc_bytes: int


def read(library: Library, model: int) -> tuple[LoadedTensor, ...] | None:
    """Every tensor that llama.cpp keeps of ``model``, or None where the table cannot be read."""
    try:
        function = library.api._lib[_SYMBOL]
    except AttributeError:
        return None
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return tuple(_describe(library, tensor) for tensor in _tensors(function(model)))


def _tensors(vector: int) -> Iterator[int]:
    begin, end = (ctypes.c_void_p * 2).from_address(vector)
    if begin is None or end is None:
        return
    for pair in range(begin, end, _PAIR_BYTES):
        tensor = ctypes.c_void_p.from_address(pair + _STRING_BYTES).value
        assert tensor is not None
        yield tensor


def _describe(library: Library, tensor: int) -> LoadedTensor:
    buffer = ctypes.c_void_p.from_address(tensor + _BUFFER_OFFSET).value
    buffer_type: int = library.call("ggml_backend_buffer_get_type", buffer)
    n_bytes: int = library.call("ggml_backend_buft_get_alloc_size", buffer_type, tensor)
    alignment: int = library.call("ggml_backend_buft_get_alignment", buffer_type)
    return LoadedTensor(
        name=library.text("ggml_get_name", tensor),
        buffer_type=buffer_type,
        alloc_bytes=-(-n_bytes // alignment) * alignment,
    )
