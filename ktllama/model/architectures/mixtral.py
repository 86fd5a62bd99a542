"""Mixtral: GGUF architecture ``llama`` with experts.

Module names and classes: ktransformers v0.3.2 ``models/modeling_mixtral.py``, transformers 4.57 ``models/mixtral``.
Tensor names: llama.cpp ``src/models/llama.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Node, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

_MOE = Node(
    "block_sparse_moe",
    "@SparseMoeBlock",
    children=(parts.linear("gate", "ffn_gate_inp"), parts.experts(parts.w123_expert("@BlockSparseTop2MLP"))),
)

_LAYER = (parts.attention(parts.ROTARY, cls="@attention"), _MOE, *parts.LAYER_NORMS)


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    module = "ktransformers.models.modeling_mixtral"
    transformers = parts.transformers(
        "mixtral", "Mixtral", {"@attention": "transformers.models.mixtral.modeling_mixtral.MixtralAttention"}
    )
    own = Variant(
        name="ktransformers",
        modelling=module,
        prefix="Mixtral",
        classes={"@attention": f"{module}.MixtralFlashAttention2"},
        bases={**parts.BASES, "@attention": ("@Attention",)},
        drop=frozenset({"rotary_emb"}),
    )
    return (own, transformers)


def _has_experts(model: ModelFile) -> bool:
    return model.integer("expert_count") > 0


ARCHITECTURE = Architecture(
    gguf_name="llama",
    families={"modeling_mixtral": "Mixtral"},
    layer=_LAYER,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
    fits=_has_experts,
)
