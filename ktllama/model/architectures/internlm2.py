"""internlm2: InternLM2 and 2.5, which ktransformers builds with its Llama modelling file.

Source: ktransformers v0.3.2 ``models/modeling_llama.py`` and ``local_chat.py``; tensor names: llama.cpp
``src/models/internlm2.cpp`` (its converter splits the fused ``wqkv`` into q, k and v).
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Variant
from ktllama.model.architectures import llama, parts
from ktllama.model.model_file import ModelFile


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    return (llama.KTRANSFORMERS,)


ARCHITECTURE = Architecture(
    gguf_name="internlm2",
    families=llama.ARCHITECTURE.families,
    layer=llama.LAYER,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
)
