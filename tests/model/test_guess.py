"""Which model a rule file is taken to be for when nobody says."""

from __future__ import annotations

import pytest

from ktllama.model.guess import guess_preset
from ktllama.ruleset import loader
from tests import corpus

PRESET_OF_RULES = {
    "DeepSeek-V2-Chat.yaml": "deepseek-v2",
    "DeepSeek-V2-Lite-Chat-gpu-cpu.yaml": "deepseek-v2-lite",
    "DeepSeek-V2-Lite-Chat.yaml": "deepseek-v2-lite",
    "DeepSeek-V3-Chat-amx.yaml": "deepseek-v3",
    "DeepSeek-V3-Chat-fp8-linear-ggml-experts.yaml": "deepseek-v3",
    "DeepSeek-V3-Chat-multi-gpu-4.yaml": "deepseek-v3",
    "DeepSeek-V3-Chat-multi-gpu.yaml": "deepseek-v3",
    "DeepSeek-V3-Chat-serve.yaml": "deepseek-v3",
    "DeepSeek-V3-Chat.yaml": "deepseek-v3",
    "Glm4Moe-serve.yaml": "glm-4.5",
    "Mixtral.yaml": "mixtral-8x7b",
    "Moonlight-16B-A3B.yaml": "moonlight-16b-a3b",
    "Qwen2-57B-A14B-Instruct-multi-gpu.yaml": "qwen2-57b-a14b",
    "Qwen2-57B-A14B-Instruct.yaml": "qwen2-57b-a14b",
    "Qwen2-serve.yaml": "qwen2-57b-a14b",
    "Qwen3Moe-serve.yaml": "qwen3-235b-a22b",
    "Qwen3Next-serve.yaml": "qwen3-next-80b-a3b",
    "npu__Qwen3-Chat-300IA2-npu-serve.yaml": "qwen3-235b-a22b",
    "seed.yaml": "deepseek-r1",
    "seed_reordered.yaml": "deepseek-r1",
    "xpu__DeepSeek-V3-Chat.yaml": "deepseek-v3",
}


@corpus.needs_corpus
def test_the_list_below_is_the_whole_corpus() -> None:
    assert sorted(PRESET_OF_RULES) == sorted(path.name for path in (corpus.CORPUS / "rules").iterdir())


@corpus.needs_corpus
@pytest.mark.parametrize("rules", PRESET_OF_RULES)
def test_a_rule_file_of_ktransformers_is_for_the_model_that_it_is_named_after(rules: str) -> None:
    assert guess_preset(loader.load(str(corpus.rule_file(rules)))) == PRESET_OF_RULES[rules]


@pytest.mark.parametrize(
    ("class_path", "preset"),
    [
        ("transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeSparseMoeBlock", "qwen3-235b-a22b"),
        ("transformers.models.gpt_oss.modeling_gpt_oss.GptOssExperts", "gpt-oss-120b"),
        ("ktransformers.models.modeling_smallthinker.SmallthinkerMoeBlock", "smallthinker-21b-a3b"),
        ("MiniMaxM2SparseMoeBlock", "minimax-m2"),
    ],
)
def test_one_class_is_enough(class_path: str, preset: str) -> None:
    text = f"- match: {{class: {class_path}}}\n  replace: {{class: default, kwargs: {{generate_device: cpu}}}}\n"
    assert guess_preset(loader.loads(text)) == preset
