"""The JSON document of a translation: a stable contract, described by ``docs/translation.schema.json``."""

from __future__ import annotations

from ktllama.diagnostics import Diagnostic
from ktllama.lower.settings import LlamaSettings
from ktllama.translation import Translation


def translation_document(translation: Translation) -> dict[str, object]:
    """The whole translation. ``settings`` is None when a diagnostic is an error."""
    model, placement = translation.model, translation.placement
    return {
        "model": {
            "name": model.name,
            "architecture": model.architecture,
            "n_layers": model.n_layers,
            "n_bytes": model.n_bytes,
        },
        "settings": None if translation.has_errors else settings_document(translation.settings),
        "tensors": {
            name: {"device": tensor.device, "module": tensor.module, "rule": tensor.rule, "bytes": tensor.n_bytes}
            for name, tensor in placement.tensors.items()
        },
        "kv": {str(layer): device for layer, device in sorted(placement.kv.items())},
        "diagnostics": diagnostics_document(translation.diagnostics),
    }


def failed_document(diagnostics: tuple[Diagnostic, ...]) -> dict[str, object]:
    """The document where the rules could not be held against any model."""
    return {
        "model": None,
        "settings": None,
        "tensors": {},
        "kv": {},
        "diagnostics": diagnostics_document(diagnostics),
    }


def settings_document(settings: LlamaSettings) -> dict[str, object]:
    """The settings. An empty ``devices`` means none at all, not llama.cpp's default of all."""
    return {
        "n_gpu_layers": settings.n_gpu_layers,
        "devices": list(settings.devices),
        "tensor_split": list(settings.tensor_split) if any(settings.tensor_split) else None,
        "tensor_overrides": [
            {"pattern": override.pattern, "device": override.device} for override in settings.tensor_overrides
        ],
        "op_offload": settings.op_offload,
        "no_host": settings.no_host,
        "split_mode": "layer",
        "load_mode": settings.load_mode,
    }


def diagnostics_document(diagnostics: tuple[Diagnostic, ...]) -> list[dict[str, object]]:
    """The findings; ``file``, ``line`` and ``column`` are None where no place in the rule file is to blame."""
    return [
        {
            "code": found.code,
            "severity": found.severity,
            "message": found.message,
            "file": found.position.file if found.position else None,
            "line": found.position.line if found.position else None,
            "column": found.position.column if found.position else None,
        }
        for found in diagnostics
    ]
