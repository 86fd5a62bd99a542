"""The names of parameters and of GGUF tensors, one to one.

A parameter is called as its tensor, but for the dot after ``attn`` and ``ffn`` where a tensor has an underscore:

    blk.3.attn.q_a.weight        blk.3.attn_q_a.weight          (q_lora, D)
    blk.3.attn.k_b.weight        blk.3.attn_k_b.weight          (H, kv_lora, nope)
    blk.3.attn.v_b.weight        blk.3.attn_v_b.weight          (H, v, kv_lora)
    blk.3.ffn.gate_exps.weight   blk.3.ffn_gate_exps.weight     (E, F, D)
    blk.3.ffn.exp_probs_b.bias   blk.3.exp_probs_b.bias         (E,)
    blk.4.nextn.eh_proj.weight   blk.4.nextn.eh_proj.weight     (D, 2·D)

Shapes are torch's, with the contiguous dimension last; gguf's writer takes them as they are.
"""

from __future__ import annotations

import re

_PART = re.compile(r"^(blk\.\d+\.)(attn|ffn)\.")
_TENSOR = re.compile(r"^(blk\.\d+\.)(attn|ffn)_(?!norm\.)")
_BIAS = "exp_probs_b.bias"


def gguf_name(parameter: str) -> str:
    """The GGUF tensor of a parameter."""
    if parameter.endswith(".ffn." + _BIAS):
        return parameter.replace(".ffn.", ".")
    return _PART.sub(r"\1\2_", parameter)


def parameter_name(tensor: str) -> str:
    """The parameter of a GGUF tensor."""
    if tensor.endswith("." + _BIAS):
        return tensor.replace("." + _BIAS, ".ffn." + _BIAS)
    return _TENSOR.sub(r"\1\2.", tensor)


def kept_in_float32(parameter: str) -> bool:
    """Whether GGUF files keep the parameter in float32 whatever the rest is in: norms, biases and the router."""
    return parameter.endswith(".bias") or computed_in_float32(parameter)


def computed_in_float32(parameter: str) -> bool:
    """Whether the model computes with the parameter in float32 at least: norms, the router and its bias.

    In bfloat16 the selection bias of a model such as R1 would lose what tells its experts apart.
    """
    return parameter.endswith(("norm.weight", "ffn.gate_inp.weight", "ffn.exp_probs_b.bias"))
