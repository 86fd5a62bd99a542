"""ernie4_5-moe: the text models ERNIE-4.5-21B-A3B and -300B-A47B.

Module names and classes: transformers 4.57 ``models/ernie4_5_moe``. Tensor names: llama.cpp
``src/models/ernie4-5.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Node, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

_MOE = Node(
    "mlp",
    "@SparseMoeBlock",
    children=(
        Node("moe_statics", "@Statics", ("exp_probs_b",)),  # e_score_correction_bias
        parts.linear("gate", "ffn_gate_inp"),
        parts.experts(),
        parts.swiglu("shared_experts", "_shexp"),
    ),
)

_LAYER = (parts.attention(), parts.DENSE_MLP, _MOE, *parts.LAYER_NORMS)


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    return (parts.transformers("ernie4_5_moe", "Ernie4_5_Moe"),)


ARCHITECTURE = Architecture(
    gguf_name="ernie4_5-moe",
    families={"modeling_ernie4_5_moe": "ERNIE-4.5-MoE"},
    layer=_LAYER,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
)
