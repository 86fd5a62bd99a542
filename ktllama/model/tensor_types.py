"""The tensor types of ggml and the bytes that tensors take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorType:
    """A ggml type: ``block_items`` values take ``block_bytes`` bytes; a row holds whole blocks."""

    number: int
    name: str
    block_items: int
    block_bytes: int


#: Every type of the pinned llama.cpp by its name (``ggml/include/ggml.h`` and ``type_traits`` in ``ggml/src/ggml.c``).
TENSOR_TYPES: Mapping[str, TensorType] = {
    name: TensorType(number, name, block_items, block_bytes)
    for number, name, block_items, block_bytes in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 36),
        (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292), (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50), (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136), (24, "I8", 1, 1), (25, "I16", 1, 2),
        (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8), (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66), (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18), (42, "Q2_0", 64, 18),
    )
}  # fmt: skip

#: The same types by ggml's number.
TYPES_BY_NUMBER: Mapping[int, TensorType] = {tensor_type.number: tensor_type for tensor_type in TENSOR_TYPES.values()}


def tensor_bytes(type_name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor without padding. ``shape[0]`` is the contiguous dimension.

    Raises:
        KeyError: for a type that the pinned llama.cpp does not have.
        ValueError: when a row is not made of whole blocks.
    """
    tensor_type = TENSOR_TYPES[type_name]
    if shape[0] % tensor_type.block_items:
        raise ValueError(
            f"has rows of {shape[0]:,} values; type {type_name} needs a multiple of {tensor_type.block_items}"
        )
    return math.prod(shape) // tensor_type.block_items * tensor_type.block_bytes


def padded(n_bytes: int, alignment: int) -> int:
    """``n_bytes`` rounded up to a multiple of ``alignment``."""
    return -(-n_bytes // alignment) * alignment
