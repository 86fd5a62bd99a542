"""Whether weights are numbers, told from the bytes of a file: of a quantized block only its scales can be none.

Dequantizing every expert of a large model would take hours; this reads as fast as the disk and the memory do.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ktllama.model.tensor_types import TENSOR_TYPES

#: The exponent of a float, in as many bits as it has: all ones in infinity and NaN.
_EXPONENTS: Mapping[str, np.uint16 | np.uint32 | np.uint64] = {
    "F16": np.uint16(0x7C00),
    "BF16": np.uint16(0x7F80),
    "F32": np.uint32(0x7F80_0000),
    "F64": np.uint64(0x7FF0_0000_0000_0000),
}

#: Where the half-precision scales of a block begin, in bytes (``ggml/src/ggml-common.h`` of llama-cpp-python 0.3.36).
_SCALES: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ1_S"), (0,)),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}

_HALF_EXPONENT = 0x7C  # in the higher of its two bytes, which comes second


def told_by_bytes(type_name: str) -> bool:
    """Whether the bytes of a ggml type show it; else the values must be computed."""
    return type_name in _EXPONENTS or type_name in _SCALES


def all_finite(encoded: npt.NDArray[np.uint8], type_name: str) -> bool:
    """Whether rows of bytes, of whole blocks of a type that :func:`told_by_bytes` knows, hold numbers only."""
    if type_name in _EXPONENTS:
        exponent = _EXPONENTS[type_name]
        bits = np.ascontiguousarray(encoded).view(exponent.dtype)
        return not bool(((bits & exponent) == exponent).any())
    blocks = encoded.reshape(-1, TENSOR_TYPES[type_name].block_bytes)
    higher = (blocks[:, start + 1] & _HALF_EXPONENT for start in _SCALES[type_name])
    return not any(bool((exponents == _HALF_EXPONENT).any()) for exponents in higher)
