"""Attention as llama.cpp computes it on a CPU: what the cache keeps, what is rounded for a product, how sums are taken.

Source: ``ggml_compute_forward_flash_attn_ext_f16`` and what it calls in ``ggml/src/ggml-cpu/ops.cpp``, and
``llm_graph_context::build_attn_mha`` in ``src/llama-graph.cpp`` of the llama.cpp in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ktllama.reference.activations import rounded

#: Tokens of a graph from which on flash attention works in tiles, with float32 inside (``GGML_FA_TILE_Q``).
_TILE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuAttention:
    """How the attention of one pass from an empty cache is computed.

    ``kept`` is the type of the KV cache; with flash attention F32 is taken as F16. ``n_ubatch`` are the tokens of a
    graph: with flash attention, graphs of few tokens are computed otherwise than large ones.
    """

    kept: Literal["F32", "F16", "BF16"]
    flash: bool
    n_ubatch: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
        """What :func:`ktllama.reference.attention.attend` does, rounded: (B, H, T, V) in the type of ``q``."""
        n_tokens = q.shape[2]
        k, v = self._as_kept(k), self._as_kept(v)
        parts = []
        for start in range(0, n_tokens, self.n_ubatch):
            graph = slice(start, min(start + self.n_ubatch, n_tokens))
            seen = slice(0, graph.stop)
            hidden = ~visible[:, :, graph, seen]
            parts.append(self._graph(q[:, :, graph], k[:, :, seen], v[:, :, seen], hidden, scale))
        return torch.cat(parts, 2).to(q.dtype)

    def _graph(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float) -> Tensor:
        tiled = self.flash and self.kept != "BF16" and q.shape[2] >= _TILE
        if not tiled:
            q = self._as_kept(q)
        scores = (q.to(k.dtype) @ k.mT * scale).masked_fill(hidden, -torch.inf)
        if self.flash and not tiled and self.kept != "BF16":
            return _summed_in_half(scores, v)
        shares = scores.softmax(-1)
        return (shares if self.flash else self._as_kept(shares)) @ v

    def _as_kept(self, x: Tensor) -> Tensor:
        """``x`` rounded to the cache's type, which is also what a product with it rounds the other side to."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.kept == "F32" and not self.flash:
            return wide
        return rounded(wide, "BF16" if self.kept == "BF16" else "F16").to(wide.dtype)


def _summed_in_half(scores: Tensor, v: Tensor) -> Tensor:
    """softmax(scores)·v for scores (B, H, T, S), a key after the other, where the sum so far is kept in float16.

    It is scaled down whenever a larger score comes. Every query sees the first key. These are thousands of small steps,
    which torch would spread over threads, each time waiting for the slowest; numpy does not.
    """
    made = np.zeros((*scores.shape[:3], v.shape[-1]), v.numpy().dtype)
    largest = np.full(made.shape[:3], -np.inf, made.dtype)  # (B, H, T)
    weight = np.zeros_like(largest)
    with np.errstate(over="ignore"):  # where the other branch is taken
        for score, value in zip(np.moveaxis(scores.numpy(), -1, 0), np.moveaxis(v.numpy(), 2, 0), strict=True):
            larger = score > largest
            shrunk = np.exp(np.where(larger, largest - score, 0))
            share = np.exp(np.where(larger, 0, score - largest))
            if larger.any():
                made = _half(made * shrunk[..., None])
            made = _half(made + value[:, :, None] * share[..., None])
            weight = weight * shrunk + share
            largest = np.maximum(largest, score)
    return torch.from_numpy(made / weight[..., None])


def _half(x: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return x.astype(np.float16).astype(x.dtype)
