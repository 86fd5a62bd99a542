"""Products as llama.cpp's CPU kernels make them: the activations are rounded, too, to the partner of the weights' type.

Source: ``type_traits_cpu`` (``vec_dot_type``) in ``ggml/src/ggml-cpu/ggml-cpu.c``, ``quantize_row_q8_0`` and
``quantize_row_q8_1`` in ``ggml/src/ggml-cpu/arch/x86/quants.c``, ``quantize_row_q8_K_ref`` in
``ggml/src/ggml-quants.c`` of the llama.cpp in llama-cpp-python 0.3.36. Its repacked and tiled kernels round alike
(``arch/x86/repack.cpp``, ``tiled/tiled.cpp``). Where an 8-bit value is a tie it is rounded to the even one, as on x86
with AVX; plain C rounds it away from zero.

What remains is the order of sums. A sum that differs in its last bit rounds, now and then, to the next 8-bit value, and
such steps add up from layer to layer: one layer agrees with llama.cpp's to float32, a whole model does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

#: Activations as they are, or rounded as llama.cpp's CPU kernels do.
Activations: TypeAlias = Literal["exact", "llama.cpp"]

#: A type that activations are rounded to.
Partner: TypeAlias = Literal["F16", "BF16", "Q8_0", "Q8_1", "Q8_K"]

#: Values in a block of Q8_0 or Q8_1, and of Q8_K.
_BLOCK, _LARGE_BLOCK = 32, 256

_PARTNERS: Mapping[Partner, tuple[str, ...]] = {
    "F16": ("F16",),
    "BF16": ("BF16",),
    "Q8_0": ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4", "Q1_0", "Q2_0"),
    "Q8_1": ("Q4_1", "Q5_1"),
    "Q8_K": (
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "IQ4_XS"),
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    ),
}

#: By the weights' type; a type that is not here is multiplied as it is.
PARTNERS: Mapping[str, Partner] = {kind: partner for partner, kinds in _PARTNERS.items() for kind in kinds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """How the activations of a product are rounded.

    ``minima`` (…, out, in/32) are the blocks' minima of weights of type Q4_1 and Q5_1: llama.cpp multiplies them by the
    sums of the activations' blocks, which it keeps in float16 beside the values.
    """

    partner: Partner
    minima: Tensor | None = None

    def of(self, some: int | slice) -> Rounding:
        """The rounding for one matrix of several, or for some rows of one."""
        return self if self.minima is None else Rounding(partner=self.partner, minima=self.minima[some])

    def joined(self) -> Rounding:
        """The rounding for several matrices as one, one under the other."""
        return self if self.minima is None else Rounding(partner=self.partner, minima=self.minima.flatten(0, -2))


def product(x: Tensor, weight: Tensor, rounding: Rounding | None) -> Tensor:
    """x (…, T, in) times weight (…, out, in) transposed: (…, T, out), with ``x`` rounded as told."""
    if rounding is None:
        return x @ weight.mT
    if rounding.minima is None:
        return rounded(x, rounding.partner).to(x.dtype) @ weight.mT
    scale, values = _q8(x.to(torch.float32))
    made = _q8_0_values(scale, values).to(x.dtype) @ weight.mT
    return made + _sums_gained(scale, values).to(x.dtype) @ rounding.minima.to(x.dtype).mT


def rounded(x: Tensor, partner: Partner) -> Tensor:
    """``x`` (…, in) rounded to a type and back, in float32.

    For the 8-bit types ``in`` is a multiple of the block: weights of another width cannot have the types that they go
    with.
    """
    return _ROUNDED[partner](x.to(torch.float32))


def sums_gained(x: Tensor) -> Tensor:
    """(…, in/32): by how much the sums that a row of Q8_1 keeps of its blocks differ from the sums of its values."""
    return _sums_gained(*_q8(x.to(torch.float32)))


def _sums_gained(scale: Tensor, values: Tensor) -> Tensor:
    total = values.sum(-1, keepdim=True)
    kept = (scale * total).half().float()
    return (kept - scale.half().float() * total).squeeze(-1)


def _q8(x: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks' scales (…, n, 1) and the integers (…, n, 32) between −127 and 127."""
    blocks = x.reshape(*x.shape[:-1], -1, _BLOCK)
    largest = torch.linalg.vector_norm(blocks, torch.inf, -1, keepdim=True)
    inverse = _quotient(127, largest)
    return largest / 127, (blocks * inverse).round()


def _q8_0(x: Tensor) -> Tensor:
    return _q8_0_values(*_q8(x))


def _q8_0_values(scale: Tensor, values: Tensor) -> Tensor:
    return (values * scale.half().float()).flatten(-2)


def _q8_k(x: Tensor) -> Tensor:
    """The value that is largest without its sign becomes −127, and the scale stays in float32."""
    blocks = x.reshape(*x.shape[:-1], -1, _LARGE_BLOCK)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    inverse = _quotient(-127, largest)
    scale = _quotient(1, inverse)
    values: Tensor = (blocks * inverse).round().clamp_max(127)
    return (values * scale).flatten(-2)


def _quotient(number: float, x: Tensor) -> Tensor:
    """``number`` by ``x``, or 0 where that is 0. torch's own ``number / x`` multiplies by 1/x, which rounds twice."""
    return torch.where(x != 0, torch.full_like(x, number) / x, 0)


_ROUNDED: Mapping[Partner, Callable[[Tensor], Tensor]] = {
    "F16": lambda x: x.half().float(),
    "BF16": lambda x: x.bfloat16().float(),
    "Q8_0": _q8_0,
    "Q8_1": _q8_0,
    "Q8_K": _q8_k,
}
