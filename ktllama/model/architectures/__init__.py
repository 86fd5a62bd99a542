"""The architectures that ktllama knows, one data file each. A new file needs its line here and nothing else."""

from __future__ import annotations

from ktllama.model.architecture import Architecture
from ktllama.model.architectures import deepseek2, llama

ARCHITECTURES: dict[str, Architecture] = {
    module.ARCHITECTURE.gguf_name: module.ARCHITECTURE for module in (deepseek2, llama)
}
