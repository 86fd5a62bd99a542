"""The architectures that ktllama knows, one data file each. A new file needs its line here and nothing else."""

from __future__ import annotations

from ktllama.model.architecture import Architecture
from ktllama.model.architectures import (
    deepseek2,
    ernie4_5,
    ernie4_5_moe,
    glm4moe,
    gpt_oss,
    internlm2,
    llama,
    minimax_m2,
    mixtral,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    qwen3next,
    smallthinker,
)
from ktllama.model.model_file import ModelFile

#: By GGUF name. Mixtral shares Llama's, so it goes by its own and stands before it: the first that fits is taken.
ARCHITECTURES: dict[str, Architecture] = {
    "mixtral": mixtral.ARCHITECTURE,
    **{
        module.ARCHITECTURE.gguf_name: module.ARCHITECTURE
        for module in (
            deepseek2,
            ernie4_5,
            ernie4_5_moe,
            glm4moe,
            gpt_oss,
            internlm2,
            llama,
            minimax_m2,
            qwen2,
            qwen2moe,
            qwen3,
            qwen3moe,
            qwen3next,
            smallthinker,
        )
    },
}

#: Modelling file → the models that it builds: ``modeling_deepseek_v3`` → ``DeepSeek-V3``.
FAMILIES: dict[str, str] = {
    file: family for architecture in ARCHITECTURES.values() for file, family in architecture.families.items()
}


def find(model: ModelFile) -> Architecture | None:
    """The description of ``model``'s architecture, if there is one."""
    named = (one for one in ARCHITECTURES.values() if one.gguf_name == model.architecture)
    return next((one for one in named if one.fits(model)), None)
