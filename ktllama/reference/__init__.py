"""DeepSeek, and the dense models of R1's distills, in plain PyTorch: what llama.cpp is checked against.

``load`` opens a GGUF file as a :class:`Model`, which maps tokens to logits; ``load_module`` gives the torch module.
This package alone imports torch, when one of its names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ktllama.errors import MissingExtraError

if TYPE_CHECKING:
    from ktllama.reference.attention import Cache
    from ktllama.reference.config import Config, DeepSeekConfig, DenseConfig
    from ktllama.reference.decoder import Observer
    from ktllama.reference.deepseek import DeepSeek
    from ktllama.reference.dense import Dense
    from ktllama.reference.model import Model, load, load_module

_HOMES = {
    "Cache": "ktllama.reference.attention",
    "Config": "ktllama.reference.config",
    "DeepSeekConfig": "ktllama.reference.config",
    "DenseConfig": "ktllama.reference.config",
    "Observer": "ktllama.reference.decoder",
    "DeepSeek": "ktllama.reference.deepseek",
    "Dense": "ktllama.reference.dense",
    "Model": "ktllama.reference.model",
    "load": "ktllama.reference.model",
    "load_module": "ktllama.reference.model",
}

__all__ = [
    "Cache",
    "Config",
    "DeepSeek",
    "DeepSeekConfig",
    "Dense",
    "DenseConfig",
    "Model",
    "Observer",
    "load",
    "load_module",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ktllama.reference' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise MissingExtraError("torch", "reference") from error
        raise
