"""The vocabulary: digits and letters are single tokens, and llama.cpp cuts text as `tokenizers` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

from ktllama import reference
from ktllama.lower.settings import LlamaSettings
from ktllama.reference.config import DeepSeekConfig
from ktllama.reference.deepseek import DeepSeek, initialise
from ktllama.reference.tiny_r1 import export, mix, tokenizer
from ktllama.reference.tiny_r1.shape import shape
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.generate import token_bytes, tokenize
from ktllama.runtime.load import load


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    return tokenizer.learn()


@pytest.fixture(scope="module")
def model_file(learned: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = shape(learned.get_vocab_size(), n_layers=2, width=64)
    model = DeepSeek(config)
    initialise(model, 1)
    path = tmp_path_factory.mktemp("tokenizer") / "model.gguf"
    export.write(path, config, learned, dict(model.named_parameters()))
    return path


def test_digits_letters_and_line_ends_stay_single(learned: Tokenizer) -> None:
    def texts(text: str) -> list[str]:
        return [learned.decode([token], skip_special_tokens=False) for token in learned.encode(text).ids]

    assert texts('1234 "straw" berry\n\n</think>') == [
        *"1234", " ", '"', *"straw", '"', " b", *"erry", "\n", "\n", "</think>",
    ]  # fmt: skip
    assert texts("<｜User｜>4*4<｜Assistant｜><think>") == ["<｜User｜>", "4", "*", "4", "<｜Assistant｜>", "<think>"]


def test_it_is_the_same_every_time(learned: Tokenizer) -> None:
    assert tokenizer.learn().to_str() == learned.to_str()


@pytest.mark.parametrize(
    "text", ["déjà 漢字 🙂 ½", "  two  spaces \t\n \n x", "it's <think> </think> ｜", "a\r\nb", "(x)?!…"]
)
def test_any_text_comes_back(learned: Tokenizer, text: str) -> None:
    assert learned.decode(learned.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_llama_cpp_makes_the_same_tokens(learned: Tokenizer, model_file: Path) -> None:
    random = Random(5)
    samples = [mix.sample(random, random.random()) for _ in range(400)]
    texts = [one.given + one.said for one in samples]
    texts += ["déjà 漢字 🙂 ½", "  two  spaces \t\n \n x", "it's <think> </think> ｜", "(x)?!… a/b 1,234.5 x_y $3 #1"]
    with load(model_file, LlamaSettings(n_gpu_layers=0), ContextOptions(n_ctx=64, n_threads=1)) as loaded:
        begin = learned.token_to_id("<｜begin▁of▁sentence｜>")
        for text in texts:
            ids = learned.encode(text, add_special_tokens=False).ids
            assert tokenize(loaded, text, parse_special=True) == [begin, *ids]
        vocabulary = learned.get_vocab_size()
        assert loaded.library.api.llama_vocab_n_tokens(loaded.vocab) == vocabulary
        shown = b"".join(token_bytes(loaded, token) for token in learned.encode("<think>\n7 ü</think>").ids)
        assert shown.decode() == "<think>\n7 ü</think>"


def test_the_written_file_is_read_as_the_model_that_it_is(learned: Tokenizer, model_file: Path) -> None:
    config = shape(learned.get_vocab_size(), n_layers=2, width=64)
    read = reference.load(model_file).config
    assert isinstance(read, DeepSeekConfig)
    assert read.moe == config.moe
    assert read.rope.yarn is not None
    assert read.rope.yarn.log_multiplier == pytest.approx(0.1)
    assert dataclasses.replace(read, norm_epsilon=1e-6, rope=config.rope) == config  # those two are float32 in the file
