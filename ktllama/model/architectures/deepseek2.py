"""deepseek2: DeepSeek-V2, V2-Lite, V3, R1, Moonlight, and whatever else is built of MLA and shared experts.

Module names and classes: ktransformers v0.3.2 ``models/modeling_deepseek.py`` and ``modeling_deepseek_v3.py``, its
servers' ``custom_modeling_*``, and transformers 4.51 ``models/deepseek_v3``. Tensor names: llama.cpp
``src/llama-arch.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import (
    EMBEDDING,
    LINEAR,
    MODULE_LIST,
    PRETRAINED,
    SILU,
    Architecture,
    Node,
    Variant,
)
from ktllama.model.model_file import ModelFile

_SIGMOID = 2  # llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID


def _mlp(gate: str, up: str, down: str, *fused: str) -> tuple[Node, ...]:
    return (
        Node("gate_proj", LINEAR, (gate, *fused)),
        Node("up_proj", LINEAR, (up, *fused)),
        Node("down_proj", LINEAR, (down,)),
        Node("act_fn", SILU),
    )


_ATTENTION = Node(
    "self_attn",
    "@Attention",
    children=(
        Node("q_proj", LINEAR, ("attn_q",)),
        Node("q_a_proj", LINEAR, ("attn_q_a",)),
        Node("q_a_layernorm", "@RMSNorm", ("attn_q_a_norm",)),
        Node("q_b_proj", LINEAR, ("attn_q_b",)),
        Node("kv_a_proj_with_mqa", LINEAR, ("attn_kv_a_mqa",)),
        Node("kv_a_layernorm", "@RMSNorm", ("attn_kv_a_norm",)),
        Node("kv_b_proj", LINEAR, ("attn_kv_b", "attn_k_b", "attn_v_b")),
        Node("o_proj", LINEAR, ("attn_output",)),
        Node("rotary_emb", "@rotary"),
    ),
)

_DENSE = Node("mlp", "@MLP", children=_mlp("ffn_gate", "ffn_up", "ffn_down"))

_EXPERT = Node("0", "@MLP", children=_mlp("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps"))

_MOE = Node(
    "mlp",
    "@MoE",
    children=(
        Node("experts", MODULE_LIST, children=(_EXPERT,), each=True),
        Node("gate", "@gate", ("ffn_gate_inp", "exp_probs_b")),
        Node("shared_experts", "@MLP", children=_mlp("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")),
    ),
)

_LAYER = (
    _ATTENTION,
    _DENSE,
    _MOE,
    Node("input_layernorm", "@RMSNorm", ("attn_norm",)),
    Node("post_attention_layernorm", "@RMSNorm", ("ffn_norm",)),
)

_MTP = (
    Node("embed_tokens", EMBEDDING, ("nextn.embed_tokens",)),
    Node("enorm", "@RMSNorm", ("nextn.enorm",)),
    Node("hnorm", "@RMSNorm", ("nextn.hnorm",)),
    Node("eh_proj", LINEAR, ("nextn.eh_proj",)),
    Node(
        "shared_head",
        MODULE_LIST,
        children=(
            Node("norm", "@RMSNorm", ("nextn.shared_head_norm",)),
            Node("head", LINEAR, ("nextn.shared_head_head",)),
        ),
    ),
)

_CACHE = Node("cache", "ktransformers.models.custom_cache.KDeepSeekV3Cache")


def _rotary(model: ModelFile) -> str:
    scaling = model.hyperparameter("rope.scaling.type")
    return "@YarnRotaryEmbedding" if scaling == "yarn" else "@RotaryEmbedding"


def _ktransformers(name: str, modelling: str, prefix: str, rotary: str, root: str | None = None) -> Variant:
    """A variant of ktransformers' own modelling files; ``root`` is the class of the whole model where it differs."""
    module = f"ktransformers.models.{modelling}"
    variant = Variant(name=name, modelling=module, prefix=prefix)
    classes = {"@gate": f"{module}.MoEGate", "@rotary": variant.class_path(rotary)}
    if root is not None:
        classes["@ForCausalLM"] = root
    yarn = {"@rotary": ("@RotaryEmbedding",)} if rotary == "@YarnRotaryEmbedding" else {}
    return Variant(
        name=name,
        modelling=module,
        prefix=prefix,
        classes=classes,
        bases={"@ForCausalLM": PRETRAINED, "@Model": PRETRAINED, **yarn},
        extra=(_CACHE,) if name == "serve" else (),
        drop=frozenset({"rotary_emb"}),
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
            SILU: "transformers.activations.SiLUActivation",
        },
        bases={"@ForCausalLM": PRETRAINED, "@Model": PRETRAINED},
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
    models = "ktransformers.models"
    return (
        _ktransformers("ktransformers", "modeling_deepseek_v3", "DeepseekV3", rotary),
        _ktransformers(
            "serve",
            "modeling_deepseek_v3",
            "DeepseekV3",
            rotary,
            f"{models}.custom_modeling_deepseek_v3.KDeepseekV3ForCausalLM",
        ),
        _ktransformers(
            "npu-serve",
            "modeling_deepseek_v3",
            "DeepseekV3",
            rotary,
            f"{models}.ascend.custom_ascend_modeling_deepseek_v3.KNPUDeepseekV3ForCausalLM",
        ),
        _transformers(),
    )


ARCHITECTURE = Architecture(
    gguf_name="deepseek2",
    layer=_LAYER,
    mtp=_MTP,
    before_layers=(Node("embed_tokens", EMBEDDING, ("token_embd",)),),
    after_layers=(Node("norm", "@RMSNorm", ("output_norm",)), Node("rotary_emb", "@rotary")),
    head=(Node("lm_head", LINEAR, ("output",), always=True),),
    variants=_variants,
)
