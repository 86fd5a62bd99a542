"""gpt-oss: gpt-oss-20b and -120b. Every other layer attends to a sliding window.

Module names and classes: transformers 4.57 ``models/gpt_oss``, whose experts are one module without modules below it.
Tensor names: llama.cpp ``src/models/openai-moe.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Node, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

_MOE = Node(
    "mlp",
    "@MLP",
    children=(
        Node("router", "@TopKRouter", ("ffn_gate_inp",)),
        Node("experts", "@Experts", ("ffn_gate_exps", "ffn_up_exps", parts.FUSED_EXPERTS, "ffn_down_exps")),
    ),
)

_LAYER = (parts.attention(stems=("attn_sinks",)), _MOE, *parts.LAYER_NORMS_POST)


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    return (parts.transformers("gpt_oss", "GptOss"),)


ARCHITECTURE = Architecture(
    gguf_name="gpt-oss",
    families={"modeling_gpt_oss": "gpt-oss"},
    layer=_LAYER,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
)
