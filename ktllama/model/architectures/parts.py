"""Pieces that most architectures are built of: nodes named as Hugging Face's models name them, and variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ktllama.model.architecture import EMBEDDING, LINEAR, MODULE_LIST, PRETRAINED, SILU, Node, Variant

#: Bases of the classes that every variant has.
BASES = {"@ForCausalLM": PRETRAINED, "@Model": PRETRAINED}

#: The package of operators that only ktransformers' trees for NPUs take.
NPU_OPERATORS = "ktransformers.operators.ascend"

#: What transformers uses for SiLU from 4.57 on (``activations.py``).
NEW_SILU = {SILU: "transformers.activations.SiLUActivation"}

#: The base of a decoder layer in transformers from 4.54 on (``modeling_layers.py``).
CHECKPOINTING = {"@DecoderLayer": ("transformers.modeling_layers.GradientCheckpointingLayer",)}

ACT_FN = Node("act_fn", SILU)

EMBED_TOKENS = Node("embed_tokens", EMBEDDING, ("token_embd",))
LM_HEAD = Node("lm_head", LINEAR, ("output",), always=True)
FINAL_NORM = Node("norm", "@RMSNorm", ("output_norm",))
ROTARY = Node("rotary_emb", "@RotaryEmbedding")

#: Around the blocks, as almost everywhere.
BEFORE_LAYERS = (EMBED_TOKENS,)
AFTER_LAYERS = (FINAL_NORM, ROTARY)
HEAD = (LM_HEAD,)

#: The cache that ktransformers' server puts beside a model with grouped-query attention.
GQA_CACHE = Node("cache", "ktransformers.models.custom_cache.KGQACache")


def linear(name: str, *stems: str) -> Node:
    """A ``torch.nn.Linear`` that owns the tensors called ``stems``."""
    return Node(name, LINEAR, stems)


def norm(name: str, *stems: str, cls: str = "@RMSNorm") -> Node:
    """A norm that owns the tensors called ``stems``."""
    return Node(name, cls, stems)


def attention(*more: Node, cls: str = "@Attention", stems: tuple[str, ...] = ()) -> Node:
    """``self_attn`` with q, k, v and o projections, then ``more``."""
    projections = (
        linear("q_proj", "attn_q", "attn_qkv"),
        linear("k_proj", "attn_k", "attn_qkv"),
        linear("v_proj", "attn_v", "attn_qkv"),
        linear("o_proj", "attn_output"),
    )
    return Node("self_attn", cls, stems, children=(*projections, *more))


#: Norms of the heads, where a model has them.
HEAD_NORMS = (norm("q_norm", "attn_q_norm"), norm("k_norm", "attn_k_norm"))

LAYER_NORMS = (norm("input_layernorm", "attn_norm"), norm("post_attention_layernorm", "ffn_norm"))

#: For llama.cpp's architectures that call the second norm after what it follows.
LAYER_NORMS_POST = (
    norm("input_layernorm", "attn_norm"),
    norm("post_attention_layernorm", "post_attention_norm", "ffn_norm"),
)


def swiglu(name: str, kind: str = "", cls: str = "@MLP") -> Node:
    """A gated MLP over the tensors ``ffn_gate``, ``ffn_up``, ``ffn_down`` with ``kind`` (``_shexp``) behind each."""
    return Node(name, cls, children=gate_up_down(kind))


def gate_up_down(kind: str, *fused: str) -> tuple[Node, ...]:
    """The modules of a gated MLP; ``fused`` are tensors that hold gate and up in one."""
    return (
        linear("gate_proj", f"ffn_gate{kind}", *fused),
        linear("up_proj", f"ffn_up{kind}", *fused),
        linear("down_proj", f"ffn_down{kind}"),
        ACT_FN,
    )


DENSE_MLP = swiglu("mlp")

#: Tensors that hold all experts' matrices of one layer.
FUSED_EXPERTS = "ffn_gate_up_exps"


def experts(expert: Node | None = None) -> Node:
    """The list of a layer's experts; ``expert`` is the first one, a gated MLP unless said otherwise."""
    expert = expert or Node("0", "@MLP", children=gate_up_down("_exps", FUSED_EXPERTS))
    return Node("experts", MODULE_LIST, children=(expert,), each=True)


#: An expert as Mixtral's checkpoints name it: w1 is the gate, w3 up, w2 down.
def w123_expert(cls: str) -> Node:
    """Expert 0 with Mixtral's names, of class ``cls``."""
    return Node(
        "0",
        cls,
        children=(
            linear("w1", "ffn_gate_exps", FUSED_EXPERTS),
            linear("w2", "ffn_down_exps"),
            linear("w3", "ffn_up_exps", FUSED_EXPERTS),
            ACT_FN,
        ),
    )


#: What a multi-token-prediction block has besides a layer's modules (``model.layers.61…`` of DeepSeek's checkpoint).
MTP = (
    Node("embed_tokens", EMBEDDING, ("nextn.embed_tokens",)),
    norm("enorm", "nextn.enorm"),
    norm("hnorm", "nextn.hnorm"),
    linear("eh_proj", "nextn.eh_proj"),
    Node(
        "shared_head",
        MODULE_LIST,
        children=(norm("norm", "nextn.shared_head_norm"), linear("head", "nextn.shared_head_head")),
    ),
)


def transformers(package: str, prefix: str, classes: Mapping[str, str] | None = None) -> Variant:
    """The variant of transformers' own modelling file, as of 4.57: one rotary embedding, beside the layers."""
    return Variant(
        name="transformers",
        modelling=f"transformers.models.{package}.modeling_{package}",
        prefix=prefix,
        classes={**NEW_SILU, **(classes or {})},
        bases={**BASES, **CHECKPOINTING},
        drop=frozenset({"self_attn.rotary_emb"}),
    )


def own_and_served(modelling: str, prefix: str) -> tuple[Variant, Variant]:
    """ktransformers' own modelling file as of its last tree, and what its server builds of it."""
    models = "ktransformers.models"
    root = f"{models}.custom_{modelling}.K{prefix}ForCausalLM"
    common = Variant(
        name="ktransformers",
        modelling=f"{models}.{modelling}",
        prefix=prefix,
        classes=NEW_SILU,
        bases={**BASES, **CHECKPOINTING},
    )
    served = replace(common, name="serve", classes={**NEW_SILU, "@ForCausalLM": root}, extra=(GQA_CACHE,))
    return common, served
