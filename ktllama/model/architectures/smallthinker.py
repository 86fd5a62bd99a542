"""smallthinker: SmallThinker-21B-A3B and -4B-A0.6B.

Module names and classes: ktransformers ``models/modeling_smallthinker.py`` and its server's
``custom_modeling_smallthinker.py`` (last archived tree). Tensor names: llama.cpp ``src/models/smallthinker.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Node, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

_EXPERT = Node(
    "0",
    "@HierarchicalMLP",
    children=(
        parts.linear("up", "ffn_up_exps", parts.FUSED_EXPERTS),
        parts.linear("gate", "ffn_gate_exps", parts.FUSED_EXPERTS),
        parts.linear("down", "ffn_down_exps"),
    ),
)

_MOE = Node(
    "block_sparse_moe",
    "@MoeBlock",
    children=(parts.linear("primary_router", "ffn_gate_inp"), parts.experts(_EXPERT)),
)

_LAYER = (parts.attention(), _MOE, *parts.LAYER_NORMS)


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    models = "ktransformers.models"
    module = f"{models}.modeling_smallthinker"
    root = f"{models}.custom_modeling_smallthinker.KSmallThinkerForCausalLM"
    return (
        Variant(name="ktransformers", modelling=module, prefix="Smallthinker", bases=parts.BASES),
        Variant(
            name="serve",
            modelling=module,
            prefix="Smallthinker",
            classes={"@ForCausalLM": root},
            bases=parts.BASES,
            extra=(parts.GQA_CACHE,),
        ),
    )


ARCHITECTURE = Architecture(
    gguf_name="smallthinker",
    families={"modeling_smallthinker": "SmallThinker", "custom_modeling_smallthinker": "SmallThinker"},
    layer=_LAYER,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
)
