"""Sizes of ggml's tensor types and the mixes of llama.cpp's quantizer, for models whose file is not at hand.

Block sizes: ggml ``ggml.c`` ``type_traits``; the mix: llama.cpp ``src/llama-quant.cpp`` (vendored by
llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

#: ggml type → (elements a block, bytes a block); only what the mixes below use.
BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q5_0": (32, 22),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q6_K": (256, 210),
}

_KEPT_F32 = re.compile(r"_norm\.|ffn_gate_inp\.|exp_probs_b\.|\.bias$|rope_|enorm|hnorm|norm\.weight$")
_DOWN = re.compile(r"\.(ffn_down(?:_exps|_shexp)?|attn_v|attn_kv_b)\.")


def n_bytes(shape: tuple[int, ...], type_name: str) -> int:
    """Bytes of a tensor of ggml shape ``shape`` (contiguous dimension first)."""
    block, size = BLOCKS[type_name]
    return math.prod(shape) // block * size


def _more_bits(layer: int, n_layers: int) -> bool:
    """Layers whose sensitive tensors get more bits (``use_more_bits`` there)."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def q4_k_m(name: str, shape: tuple[int, ...], layer: int | None, n_layers: int) -> str:
    """The type that llama.cpp's Q4_K_M mix gives a tensor. ``layer`` is None outside the blocks."""
    if _KEPT_F32.search(name) or len(shape) == 1:
        return "F32"
    if shape[0] % 256:
        return "Q5_0" if shape[0] % 32 == 0 else "F16"
    if name == "output.weight":
        return "Q6_K"
    if layer is not None and _DOWN.search(name) and _more_bits(layer, n_layers):
        return "Q6_K"
    return "Q4_K"


def uniform(type_name: str) -> Callable[[str, tuple[int, ...], int | None, int], str]:
    """A mix that gives every matrix the type ``type_name`` and keeps vectors and routers in F32."""

    def mix(name: str, shape: tuple[int, ...], _layer: int | None, _n_layers: int) -> str:
        if _KEPT_F32.search(name) or len(shape) == 1:
            return "F32"
        return type_name if shape[0] % BLOCKS[type_name][0] == 0 else "F16"

    return mix
