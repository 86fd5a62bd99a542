"""deepseek2: DeepSeek-V2, V2-Lite, V3, R1, Moonlight, Kimi-K2, and whatever else is built of MLA and shared experts.

Module names and classes: ktransformers v0.3.2 ``models/modeling_deepseek.py`` and ``modeling_deepseek_v3.py``, its
servers' ``custom_modeling_*``, and transformers 4.51 ``models/deepseek_v3``. Tensor names: llama.cpp
``src/llama-arch.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Node, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

_SIGMOID = 2  # llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID

_ATTENTION = Node(
    "self_attn",
    "@Attention",
    children=(
        parts.linear("q_proj", "attn_q"),
        parts.linear("q_a_proj", "attn_q_a"),
        parts.norm("q_a_layernorm", "attn_q_a_norm"),
        parts.linear("q_b_proj", "attn_q_b"),
        parts.linear("kv_a_proj_with_mqa", "attn_kv_a_mqa"),
        parts.norm("kv_a_layernorm", "attn_kv_a_norm"),
        parts.linear("kv_b_proj", "attn_kv_b", "attn_k_b", "attn_v_b"),
        parts.linear("o_proj", "attn_output"),
        Node("rotary_emb", "@rotary"),
    ),
)

_MOE = Node(
    "mlp",
    "@MoE",
    children=(
        parts.experts(),
        Node("gate", "@gate", ("ffn_gate_inp", "exp_probs_b")),
        parts.swiglu("shared_experts", "_shexp"),
    ),
)

_LAYER = (_ATTENTION, parts.DENSE_MLP, _MOE, *parts.LAYER_NORMS)

_CACHE = Node("cache", "ktransformers.models.custom_cache.KDeepSeekV3Cache")


def _rotary(model: ModelFile) -> str:
    scaling = model.hyperparameter("rope.scaling.type")
    return "@YarnRotaryEmbedding" if scaling == "yarn" else "@RotaryEmbedding"


def _ktransformers(
    name: str, modelling: str, prefix: str, rotary: str, classes: dict[str, str] | None = None
) -> Variant:
    """A variant of ktransformers' own modelling files; ``classes`` are those in which it differs from them."""
    module = f"ktransformers.models.{modelling}"
    variant = Variant(name=name, modelling=module, prefix=prefix)
    yarn = {"@rotary": ("@RotaryEmbedding",)} if rotary == "@YarnRotaryEmbedding" else {}
    return Variant(
        name=name,
        modelling=module,
        prefix=prefix,
        classes={"@gate": f"{module}.MoEGate", "@rotary": variant.class_path(rotary), **(classes or {})},
        bases={**parts.BASES, **yarn},
        extra=(_CACHE,) if name == "serve" else (),
        drop=frozenset({"rotary_emb"}),
        operators=parts.NPU_OPERATORS if name == "npu-serve" else None,
    )


def _transformers() -> Variant:
    module = "transformers.models.deepseek_v3.modeling_deepseek_v3"
    return Variant(
        name="transformers",
        modelling=module,
        prefix="DeepseekV3",
        classes={
            "@gate": f"{module}.DeepseekV3TopkRouter",
            "@rotary": f"{module}.DeepseekV3RotaryEmbedding",
            **parts.NEW_SILU,
        },
        bases=parts.BASES,
        drop=frozenset({"self_attn.rotary_emb"}),
    )


def is_v3(model: ModelFile) -> bool:
    """Whether the model routes as V3 does (sigmoid gating with a selection bias) rather than as V2 does."""
    gating = model.hyperparameter("expert_gating_func")
    if isinstance(gating, int) and gating != 0:
        return gating == _SIGMOID
    return any("exp_probs_b" in tensor.name for tensor in model.tensors)


def _variants(model: ModelFile) -> tuple[Variant, ...]:
    rotary = _rotary(model)
    if not is_v3(model):
        return (_ktransformers("ktransformers", "modeling_deepseek", "DeepseekV2", rotary),)
    v3 = ("modeling_deepseek_v3", "DeepseekV3", rotary)
    models = "ktransformers.models"
    serve = f"{models}.custom_modeling_deepseek_v3.KDeepseekV3ForCausalLM"
    npu = f"{models}.ascend.custom_ascend_modeling_deepseek_v3.KNPUDeepseekV3ForCausalLM"
    return (
        _ktransformers("ktransformers", *v3),
        _ktransformers("serve", *v3, {"@ForCausalLM": serve}),
        _ktransformers("npu-serve", *v3, {"@ForCausalLM": npu, **parts.NEW_SILU}),
        _ktransformers("ktransformers-last", *v3, parts.NEW_SILU),  # its last archived tree, with transformers 4.57
        _transformers(),
    )


ARCHITECTURE = Architecture(
    gguf_name="deepseek2",
    families={
        "modeling_deepseek_v3": "DeepSeek-V3",
        "custom_modeling_deepseek_v3": "DeepSeek-V3",
        "custom_ascend_modeling_deepseek_v3": "DeepSeek-V3",
        "modeling_deepseek": "DeepSeek-V2",
    },
    layer=_LAYER,
    mtp=parts.MTP,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=(parts.FINAL_NORM, Node("rotary_emb", "@rotary")),
    head=parts.HEAD,
    variants=_variants,
)
