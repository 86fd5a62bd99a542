"""Known models without a file: their hyperparameters, and from them every tensor's name, shape and size.

Sizes: the ``config.json`` that each model was published with; metadata keys: llama.cpp ``src/llama-arch.cpp``.
Quantization is assumed to be what most people download, Q4_K_M unless the model was published quantized, and said so.
One module holds a family's sizes; the others say how sizes become tensors.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from ktllama.errors import UnknownPresetError
from ktllama.model import quantization
from ktllama.model.model_file import MetadataValue, ModelFile, Tensor
from ktllama.model.modules import block_of
from ktllama.model.presets import deepseek, glm, llama, others, qwen
from ktllama.model.presets.sizes import Sizes

QUANTIZATION = "Q4_K_M"

_FAMILIES: tuple[tuple[str, Mapping[str, Sizes]], ...] = (
    ("deepseek2", deepseek.PRESETS),
    ("llama", llama.LLAMA),
    ("qwen3moe", qwen.QWEN3_MOE),
    ("qwen3next", qwen.QWEN3_NEXT),
    ("qwen2moe", qwen.QWEN2_MOE),
    ("qwen2", qwen.QWEN2),
    ("qwen3", qwen.QWEN3),
    ("glm4moe", glm.GLM4_MOE),
    ("minimax-m2", others.MINIMAX_M2),
    ("gpt-oss", others.GPT_OSS),
    ("smallthinker", others.SMALLTHINKER),
    ("ernie4_5-moe", others.ERNIE4_5_MOE),
    ("ernie4_5", others.ERNIE4_5),
    ("internlm2", llama.INTERNLM2),
)

#: Preset name → GGUF architecture and hyperparameters. The first that fits a rule file's classes is the default one.
PRESETS: Mapping[str, tuple[str, Sizes]] = {
    name: (architecture, sizes) for architecture, family in _FAMILIES for name, sizes in family.items()
}


def load(name: str) -> ModelFile:
    """The model called ``name``, as if its file had been read.

    Raises:
        UnknownPresetError: if there is no such preset.
    """
    if name not in PRESETS:
        near = [known for known in PRESETS if known.startswith(name)] or difflib.get_close_matches(name, PRESETS)
        hint = f"did you mean {' or '.join(near[:5])}?" if name and near else f"known presets: {', '.join(PRESETS)}"
        raise UnknownPresetError(f"no preset is called '{name}'; {hint}")
    return build(*PRESETS[name])


def without_tensors(name: str) -> ModelFile:
    """The model called ``name`` with its metadata alone, which is much faster to make."""
    architecture, sizes = PRESETS[name]
    return _model(architecture, sizes, ())


def build(architecture: str, sizes: Sizes) -> ModelFile:
    """The model of these sizes, as if its file had been read."""
    return _model(architecture, sizes, tuple(_tensors(sizes)))


def _model(architecture: str, sizes: Sizes, tensors: tuple[Tensor, ...]) -> ModelFile:
    metadata: dict[str, MetadataValue] = {
        "general.architecture": architecture,
        "general.name": sizes.title,
        "general.quantization_version": 2,
        **{f"{architecture}.{key}": value for key, value in sizes.metadata().items()},
    }
    return ModelFile(
        name=f"{sizes.title} {sizes.quantization}",
        architecture=architecture,
        metadata=metadata,
        tensors=tensors,
    )


def _tensors(sizes: Sizes) -> Iterator[Tensor]:
    mix = quantization.MIXES[sizes.quantization]
    offset, alignment = 0, 32
    for name, shape in sizes.shapes():
        type_name = mix(name, shape, block_of(name), sizes.n_layers)
        n_bytes = quantization.n_bytes(shape, type_name)
        yield Tensor(name=name, shape=shape, type=type_name, n_bytes=n_bytes, offset=offset)
        offset += -(-n_bytes // alignment) * alignment
