"""What is being compared, and how far apart it may rightly be.

The reference computes with the same weights, dequantized, in the precision that was asked for. llama.cpp does not: its
kernels round what they multiply. ``docs/numerics.md`` has the figures that these expectations were taken from. Types of
activations: ``vec_dot_type`` in llama.cpp's ``ggml/src/ggml-cpu/ggml-cpu.c``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ktllama.model.model_file import ModelFile
from ktllama.model.tensor_types import TENSOR_TYPES

#: What summing float32 in another order does to what a layer adds.
_SUM_ORDER = 1e-6

#: What it comes to at the places where both sides round: large scores of attention make more of it.
_BEFORE_ROUNDING = 3e-4

#: What a layer gets wrong by rounding the activations of its products to a type.
_ACTIVATIONS = {"F32": 0.0, "F16": 1e-3, "BF16": 8e-3}
_EIGHT_BITS = 2e-2
#: And by keeping keys and values in a type.
_CACHE_ROUNDING = {
    "f32": 0.0, "f16": 3e-4, "bf16": 2e-3, "q8_0": 1e-2,
    "q5_0": 5e-2, "q5_1": 5e-2, "q4_0": 1e-1, "q4_1": 1e-1, "iq4_nl": 1e-1,
}  # fmt: skip

#: Types of the cache whose rounding the reference can follow.
FLOATS_KEPT = frozenset({"f32", "f16", "bf16"})

#: K and V in F16, sums of V in F16 where V is (``ggml_compute_forward_flash_attn_ext_f16_one_chunk``).
_FLASH_ATTENTION = 5e-4

#: What a reference in bfloat16 itself loses.
_REFERENCE_ROUNDING = {"float64": 0.0, "float32": 0.0, "bfloat16": 1e-2}

#: The mean KL divergence, in nats, that may come of these alone. A few words that tiny-R1 does not know, with every
#: layer right: 0.034 with a cache in Q8_0, 0.46 in Q4_0, 0.016 against bfloat16.
_CACHE_KL = {"q8_0": 5e-2, **dict.fromkeys(("q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl"), 1.0)}
_REFERENCE_KL = {"bfloat16": 5e-2}

#: How far a float type is from what was rounded to it.
_FLOATS = {"F32": 0.0, "F16": 2e-4, "BF16": 2e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One reason to differ. ``relative`` is the error that it alone is expected to bring into what a layer adds."""

    what: str
    relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The two sides. ``weights`` and ``reference_weights`` name the least precise type of each file's matrices.

    ``exact`` are the reasons to differ in layers whose activations and attention the reference computes exactly,
    ``alike`` those in layers where it rounds as llama.cpp's CPU kernels do. ``rounded`` says for each layer, and last
    for the output, whether it does.
    """

    weights: str
    reference_weights: str
    kv_type: str
    flash_attention: bool
    dtype: str
    exact: tuple[Source, ...]
    alike: tuple[Source, ...]
    rounded: tuple[bool, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every reason that holds for some layer."""
        exact = () if all(self.rounded) else self.exact
        alike = self.alike if any(self.rounded) else ()
        return tuple(dict.fromkeys((*exact, *alike)))

    def expected(self, layer: int | None) -> float:
        """The error that a layer (None: the output) may make by itself, relative to what it adds."""
        return _together(self.alike if self.rounded[-1 if layer is None else layer] else self.exact)

    @property
    def max_kl(self) -> float:
        """The mean KL divergence, in nats, that is acceptable where nobody says otherwise."""
        return max(self._weights_kl, _CACHE_KL.get(self.kv_type, 0.0), _REFERENCE_KL.get(self.dtype, 0.0))

    @property
    def _weights_kl(self) -> float:
        eight_bits = bits(self.weights) >= 8
        if self.weights == self.reference_weights:
            return 1e-3 if eight_bits else 2e-2
        return 1e-2 if eight_bits else 1e-1 if bits(self.weights) >= 4 else 1.0


