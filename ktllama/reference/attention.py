"""What every attention here shares: which tokens see which, the cache of earlier ones, softmax(q·k)·v."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

#: Queries whose scores are held at once, so that a long text needs (H, this, S) values and not (H, S, S).
QUERIES_AT_ONCE = 1024


@dataclass(slots=True)
class LayerCache:
    """What one layer keeps of the tokens seen, each tensor with tokens on dimension 1."""

    kept: tuple[Tensor, ...] = ()

    def extend(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Append the new tokens' tensors; all tokens' tensors."""
        self.kept = tuple(torch.cat(pair, 1) for pair in zip(self.kept, new, strict=True)) if self.kept else new
        return self.kept


@dataclass(slots=True)
class Cache:
    """The tokens that a model has seen, for chunked prefill and decode. ``n_tokens`` counts those of one sequence."""

    layers: list[LayerCache] = field(default_factory=list)
    n_tokens: int = 0

    @classmethod
    def empty(cls, n_layers: int) -> Cache:
        """A cache that has seen nothing."""
        return cls([LayerCache() for _ in range(n_layers)])


class AttentionKernels(Protocol):
    """Another arithmetic for :func:`attend`."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
        """The same, less exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What all layers of one forward pass share.

    ``turn`` is the rotation at the new tokens' positions. ``visible`` (1 or B, 1, T, S) says which of S tokens each of
    the T new ones sees. ``kernels`` compute the attention where it is not to be exact.
    """

    turn: tuple[Tensor, Tensor]
    visible: Tensor
    kernels: AttentionKernels | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """:func:`attend` to what is visible, or what the kernels make of it."""
        if self.kernels is None:
            return attend(q, k, v, self.visible, scale)
        return self.kernels.attend(q, k, v, self.visible, scale)


def visibility(n_seen: int, n_new: int, segments: Tensor | None = None) -> Tensor:
    """Each token sees itself and what came before, of its own segment where ``segments`` (B, T) are given."""
    causal = torch.ones(n_new, n_seen + n_new, dtype=torch.bool).tril(n_seen)[None, None]
    if segments is None:
        return causal
    return causal & (segments[:, None, :, None] == segments[:, None, None, :])


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    """softmax(q·kᵀ·scale)·v over the visible tokens; torch computes the softmax in float32 inside, for bfloat16 too.

    q (B, H, T, K), k (B, H or 1, S, K), v (B, H or 1, S, V); (B, H, T, V). Plain products: on a CPU they train faster
    than torch's fused attention.
    """
    hidden, q = ~visible, q * scale  # of the two products the smaller
    parts = []
    for start in range(0, q.shape[2], QUERIES_AT_ONCE):
        some = slice(start, start + QUERIES_AT_ONCE)
        scores = q[:, :, some] @ k.transpose(-1, -2)
        shares = scores.masked_fill(hidden[:, :, some], -torch.inf).softmax(-1)
        parts.append(shares @ v)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def wide(x: Tensor) -> torch.dtype:
    """``x``'s type, or float32 where that holds more: what norms, softmax and routing are computed in."""
    return torch.promote_types(x.dtype, torch.float32)
