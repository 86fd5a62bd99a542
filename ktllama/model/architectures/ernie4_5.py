"""ernie4_5: the dense ERNIE 4.5.

Module names and classes: transformers 4.57 ``models/ernie4_5``. Tensor names: llama.cpp ``src/models/ernie4-5.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

_LAYER = (parts.attention(), parts.DENSE_MLP, *parts.LAYER_NORMS)


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    return (parts.transformers("ernie4_5", "Ernie4_5"),)


ARCHITECTURE = Architecture(
    gguf_name="ernie4_5",
    families={"modeling_ernie4_5": "ERNIE-4.5"},
    layer=_LAYER,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
)
