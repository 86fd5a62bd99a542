"""glm4moe: GLM-4.5, GLM-4.5-Air and GLM-4.6, with their MTP block.

Module names and classes: ktransformers ``models/modeling_glm4_moe.py`` and its server's
``custom_modeling_glm4_moe.py`` (last archived tree), transformers 4.57 ``models/glm4_moe``. Tensor names: llama.cpp
``src/models/glm4-moe.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Node, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

_MOE = Node(
    "mlp",
    "@MoE",
    children=(
        parts.experts(),
        Node("gate", "@TopkRouter", ("ffn_gate_inp", "exp_probs_b")),
        parts.swiglu("shared_experts", "_shexp"),
    ),
)

_LAYER = (parts.attention(*parts.HEAD_NORMS), parts.DENSE_MLP, _MOE, *parts.LAYER_NORMS_POST)


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    return (*parts.own_and_served("modeling_glm4_moe", "Glm4Moe"), parts.transformers("glm4_moe", "Glm4Moe"))


ARCHITECTURE = Architecture(
    gguf_name="glm4moe",
    families={"modeling_glm4_moe": "GLM-4.5", "custom_modeling_glm4_moe": "GLM-4.5"},
    layer=_LAYER,
    mtp=parts.MTP,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
)
