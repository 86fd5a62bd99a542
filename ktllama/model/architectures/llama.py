"""llama: the dense Llama family (Llama, SmolLM2, the R1 distills on Llama, MiniCPM-V 4's text model).

Module names and classes: ktransformers v0.3.2 ``models/modeling_llama.py``, transformers 4.51 ``models/llama``.
Tensor names: llama.cpp ``src/models/llama.cpp``. With experts the same GGUF architecture is Mixtral.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

LAYER = (parts.attention(parts.ROTARY), parts.DENSE_MLP, *parts.LAYER_NORMS)

KTRANSFORMERS = Variant(
    name="ktransformers", modelling="ktransformers.models.modeling_llama", prefix="Llama", bases=parts.BASES
)
TRANSFORMERS = Variant(
    name="transformers",
    modelling="transformers.models.llama.modeling_llama",
    prefix="Llama",
    bases=parts.BASES,
    drop=frozenset({"self_attn.rotary_emb"}),
)


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    return (KTRANSFORMERS, TRANSFORMERS)


ARCHITECTURE = Architecture(
    gguf_name="llama",
    families={"modeling_llama": "Llama"},
    layer=LAYER,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
)
