"""What is seen of a pass: every layer's rows, whole and in order, wherever the layers are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ktllama.errors import LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime import probe as probing
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.generate import tokenize
from ktllama.runtime.load import load
from ktllama.runtime.probe import Capture, Probe, TextTooLongError, tokens_of
from tests.runtime import smollm2
from tests.runtime.plans import runs

CPU = LlamaSettings(n_gpu_layers=0)
TOKENS = [257, *range(72, 122)]


def options(**changes: object) -> ContextOptions:
    values = {"n_ctx": 256, "n_threads": 1, "type_k": "f32", "type_v": "f32", "flash_attn": "off", **changes}
    return ContextOptions(**values)  # type: ignore[arg-type]


def captured(path: Path, settings: LlamaSettings = CPU, **changes: object) -> Capture:
    with Probe(path, settings, options(**changes), stand_ins=True) as probe:
        return probe.run(TOKENS)


@pytest.fixture(scope="module")
def whole(deepseek: Path) -> Capture:
    """All tokens in one graph."""
    return captured(deepseek)


def test_every_position_of_every_layer_is_seen(whole: Capture) -> None:
    assert whole.tokens == tuple(TOKENS)
    assert whole.logits.shape == (51, 260)
    assert {layer: values.shape for layer, values in whole.hidden.items()} == dict.fromkeys(range(4), (51, 64))
    assert {layer: values.shape for layer, values in whole.experts.items()} == dict.fromkeys((1, 2, 3), (51, 2))
    assert whole.flash_attention is False


def test_experts_are_two_different_ones_of_eight(whole: Capture) -> None:
    for chosen in whole.experts.values():
        assert (chosen[:, 0] != chosen[:, 1]).all()
        assert chosen.min() >= 0
        assert chosen.max() <= 7


def test_the_logits_are_those_of_the_last_layers_output(whole: Capture, deepseek: Path) -> None:
    import gguf

    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(deepseek).tensors}
    hidden = whole.hidden[3].astype(np.float64)
    normed = hidden / np.sqrt((hidden**2).mean(axis=1, keepdims=True) + 1e-6) * tensors["output_norm.weight"]
    expected = normed @ tensors["output.weight"].astype(np.float64).T
    np.testing.assert_allclose(whole.logits, expected, rtol=0, atol=5e-3 * np.abs(expected).max())


def test_small_graphs_give_the_same_rows_in_the_same_order(whole: Capture, deepseek: Path) -> None:
    pieces = captured(deepseek, n_ubatch=16)
    np.testing.assert_allclose(pieces.logits, whole.logits, rtol=0, atol=2e-4)
    for layer, values in whole.hidden.items():
        np.testing.assert_allclose(pieces.hidden[layer], values, rtol=1e-4, atol=1e-3)
    for layer, chosen in whole.experts.items():
        assert np.sort(pieces.experts[layer]).tolist() == np.sort(chosen).tolist()


def test_stand_in_devices_show_the_same(whole: Capture, deepseek: Path) -> None:
    spread = captured(deepseek, runs(("CUDA0", 2), ("CUDA1", 3)))
    np.testing.assert_array_equal(spread.logits, whole.logits)
    for layer, values in whole.hidden.items():
        np.testing.assert_array_equal(spread.hidden[layer], values)
        if layer in whole.experts:
            np.testing.assert_array_equal(spread.experts[layer], whole.experts[layer])


def test_flash_attention_is_told_from_the_graph(llama: Path) -> None:
    with Probe(llama, CPU, options(flash_attn="on", type_k="f16", type_v="f16")) as probe:
        assert probe.run(TOKENS).flash_attention is True


def test_a_pass_begins_with_an_empty_context_and_reports_its_progress(llama: Path) -> None:
    told: list[float] = []
    with Probe(llama, CPU, options(n_ubatch=17)) as probe:
        first = probe.run(TOKENS)
        second = probe.run(TOKENS, told.append)
    np.testing.assert_array_equal(first.logits, second.logits)
    assert told == [17 / 51, 34 / 51, 1.0]
    assert second.experts == {}


def test_what_cannot_be_read_is_an_error(llama: Path) -> None:
    with Probe(llama, CPU, options()) as probe:
        with pytest.raises(TextTooLongError) as raised:
            probe.run([72] * 257)
        with pytest.raises(LlamaCppError, match="the text is empty"):
            probe.run([])
        with pytest.raises(LlamaCppError, match="token 260 is not in the vocabulary of 260"):
            probe.run([260])
    assert (raised.value.n_tokens, raised.value.n_ctx) == (257, 256)
    assert str(raised.value) == ("the text has 257 tokens and the context holds 256: shorten it or enlarge the context")


def test_what_goes_wrong_in_the_callback_is_raised(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise MemoryError("no room")

    with Probe(llama, CPU, options()) as probe:
        monkeypatch.setattr(probing, "_rows", fail)
        with pytest.raises(MemoryError, match="no room"):
            probe.run(TOKENS)
        monkeypatch.undo()
        assert len(probe.run(TOKENS).hidden) == 3  # and the next pass is sound


def test_text_becomes_the_tokens_of_the_loaded_model_without_loading_it() -> None:
    path, text = smollm2.path(), "Hello, 世界! <|im_end|> naïve"
    with load(path, CPU, options()) as loaded:
        assert tokens_of(path, text) == tokenize(loaded, text)


def test_a_file_that_is_no_model_has_no_tokens(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(LlamaCppError, match="refused to read the vocabulary"):
        tokens_of(broken, "text")
    with pytest.raises(LlamaCppError, match="no such file"):
        tokens_of(tmp_path / "none.gguf", "text")
