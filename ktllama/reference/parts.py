"""The small parts that all models are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ktllama.reference.activations import Rounding, product
from ktllama.reference.attention import wide

#: y = W·x, for x (…, in).
Product: TypeAlias = Callable[[Tensor], Tensor]


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) · weight, computed in float32 at least."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) to the same."""
        y = x.to(wide(x))
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)
        return (y * self.weight.to(y.dtype)).to(x.dtype)


class Stack(nn.Module):
    """One matrix for each head or expert: ``weight`` (n, out, in); ``rounding`` as in :class:`Matrix`."""

    def __init__(self, n: int, n_out: int, n_in: int) -> None:
        super().__init__()
        self.rounding: Rounding | None = None
        self.weight = nn.Parameter(torch.empty(n, n_out, n_in))


class Bias(nn.Module):
    """A vector that is not learned by descent: the experts' selection bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width), requires_grad=False)


class Matrix(nn.Linear):
    """y = W·x, with ``weight`` (out, in), as GGUF keeps it; ``rounding`` says how x is rounded before, if it is."""

    rounding: Rounding | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        if self.rounding is None:
            return super().forward(x)
        made = product(x, self.weight, self.rounding)
        return made if self.bias is None else made + self.bias


def linear(n_in: int, n_out: int, *, bias: bool = False) -> Matrix:
    """A matrix that multiplies (…, in), without a bias unless one is asked for."""
    return Matrix(n_in, n_out, bias=bias)


def swiglu(x: Tensor, gate: Product, up: Product, down: Product) -> Tensor:
    """down · (silu(gate·x) ⊙ up·x), for x (…, D), gate and up (F, D), down (D, F)."""
    return down(functional.silu(gate(x)) * up(x))


class FeedForward(nn.Module):
    """A dense SwiGLU network."""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.gate = linear(width, ffn)
        self.up = linear(width, ffn)
        self.down = linear(ffn, width)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to the same."""
        return swiglu(x, self.gate, self.up, self.down)
