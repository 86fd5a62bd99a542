"""qwen2: dense Qwen2 and 2.5, the R1 distills on Qwen, MiniCPM-V 2.6's text model.

Module names and classes: transformers 4.57 ``models/qwen2``; ktransformers has no modelling file of its own. Tensor
names: llama.cpp ``src/models/qwen2.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

_LAYER = (parts.attention(), parts.DENSE_MLP, *parts.LAYER_NORMS)


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    return (parts.transformers("qwen2", "Qwen2"),)


ARCHITECTURE = Architecture(
    gguf_name="qwen2",
    families={"modeling_qwen2": "Qwen2"},
    layer=_LAYER,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
)
