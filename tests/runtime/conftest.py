"""Small models, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.tiny_models import TinyDeepSeek, TinyLlama


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's models are."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def deepseek(model_directory: Path) -> Path:
    """A deepseek2 model of four layers."""
    return TinyDeepSeek().write(model_directory / "deepseek.gguf")


@pytest.fixture(scope="session")
def llama(model_directory: Path) -> Path:
    """A llama model of three layers with a tied output."""
    return TinyLlama().write(model_directory / "llama.gguf")
