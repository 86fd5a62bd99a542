"""llama.cpp's own dry run of every ktransformers rule file, on a sparse model of full size."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktllama.model import sparse
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.verify import verify
from ktllama.translation import translate
from tests import corpus

pytestmark = corpus.needs_corpus

PAIRS = corpus.golden_pairs() if corpus.CORPUS.is_dir() else []


@pytest.mark.parametrize(("rules", "tree"), PAIRS)
def test_llama_cpp_does_what_the_file_says(rules: str, tree: str, tmp_path: Path) -> None:
    translation = translate(corpus.rule_file(rules), preset=corpus.PRESET_OF_TREE[tree])
    model = tmp_path / "model.gguf"
    sparse.write(translation.model, model)
    verification = verify(translation.placement, translation.settings, model, ContextOptions())
    assert verification.mismatches == ()
    loaded = [tensor for tensor in translation.placement.tensors.values() if tensor.loaded]
    assert verification.tensors.matched == len(loaded)
    assert verification.layers.matched == translation.model.n_layers + 1
