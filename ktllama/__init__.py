"""ktllama: ktransformers placement rules for llama.cpp.

``translate`` compiles a rule file; ``applied`` makes llama-cpp-python load a model under the settings that come out.
Names are imported on first use, so that ``import ktllama`` is cheap and needs no llama.cpp.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktllama.diagnostics import Diagnostic, Position
    from ktllama.errors import (
        DeviceError,
        KtllamaError,
        LlamaCppError,
        ModelFileError,
        RuleFileError,
        RulesetError,
        UnknownPresetError,
        UnsupportedModelError,
    )
    from ktllama.lower.settings import LlamaSettings, TensorOverride
    from ktllama.runtime.hook import applied
    from ktllama.translation import Options, Translation, analyse, translate

__version__ = "0.1.0"

_HOMES = {
    "Diagnostic": "ktllama.diagnostics",
    "Position": "ktllama.diagnostics",
    "DeviceError": "ktllama.errors",
    "KtllamaError": "ktllama.errors",
    "LlamaCppError": "ktllama.errors",
    "ModelFileError": "ktllama.errors",
    "RuleFileError": "ktllama.errors",
    "RulesetError": "ktllama.errors",
    "UnknownPresetError": "ktllama.errors",
    "UnsupportedModelError": "ktllama.errors",
    "LlamaSettings": "ktllama.lower.settings",
    "TensorOverride": "ktllama.lower.settings",
    "applied": "ktllama.runtime.hook",
    "Options": "ktllama.translation",
    "Translation": "ktllama.translation",
    "analyse": "ktllama.translation",
    "translate": "ktllama.translation",
}

__all__ = [
    "DeviceError",
    "Diagnostic",
    "KtllamaError",
    "LlamaCppError",
    "LlamaSettings",
    "ModelFileError",
    "Options",
    "Position",
    "RuleFileError",
    "RulesetError",
    "TensorOverride",
    "Translation",
    "UnknownPresetError",
    "UnsupportedModelError",
    "__version__",
    "analyse",
    "applied",
    "translate",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ktllama' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
