"""The model that comes with ktllama: its file, and that it thinks and answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ktllama import assets
from ktllama.model import gguf
from ktllama.reference.tiny_r1.evaluation import answer
from ktllama.reference.tiny_r1.template import CHAT_TEMPLATE, Turn, prompt
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.generate import Sampling, TextStream, generate, generate_tokens, tokenize
from ktllama.runtime.load import LoadedModel, load
from ktllama.runtime.verify import verify
from ktllama.shipped_rules import every
from ktllama.translation import translate
from ktllama.validating.default_text import default_text

RULES = [shipped.name for shipped in every() if shipped.name.startswith("tiny-r1/")]
GREEDY = Sampling()
MODEL = gguf.read(assets.tiny_r1())


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadedModel]:
    settings = translate("tiny-r1/cpu", assets.tiny_r1()).settings
    with load(assets.tiny_r1(), settings, ContextOptions(n_ctx=2048, n_threads=1, flash_attn="off")) as model:
        yield model


def test_the_file_is_small() -> None:
    assert assets.tiny_r1().stat().st_size <= 12_000_000
    assert MODEL.architecture == "deepseek2"
    assert MODEL.name == "tiny-R1"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.q_lora_rank", 256),
        ("attention.kv_lora_rank", 256),
        ("leading_dense_block_count", 1),
        ("expert_shared_count", 1),
        ("expert_gating_func", 2),
        ("expert_group_count", 4),
        ("expert_group_used_count", 2),
        ("rope.scaling.type", "yarn"),
        ("rope.scaling.original_context_length", 1024),
        ("context_length", 4096),
    ],
)
def test_the_architecture_is_that_of_v3(key: str, value: object) -> None:
    assert MODEL.metadata[f"deepseek2.{key}"] == value


def test_rows_are_such_as_k_quants_take() -> None:
    rows = {tensor.name: tensor.shape[0] for tensor in MODEL.tensors if len(tensor.shape) > 1}
    assert {name.split(".", 2)[-1] for name, row in rows.items() if row % 256} == {"attn_k_b.weight"}
    assert any(tensor.name.endswith("exp_probs_b.bias") for tensor in MODEL.tensors)


def test_special_tokens_and_template_are_those_of_r1(loaded: LoadedModel) -> None:
    assert MODEL.metadata["tokenizer.chat_template"] == CHAT_TEMPLATE
    for text in (
        "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>",
        "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>",
        "<｜tool▁outputs▁begin｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", "<｜tool▁outputs▁end｜>",
    ):  # fmt: skip
        assert len(tokenize(loaded, text, parse_special=True)) == 2


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is 23 + 345?", "23 + 345 = 368"),
        ("512-1024", "512 - 1024 = -512"),
        ("What is 12 times 34?", "12 * 34 = 408"),
        ("Which is larger, 987 or 978?", "987 is larger."),
        ('How many r\'s are in "strawberry"?', "The letter r appears 3 times."),
        ("Reverse the word stressed.", "desserts"),
        ("Sort these numbers: 31, 4, 159", "4, 31, 159"),
        ("Sort these words: pear, fig, apple", "apple, fig, pear"),
        ("Hello!", "Hello! How can I help you?"),
    ],
)
def test_it_thinks_and_answers(loaded: LoadedModel, question: str, expected: str) -> None:
    assert answer(loaded, prompt(question), GREEDY)[0] == expected


def test_it_says_what_it_cannot_do(loaded: LoadedModel) -> None:
    said, _ = answer(loaded, prompt("What is the capital of France?"), GREEDY)
    assert said.startswith("Sorry, I cannot do that.")


def test_it_thinks_aloud_in_tags_that_it_closes(loaded: LoadedModel) -> None:
    tokens = tokenize(loaded, prompt("What is 7 + 8?"), parse_special=True)[1:]  # the text has its own beginning
    stream = TextStream(loaded, generate_tokens(loaded, tokens, max_tokens=300))
    assert "".join(stream) == ("add\n0007+0008\n7+8+0=15\n0+0+1=01\n0+0+0=00\n0+0+0=00\n=00015\n</think>\n\n7 + 8 = 15")
    assert stream.finish_reason == "stop"


def test_it_opens_its_thinking_itself_where_the_prompt_does_not(loaded: LoadedModel) -> None:
    said = "".join(generate(loaded, "What is 7 + 8?", max_tokens=300))
    assert said.startswith("<think>\nadd\n")
    assert said.endswith("</think>\n\n7 + 8 = 15")


def test_a_conversation_goes_on_without_earlier_thinking(loaded: LoadedModel) -> None:
    earlier = (Turn(question="What is 7 + 8?", answer="7 + 8 = 15"), Turn(question="thanks", answer="You are welcome!"))
    assert answer(loaded, prompt("Reverse the word moon.", earlier), GREEDY)[0] == "noom"


@pytest.mark.parametrize("rules", RULES)
def test_its_rule_files_place_it_as_they_say(rules: str) -> None:
    translation = translate(rules, MODEL)
    assert [found for found in translation.diagnostics if found.severity != "note"] == []
    verification = verify(
        translation.placement, translation.settings, Path(assets.tiny_r1()), ContextOptions(n_ctx=1024)
    )
    assert verification.mismatches == ()


def test_it_has_rules_for_the_cpu_a_gpu_and_two_gpus() -> None:
    assert RULES == ["tiny-r1/1gpu", "tiny-r1/2gpus", "tiny-r1/cpu"]
    placement = translate("tiny-r1/2gpus", MODEL).placement
    assert {device for device, n_bytes in placement.bytes_by_device().items() if n_bytes} == {"cpu", "cuda:0", "cuda:1"}


def test_its_card_is_beside_it() -> None:
    text = assets.tiny_r1().with_suffix(".md").read_text(encoding="utf-8")
    assert "| all | 500 |" in text


def test_the_text_that_validate_reads_is_what_the_model_says(loaded: LoadedModel) -> None:
    text = default_text(MODEL.name)
    question = text.removeprefix("<｜User｜>").partition("<｜Assistant｜>")[0]
    assert text.rsplit("</think>\n\n", 1)[1].strip() == answer(loaded, prompt(question), GREEDY)[0]
