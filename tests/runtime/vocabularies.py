"""Vocabularies without weights, and chains over them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktllama.lower.settings import LlamaSettings
from ktllama.runtime import library
from ktllama.runtime.params import model_params
from ktllama.runtime.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedVocabulary:
    api: Any
    vocab: Any
    vocabulary: Vocabulary


@contextmanager
def vocabulary_of(path: Path) -> Iterator[LoadedVocabulary]:
    """The vocabulary of the model at ``path``; its tensors are not read."""
    loaded = library.load()
    api = loaded.api
    # devices are named, as none: llama.cpp would ask all that it ever saw, and abort over a stand-in that has stopped
    params = model_params(loaded, LlamaSettings(n_gpu_layers=0), {})
    params.value.vocab_only = True
    model = api.llama_model_load_from_file(str(path).encode(), params.value)
    assert model
    vocab = api.llama_model_get_vocab(model)
    try:
        yield LoadedVocabulary(api=api, vocab=vocab, vocabulary=Vocabulary(api, vocab))
    finally:
        api.llama_model_free(model)
