"""The article's rule file for R1, with its bare class names, on a random model of R1's 61 layers that really runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ktllama.lower.settings import LlamaSettings
from ktllama.ruleset import loader
from ktllama.runtime.buffers import check_buffers
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.generate import generate_tokens
from ktllama.runtime.load import load
from ktllama.translation import translate
from tests import corpus
from tests.runtime.tiny_models import TinyDeepSeek

pytestmark = corpus.needs_corpus

CONTEXT = ContextOptions(n_ctx=256, n_threads=1, flash_attn="off")
PROMPT = [1, 5, 9, 2, 7]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyDeepSeek(n_layers=61, n_dense=3).write(tmp_path_factory.mktemp("seed") / "model.gguf")


def tokens_on_the_cpu(model: Path) -> list[int]:
    with load(model, LlamaSettings(n_gpu_layers=0), CONTEXT) as loaded:
        return list(generate_tokens(loaded, PROMPT, max_tokens=8))


@pytest.mark.parametrize("rules", ["seed.yaml", "seed_reordered.yaml"])
def test_it_runs_and_gives_the_tokens_of_the_cpu(rules: str, model: Path) -> None:
    bare = re.sub(r"class: ktransformers\.[\w.]+\.(\w+)", r"class: \1", corpus.rule_file(rules).read_text())
    plan = translate(loader.loads(bare, rules), model)
    assert plan.placement.kv == {layer: "cpu" if layer < 30 else "cuda:0" for layer in range(61)}
    with load(model, plan.settings, CONTEXT, stand_ins=True) as loaded:
        checked = check_buffers(loaded, plan.placement)
        assert checked.mismatches == ()
        assert min(checked.found_bytes["CPU"], checked.found_bytes["CUDA0"]) > 0
        assert list(generate_tokens(loaded, PROMPT, max_tokens=8)) == tokens_on_the_cpu(model)
