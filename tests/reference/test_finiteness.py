"""Weights that are no numbers, told from the bytes."""

from __future__ import annotations

import numpy as np
import pytest

from ktllama.model.tensor_types import TENSOR_TYPES
from ktllama.reference.finiteness import all_finite, told_by_bytes
from ktllama.reference.weights import can_dequantize, dequantized

TYPES = [name for name in TENSOR_TYPES if can_dequantize(name) and told_by_bytes(name)]


def test_the_types_in_use_are_told_by_their_bytes() -> None:
    left = {name for name in TENSOR_TYPES if can_dequantize(name)} - set(TYPES)
    assert left <= {"IQ1_M", "MXFP4", "NVFP4", "Q1_0", "Q2_0"}
    assert {"F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K", "Q2_K", "IQ4_XS"} <= set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_the_bytes_say_what_the_values_say(name: str) -> None:
    """On random blocks: in some of each type a scale is no number."""
    n_bytes = TENSOR_TYPES[name].block_bytes
    blocks = np.random.default_rng(0).integers(0, 256, (3000, n_bytes), np.uint8)
    blocks[:20] = 0xFF
    by_values = np.isfinite(dequantized(blocks, name)).all(axis=1)
    by_bytes = [all_finite(block[None], name) for block in blocks]
    assert by_bytes == by_values.tolist()
    assert 0 < by_values.sum() < len(blocks)
    assert all_finite(blocks[by_values], name)
    assert not all_finite(blocks, name)
