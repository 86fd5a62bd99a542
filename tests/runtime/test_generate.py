"""Generation: the same tokens wherever the weights are, whole characters, and clear ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ktllama.errors import LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.generate import Sampling, chat_prompt, generate, generate_tokens, token_bytes, tokenize
from ktllama.runtime.load import LoadedModel, load
from tests.runtime import smollm2
from tests.runtime.plans import runs
from tests.runtime.tiny_models import EOS

CONTEXT = ContextOptions(n_ctx=512, n_threads=1)
EXPERTS = r"ffn_(gate|up|down)_exps"

#: Places of a deepseek2 model of four layers: one and two stand-ins, experts on the CPU, a CPU run in the middle.
PLACES = {
    "one stand-in": runs(("CUDA0", 5)),
    "two stand-ins": runs(("CUDA0", 2), ("CUDA1", 3)),
    "experts on the CPU": runs(("CUDA0", 5), overrides={EXPERTS: "CPU"}),
    "experts on the CPU, used on the GPU": runs(("CUDA0", 5), overrides={EXPERTS: "CPU"}, streams=True),
    "a CPU run in the middle": runs(("CUDA0", 1), ("CPU", 2), ("CUDA1", 2)),
    "the last layers only": runs(("CUDA0", 2)),
}


def _tokens(path: Path, settings: LlamaSettings, prompt: list[int], n_tokens: int) -> list[int]:
    with load(path, settings, CONTEXT, stand_ins=True) as loaded:
        return list(generate_tokens(loaded, prompt, max_tokens=n_tokens))


@pytest.fixture(scope="module")
def reference(deepseek: Path) -> list[int]:
    """What the random model says on the CPU alone."""
    return _tokens(deepseek, LlamaSettings(n_gpu_layers=0), [257, 72, 101, 108], 24)


@pytest.mark.parametrize("place", PLACES)
def test_a_random_deepseek_says_the_same_everywhere(deepseek: Path, reference: list[int], place: str) -> None:
    assert len(set(reference)) > 4
    assert _tokens(deepseek, PLACES[place], [257, 72, 101, 108], 24) == reference


@pytest.mark.parametrize(
    "settings",
    [
        runs(("CUDA0", 31)),
        runs(("CUDA0", 15), ("CUDA1", 16)),
        runs(("CUDA0", 31), overrides={r"blk\.\d+\.ffn_": "CPU"}),
        runs(("CUDA0", 5), ("CPU", 10), ("CUDA0", 10), ("CUDA1", 6)),
    ],
)
def test_a_real_model_says_the_same_everywhere(settings: LlamaSettings) -> None:
    path = smollm2.path()
    with load(path, settings, CONTEXT, stand_ins=True) as loaded:
        stream = generate(loaded, "What is the capital of France?", max_tokens=8)
        text = "".join(stream)
    assert text == "The capital of France is Paris."
    assert stream.finish_reason == "stop"
    assert stream.timings.prefill_tokens > 10
    assert stream.timings.decode_tokens == 7


@pytest.fixture(scope="module")
def loaded(deepseek: Path) -> Iterator[LoadedModel]:
    """The random model on the CPU, in small batches."""
    with load(deepseek, LlamaSettings(n_gpu_layers=0), ContextOptions(n_ctx=256, n_batch=16, n_threads=1)) as model:
        yield model


def test_long_prompts_are_read_in_batches(loaded: LoadedModel) -> None:
    prompt = tokenize(loaded, "abcdefgh" * 10)
    assert len(prompt) == 81
    stream = generate_tokens(loaded, prompt, max_tokens=3)
    assert len(list(stream)) == 3
    assert stream.timings.prefill_tokens == 81
    assert stream.timings.decode_tokens == 2
    assert stream.finish_reason == "length"


def test_a_generation_starts_from_an_empty_context(loaded: LoadedModel) -> None:
    first = list(generate_tokens(loaded, [257, 72], max_tokens=8))
    assert list(generate_tokens(loaded, [257, 72], max_tokens=8)) == first


def test_a_full_context_ends_it(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.library.api, "llama_sampler_sample", lambda *_arguments: 72)
    stream = generate_tokens(loaded, [72] * 250, max_tokens=100)
    # six more fit; the seventh is said, but not read
    assert len(list(stream)) == 7
    assert stream.finish_reason == "length"


def test_a_prompt_that_does_not_fit_is_an_error(loaded: LoadedModel) -> None:
    with pytest.raises(LlamaCppError) as raised:
        generate_tokens(loaded, [72] * 257, max_tokens=1)
    assert str(raised.value) == (
        "the prompt has 257 tokens and the context holds 256: shorten it or enlarge the context"
    )


def test_an_empty_prompt_is_an_error(loaded: LoadedModel) -> None:
    with pytest.raises(LlamaCppError, match="the prompt is empty"):
        generate_tokens(loaded, [], max_tokens=1)


def test_the_end_token_ends_it(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = iter([72, 105, EOS, 72])
    monkeypatch.setattr(loaded.library.api, "llama_sampler_sample", lambda *_arguments: next(chosen))
    stream = generate(loaded, "x", chat=False, max_tokens=10)
    assert "".join(stream) == "".join(chr(byte) for byte in _bytes_of(loaded, [72, 105]))
    assert stream.finish_reason == "stop"


def test_characters_are_whole_across_tokens(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter([*tokenize(loaded, "aé€😀")[1:], EOS])
    monkeypatch.setattr(loaded.library.api, "llama_sampler_sample", lambda *_arguments: next(tokens))
    assert list(generate(loaded, "x", chat=False, max_tokens=20)) == ["a", "é", "€", "😀"]


def test_an_unfinished_character_is_replaced_at_the_end(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter([tokenize(loaded, "é")[1], EOS])
    monkeypatch.setattr(loaded.library.api, "llama_sampler_sample", lambda *_arguments: next(tokens))
    assert list(generate(loaded, "x", chat=False, max_tokens=20)) == ["�"]


def test_sampling_follows_its_seed(loaded: LoadedModel) -> None:
    def said(seed: int) -> list[int]:
        sampling = Sampling(temperature=2.0, top_p=1.0, seed=seed)
        return list(generate_tokens(loaded, [257, 72], max_tokens=12, sampling=sampling))

    assert said(1) == said(1)
    assert said(1) != said(2)


def test_a_model_without_a_template_takes_raw_text_only(loaded: LoadedModel) -> None:
    with pytest.raises(LlamaCppError, match="no chat template; give it raw text instead"):
        generate(loaded, "hello", max_tokens=1)


def test_chats_follow_the_models_template() -> None:
    with load(smollm2.path(), LlamaSettings(n_gpu_layers=0), CONTEXT) as model:
        assert chat_prompt(model, [("system", "Be kind."), ("user", "Hi é")]) == (
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi é<|im_end|>\n<|im_start|>assistant\n"
        )


def test_a_model_without_a_vocabulary_cannot_tokenize(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.library.api, "llama_vocab_type", lambda _vocab: 0)
    with pytest.raises(LlamaCppError, match="no vocabulary"):
        tokenize(loaded, "x")


def test_a_failed_decode_is_an_error(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.library.api, "llama_decode", lambda *_arguments: 1)
    with pytest.raises(LlamaCppError, match=r"could not process 2 tokens \(status 1\)"):
        next(generate_tokens(loaded, [1, 2], max_tokens=1))


def test_stopping_early_frees_the_sampler(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[object] = []
    real = loaded.library.api.llama_sampler_free

    def free(sampler: object) -> None:
        freed.append(sampler)
        real(sampler)

    monkeypatch.setattr(loaded.library.api, "llama_sampler_free", free)
    stream = generate(loaded, "abc", chat=False, max_tokens=50)
    next(stream)
    stream.close()
    assert len(freed) == 1


def _bytes_of(loaded: LoadedModel, tokens: list[int]) -> bytes:
    return b"".join(token_bytes(loaded, token) for token in tokens)
