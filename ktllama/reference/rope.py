"""Rotary position embedding with YaRN, as ggml computes it.

Source: ``ggml_compute_forward_rope`` and ``rope_yarn`` in ``ggml/src/ggml-cpu/ops.cpp``, ``ggml_rope_yarn_corr_dims``
in ``ggml/src/ggml.c`` of the llama.cpp in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ktllama.reference.config import Pairing, RopeConfig, YarnConfig


def frequencies(config: RopeConfig, factors: Tensor | None = None) -> Tensor:
    """Radians by which each pair turns a position, in float64: (n_dims/2,).

    ``factors`` are Llama 3's, by which the frequencies are divided (``rope_freqs.weight``).
    """
    pairs = torch.arange(config.n_dims // 2, dtype=torch.float64)
    free = config.base ** (-2 * pairs / config.n_dims)
    if factors is not None:
        free = free / factors.double()
    stretched = free / config.factor
    if config.yarn is None:
        return stretched
    kept = yarn_ramp(config, config.yarn)
    return stretched * (1 - kept) + free * kept


def yarn_ramp(config: RopeConfig, yarn: YarnConfig) -> Tensor:
    """How much of its own frequency each pair keeps: 1 for the fast ones, 0 for the slow ones; (n_dims/2,)."""
    first = max(0.0, math.floor(_pair_turning(config, yarn, yarn.beta_fast)))
    last = min(config.n_dims - 1.0, math.ceil(_pair_turning(config, yarn, yarn.beta_slow)))
    pairs = torch.arange(config.n_dims // 2, dtype=torch.float64)
    return 1 - ((pairs - first) / max(0.001, last - first)).clamp(0, 1)


def _pair_turning(config: RopeConfig, yarn: YarnConfig, turns: float) -> float:
    """The pair (a fractional index) that makes so many turns over the original context."""
    return config.n_dims * math.log(yarn.original_context / (turns * 2 * math.pi)) / (2 * math.log(config.base))


def rotation(
    config: RopeConfig, positions: Tensor, dtype: torch.dtype, factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine at ``positions`` (T,) or (B, T), each (…, T, 1, n_dims/2): the 1 is for the heads."""
    angles = positions.double()[..., None, None] * frequencies(config, factors)
    return (angles.cos() * config.magnitude).to(dtype), (angles.sin() * config.magnitude).to(dtype)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor], pairing: Pairing) -> Tensor:
    """Turn the pairs of the heads ``x`` (B, T, H, n_dims) by ``turn``; computed in float32 at least."""
    cos, sin = turn
    if pairing == "neighbours":
        a, b = x.to(cos.dtype).view(*x.shape[:-1], -1, 2).unbind(-1)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)
    a, b = x.to(cos.dtype).chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x.dtype)
