"""qwen3: dense Qwen3, R1-0528's distill on it, MiniCPM-V 4.5's text model.

Module names and classes: transformers 4.57 ``models/qwen3``; ktransformers has no modelling file of its own. Tensor
names: llama.cpp ``src/models/qwen3.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

_LAYER = (parts.attention(*parts.HEAD_NORMS), parts.DENSE_MLP, *parts.LAYER_NORMS)


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    return (parts.transformers("qwen3", "Qwen3"),)


ARCHITECTURE = Architecture(
    gguf_name="qwen3",
    families={"modeling_qwen3": "Qwen3"},
    layer=_LAYER,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
)