def comparison(
    model: ModelFile,
    reference: ModelFile,
    *,
    kv_type: str,
    flash_attention: bool,
    dtype: str,
    rounded: tuple[bool, ...],
    n_ubatch: int = 512,
) -> Comparison:
    """What differs between llama.cpp running ``model`` and the reference computing ``reference`` in ``dtype``.

    ``rounded`` says for each layer, and last for the output, whether the reference rounds as llama.cpp's CPU kernels
    do: activations, and attention where the cache keeps floats.
    """
    types, theirs = _matrix_types(model), _matrix_types(reference)
    common = [Source(what="sums are taken in another order", relative=_SUM_ORDER), *_weights_source(types, theirs)]
    if rounding := _REFERENCE_ROUNDING[dtype]:
        common.append(Source(what=f"the reference itself computes in {dtype}", relative=rounding))
    attention = _attention_sources(kv_type, flash_attention, dtype)
    activations = _activations_source(types)
    # graphs of one token share their sums among threads once there are 512 keys (use_split_kv_path in ops.cpp)
    followed = kv_type in FLOATS_KEPT and not (flash_attention and n_ubatch == 1)
    alike = common if followed else [*common, *attention]
    kept = max(source.relative for source in attention) if attention and kv_type in FLOATS_KEPT else 0.0
    step = max(activations.relative if activations else 0.0, kept)
    return Comparison(
        weights=least_precise(types),
        reference_weights=least_precise(theirs),
        kv_type=kv_type,
        flash_attention=flash_attention,
        dtype=dtype,
        exact=(*common, *([activations] if activations else []), *attention),
        alike=(*alike, *_ties_source(step, _together(alike))),
        rounded=rounded,
    )


def same_types(model: ModelFile, reference: ModelFile) -> bool:
    """Whether every tensor has one type in both files, so that activations can be rounded for it as for the other."""
    types, theirs = ({tensor.name: tensor.type for tensor in file.tensors} for file in (model, reference))
    return types == theirs


def bits(type_name: str) -> float:
    """Bits a weight of a ggml type, scales included."""
    kind = TENSOR_TYPES[type_name]
    return 8 * kind.block_bytes / kind.block_items


def least_precise(types: frozenset[str]) -> str:
    """The type with the fewest bits."""
    return min(types, key=lambda name: (bits(name), name))


def weight_rounding(type_name: str) -> float:
    """About how far a weight of this type is from what was quantized, relative to the weights' size.

    2^(0.6 - bits) fits Q8_0 (0.4%), Q6_K (1.6%), Q4_K (7%) and Q2_K (25%) on normally distributed weights.
    """
    return _FLOATS.get(type_name, 2 ** (0.6 - bits(type_name)))


def _matrix_types(model: ModelFile) -> frozenset[str]:
    """The types of the matrices that are multiplied with; vectors do not count."""
    found = {tensor.type for tensor in model.tensors if len(tensor.shape) > 1 and tensor.name.endswith(".weight")}
    return frozenset(found) or frozenset({"F32"})


def _weights_source(types: frozenset[str], theirs: frozenset[str]) -> list[Source]:
    if types == theirs:
        return []
    ours, other = least_precise(types), least_precise(theirs)
    what = f"the weights are {ours} here and {other} in the file of the reference"
    return [Source(what=what, relative=max(weight_rounding(ours), weight_rounding(other)))]


def _activations_source(types: frozenset[str]) -> Source | None:
    quantized = sorted(types - set(_ACTIVATIONS))
    if quantized:
        what = f"llama.cpp rounds activations to 8 bits before it multiplies with {' or '.join(quantized)}"
        return Source(what=what, relative=_EIGHT_BITS)
    half = least_precise(types) if "BF16" not in types else "BF16"
    if half == "F32":
        return None
    what = f"llama.cpp rounds activations to {half} before it multiplies with it"
    return Source(what=what, relative=_ACTIVATIONS[half])


def _attention_sources(kv_type: str, flash_attention: bool, dtype: str) -> list[Source]:
    sources = []
    if _CACHE_ROUNDING[kv_type]:
        what = f"the KV cache keeps {kv_type.upper()} where the reference keeps {dtype}"
        sources.append(Source(what=what, relative=_CACHE_ROUNDING[kv_type]))
    if flash_attention:
        what = "flash attention on the CPU takes K and V as F16 and may sum in F16"
        sources.append(Source(what=what, relative=_FLASH_ATTENTION))
    return sources


def _ties_source(step: float, differences: float) -> list[Source]:
    """Values that differ by ``differences`` before both sides round them in steps of ``step``, both relative.

    One in ``step / differences`` falls on the other side of a tie and moves by a step, so that the mean square of all
    is the product of the two.
    """
    if not step:
        return []
    what = "values are rounded alike, but one near a tie may fall on either side"
    return [Source(what=what, relative=min(step, math.sqrt(step * max(differences, _BEFORE_ROUNDING))))]


def _together(sources: Sequence[Source]) -> float:
    return math.hypot(*(source.relative for source in sources))
