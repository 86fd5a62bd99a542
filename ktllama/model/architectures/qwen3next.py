"""qwen3next: Qwen3-Next-80B-A3B. Three layers of four are gated delta nets, which keep a state and no KV cache.

Module names and classes: ktransformers ``models/modeling_qwen3_next.py`` and its server's
``custom_modeling_qwen3_next.py`` (last archived tree), transformers 4.57 ``models/qwen3_next``. Tensor names and the
recurrent layers: llama.cpp ``src/models/qwen3next.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import CONV1D, SILU, Architecture, Node, Variant
from ktllama.model.architectures import parts, qwen2moe
from ktllama.model.model_file import MetadataArray, ModelFile

_LINEAR_ATTENTION = Node(
    "linear_attn",
    "@GatedDeltaNet",
    ("ssm_a", "ssm_dt"),  # A_log and dt_bias, which the module owns itself
    children=(
        Node("act", SILU),
        Node("conv1d", CONV1D, ("ssm_conv1d",)),
        parts.linear("in_proj_qkvz", "ssm_in", "attn_qkv", "attn_gate"),
        parts.linear("in_proj_ba", "ssm_ba"),
        parts.norm("norm", "ssm_norm", cls="@RMSNormGated"),
        parts.linear("out_proj", "ssm_out"),
    ),
)

_ATTENTION = Node(
    "self_attn",
    "@Attention",
    children=(
        parts.linear("q_proj", "attn_q"),
        parts.linear("k_proj", "attn_k"),
        parts.linear("v_proj", "attn_v"),
        parts.linear("o_proj", "attn_output"),
        *parts.HEAD_NORMS,
    ),
)

_LAYER = (_LINEAR_ATTENTION, _ATTENTION, qwen2moe.MOE, *parts.LAYER_NORMS_POST)

_FULL_ATTENTION_INTERVAL = 4  # llama.cpp's default


def _recurrent(model: ModelFile) -> frozenset[int]:
    n_trunk = model.n_layers - model.integer("nextn_predict_layers")
    given = model.hyperparameter("attention.recurrent_layers")
    if isinstance(given, MetadataArray) and given.values is not None:
        return frozenset(layer for layer, recurrent in enumerate(given.values) if recurrent)
    interval = model.integer("full_attention_interval", _FULL_ATTENTION_INTERVAL)
    return frozenset(layer for layer in range(n_trunk) if (layer + 1) % interval)


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    return (*parts.own_and_served("modeling_qwen3_next", "Qwen3Next"), parts.transformers("qwen3_next", "Qwen3Next"))


ARCHITECTURE = Architecture(
    gguf_name="qwen3next",
    families={"modeling_qwen3_next": "Qwen3-Next", "custom_modeling_qwen3_next": "Qwen3-Next"},
    layer=_LAYER,
    mtp=parts.MTP,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
    recurrent=_recurrent,
)
