"""The mixes of llama.cpp's quantizer, for models whose file is not at hand.

Source: llama.cpp ``src/llama-quant.cpp`` (vendored by llama-cpp-python 0.3.36). What the mix gives some models besides
(more bits for the attention of eight-expert and 70B models) is left out: it is a guess at a size, not a quantizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from ktllama.model.gguf import TENSOR_TYPES, tensor_bytes

#: (tensor, shape, layer or None outside the blocks, layers) → ggml type.
Mix: TypeAlias = Callable[[str, tuple[int, ...], "int | None", int], str]

#: What most people download.
DEFAULT = "Q4_K_M"

_KEPT_F32 = re.compile(r"_norm\.|ffn_gate_inp\.|exp_probs_b\.|ssm_conv1d\.|\.bias$|rope_|enorm|hnorm|norm\.weight$")
_DOWN = re.compile(r"\.(ffn_down(?:_exps|_shexp)?|attn_v|attn_kv_b)\.")


def n_bytes(shape: tuple[int, ...], type_name: str) -> int:
    """Bytes of a tensor of ggml shape ``shape`` (contiguous dimension first)."""
    return tensor_bytes(type_name, shape)


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


def uniform(type_name: str) -> Mix:
    """A mix that gives every matrix the type ``type_name`` and keeps vectors and routers in F32."""

    def mix(name: str, shape: tuple[int, ...], _layer: int | None, _n_layers: int) -> str:
        if _KEPT_F32.search(name) or len(shape) == 1:
            return "F32"
        return type_name if shape[0] % TENSOR_TYPES[type_name].block_items == 0 else "F16"

    return mix


def mxfp4(name: str, shape: tuple[int, ...], layer: int | None, n_layers: int) -> str:
    """The types of a model published with experts in MXFP4 (gpt-oss); the rest is Q8_0."""
    if "_exps." in name and len(shape) == 3:
        return "MXFP4"
    return uniform("Q8_0")(name, shape, layer, n_layers)


#: The quantizations that can be assumed for a model, by the name that llama.cpp's quantizer gives them.
MIXES: Mapping[str, Mix] = {
    DEFAULT: q4_k_m,
    "MXFP4": mxfp4,
    "Q8_0": uniform("Q8_0"),
    "BF16": uniform("BF16"),
    "F16": uniform("F16"),
    "F32": uniform("F32"),
}
