"""llama: the dense Llama family (Llama, SmolLM2, the R1 distills on Llama).

Module names and classes: ktransformers v0.3.2 ``models/modeling_llama.py``, transformers 4.51 ``models/llama``.
"""

from __future__ import annotations

from ktllama.model.architecture import EMBEDDING, LINEAR, PRETRAINED, SILU, Architecture, Node, Variant
from ktllama.model.model_file import ModelFile

_LAYER = (
    Node(
        "self_attn",
        "@Attention",
        children=(
            Node("q_proj", LINEAR, ("attn_q",)),
            Node("k_proj", LINEAR, ("attn_k",)),
            Node("v_proj", LINEAR, ("attn_v",)),
            Node("o_proj", LINEAR, ("attn_output",)),
            Node("rotary_emb", "@RotaryEmbedding"),
        ),
    ),
    Node(
        "mlp",
        "@MLP",
        children=(
            Node("gate_proj", LINEAR, ("ffn_gate",)),
            Node("up_proj", LINEAR, ("ffn_up",)),
            Node("down_proj", LINEAR, ("ffn_down",)),
            Node("act_fn", SILU),
        ),
    ),
    Node("input_layernorm", "@RMSNorm", ("attn_norm",)),
    Node("post_attention_layernorm", "@RMSNorm", ("ffn_norm",)),
)

_BASES = {"@ForCausalLM": PRETRAINED, "@Model": PRETRAINED}


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    return (
        Variant(name="ktransformers", modelling="ktransformers.models.modeling_llama", prefix="Llama", bases=_BASES),
        Variant(
            name="transformers",
            modelling="transformers.models.llama.modeling_llama",
            prefix="Llama",
            bases=_BASES,
            drop=frozenset({"self_attn.rotary_emb"}),
        ),
    )


ARCHITECTURE = Architecture(
    gguf_name="llama",
    layer=_LAYER,
    before_layers=(Node("embed_tokens", EMBEDDING, ("token_embd",)),),
    after_layers=(Node("norm", "@RMSNorm", ("output_norm",)), Node("rotary_emb", "@RotaryEmbedding")),
    head=(Node("lm_head", LINEAR, ("output",), always=True),),
    variants=_variants,
)
