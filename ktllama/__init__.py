"""ktllama: ktransformers placement rules for llama.cpp.

``translate`` compiles a rule file; ``placement`` and ``applied`` make llama-cpp-python load a model under what comes
out, ``Llama`` is its class with rules, ``verify`` and ``load`` prove a placement and run it.
Names are imported on first use, so that ``import ktllama`` is cheap and needs no llama.cpp.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktllama import reference
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
    from ktllama.runtime.conflicts import PlacementConflictError, SettingsConflictError
    from ktllama.runtime.context_options import ContextOptions
    from ktllama.runtime.hook import applied, placement
    from ktllama.runtime.load import load
    from ktllama.runtime.placed_llama import Llama
    from ktllama.runtime.verify import verify
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
    "PlacementConflictError": "ktllama.runtime.conflicts",
    "SettingsConflictError": "ktllama.runtime.conflicts",
    "ContextOptions": "ktllama.runtime.context_options",
    "applied": "ktllama.runtime.hook",
    "placement": "ktllama.runtime.hook",
    "load": "ktllama.runtime.load",
    "Llama": "ktllama.runtime.placed_llama",
    "verify": "ktllama.runtime.verify",
    "Options": "ktllama.translation",
    "Translation": "ktllama.translation",
    "analyse": "ktllama.translation",
    "translate": "ktllama.translation",
}

__all__ = [
    "ContextOptions",
    "DeviceError",
    "Diagnostic",
    "KtllamaError",
    "Llama",
    "LlamaCppError",
    "LlamaSettings",
    "ModelFileError",
    "Options",
    "PlacementConflictError",
    "Position",
    "RuleFileError",
    "RulesetError",
    "SettingsConflictError",
    "TensorOverride",
    "Translation",
    "UnknownPresetError",
    "UnsupportedModelError",
    "__version__",
    "analyse",
    "applied",
    "load",
    "placement",
    "reference",
    "translate",
    "verify",
]


def __getattr__(name: str) -> object:
    if name == "reference":
        return importlib.import_module("ktllama.reference")
    if name not in _HOMES:
        raise AttributeError(f"module 'ktllama' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
