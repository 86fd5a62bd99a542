"""qwen2moe: Qwen2-57B-A14B and Qwen1.5-MoE.

Module names and classes: ktransformers v0.3.2 ``models/modeling_qwen2_moe.py`` and its server's
``custom_modeling_qwen2_moe.py``, transformers 4.57 ``models/qwen2_moe``. Tensor names: llama.cpp
``src/models/qwen2moe.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Node, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

#: A router, experts, and one shared expert behind a gate of its own: Qwen's MoE block.
MOE = Node(
    "mlp",
    "@SparseMoeBlock",
    children=(
        parts.linear("gate", "ffn_gate_inp"),
        parts.experts(),
        parts.swiglu("shared_expert", "_shexp"),
        parts.linear("shared_expert_gate", "ffn_gate_inp_shexp"),
    ),
)

_LAYER = (parts.attention(parts.ROTARY, cls="@attention"), MOE, *parts.LAYER_NORMS)

_MODULE = "ktransformers.models.modeling_qwen2_moe"


def _ktransformers(name: str, attention: str, classes: dict[str, str]) -> Variant:
    return Variant(
        name=name,
        modelling=_MODULE,
        prefix="Qwen2Moe",
        classes={"@attention": f"{_MODULE}.{attention}", **classes},
        bases={**parts.BASES, "@attention": ("@Attention",)},
        extra=(parts.GQA_CACHE,) if name == "serve" else (),
        drop=frozenset({"rotary_emb"}),
    )


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    root = "ktransformers.models.custom_modeling_qwen2_moe.KQwen2MoeForCausalLM"
    attention = "transformers.models.qwen2_moe.modeling_qwen2_moe.Qwen2MoeAttention"
    return (
        _ktransformers("ktransformers", "Qwen2MoeFlashAttention2", {}),
        _ktransformers("serve", "Qwen2MoeSdpaAttention", {"@ForCausalLM": root}),
        parts.transformers("qwen2_moe", "Qwen2Moe", {"@attention": attention}),
    )


ARCHITECTURE = Architecture(
    gguf_name="qwen2moe",
    families={"modeling_qwen2_moe": "Qwen2-MoE", "custom_modeling_qwen2_moe": "Qwen2-MoE"},
    layer=_LAYER,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
)
