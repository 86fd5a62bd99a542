"""qwen3moe: Qwen3-235B-A22B and Qwen3-30B-A3B.

Module names and classes: ktransformers v0.3.2 ``models/modeling_qwen3_moe.py`` (whose layers take their rotary
embedding from ``modeling_qwen2_moe.py``) and its servers' ``custom_modeling_qwen3_moe.py`` and
``ascend/custom_ascend_modeling_qwen3.py``; transformers 4.51 ``models/qwen3_moe``. Tensor names: llama.cpp
``src/models/qwen3moe.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Node, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

_MOE = Node("mlp", "@SparseMoeBlock", children=(parts.linear("gate", "ffn_gate_inp"), parts.experts()))

_LAYER = (
    parts.attention(*parts.HEAD_NORMS, Node("rotary_emb", "@rotary")),
    _MOE,
    *parts.LAYER_NORMS,
)

_MODELS = "ktransformers.models"
_NPU_NORM = "ktransformers.operators.ascend.ascend_layernorm.KQwen3FinalRMSNormNPU"


def _ktransformers(name: str, classes: dict[str, str], cache: str | None = None) -> Variant:
    module = f"{_MODELS}.modeling_qwen3_moe"
    rotary = f"{_MODELS}.modeling_qwen2_moe.Qwen2MoeRotaryEmbedding"
    return Variant(
        name=name,
        modelling=module,
        prefix="Qwen3Moe",
        classes={"@rotary": rotary, "@final_norm": f"{module}.Qwen3MoeRMSNorm", **classes},
        bases=parts.BASES,
        extra=(Node("cache", f"{_MODELS}.custom_cache.{cache}"),) if cache else (),
        operators=parts.NPU_OPERATORS if name == "npu-serve" else None,
    )


def _transformers() -> Variant:
    module = "transformers.models.qwen3_moe.modeling_qwen3_moe"
    return Variant(
        name="transformers",
        modelling=module,
        prefix="Qwen3Moe",
        classes={"@rotary": f"{module}.Qwen3MoeRotaryEmbedding", "@final_norm": f"{module}.Qwen3MoeRMSNorm"},
        bases=parts.BASES,
        drop=frozenset({"self_attn.rotary_emb"}),
    )


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    serve = f"{_MODELS}.custom_modeling_qwen3_moe.KQwen3MoeForCausalLM"
    npu = f"{_MODELS}.ascend.custom_ascend_modeling_qwen3.KNPUQwen3MoeForCausalLM"
    return (
        _ktransformers("ktransformers", {}),
        _ktransformers("serve", {"@ForCausalLM": serve}, "KGQACache"),
        _ktransformers(
            "npu-serve", {"@ForCausalLM": npu, "@final_norm": _NPU_NORM, **parts.NEW_SILU}, "KVC2Qwen3Cache"
        ),
        _transformers(),
    )


ARCHITECTURE = Architecture(
    gguf_name="qwen3moe",
    families={
        "modeling_qwen3_moe": "Qwen3-MoE",
        "custom_modeling_qwen3_moe": "Qwen3-MoE",
        "custom_ascend_modeling_qwen3": "Qwen3-MoE",
    },
    layer=_LAYER,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=(parts.norm("norm", "output_norm", cls="@final_norm"), parts.ROTARY),
    head=parts.HEAD,
    variants=_variants,
)
