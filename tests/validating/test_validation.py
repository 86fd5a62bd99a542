"""llama.cpp and the reference, for real: what agrees, what does not, and who is blamed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the reference needs torch")

from ktllama import assets
from ktllama.errors import LlamaCppError, MissingExtraError
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.probe import TextTooLongError
from ktllama.translation import Options
from ktllama.validating.report import Report
from ktllama.validating.spread import placed
from ktllama.validating.validation import DifferentReferenceError, Task, validate
from tests.reference import files
from tests.reference.files import deepseek_config, yarn
from tests.runtime import smollm2
from tests.runtime.tiny_models import TinyLlama
from tests.validating.models import (
    UniformDeepSeek,
    UniformLlama,
    with_expert_negated,
    with_layers_swapped,
    with_other_experts,
    with_router_rows_swapped,
    with_tensor_scaled,
)

EXACT: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("validating")


@pytest.fixture(scope="module")
def exact(folder: Path) -> Path:
    """A deepseek2 model in float32."""
    return UniformDeepSeek(n_layers=5).write(folder / "exact.gguf")


@pytest.fixture(scope="module")
def quantized(folder: Path) -> Path:
    """A deepseek2 model in Q8_0."""
    return UniformDeepSeek(n_layers=5, type_name="Q8_0").write(folder / "quantized.gguf")


def validated(path: Path, against: Path | None = None, *, spread: str | None = None, **changes: Any) -> Report:
    context = {name: changes.pop(name) for name in list(changes) if name in ContextOptions.__dataclass_fields__}
    task = {"max_tokens": None if "tokens" in changes else 40, **changes}
    return validate(
        Task(
            translation=placed(None, spread, str(path), Options()),
            model_path=str(path),
            context=ContextOptions(**{"n_ctx": 256, "n_threads": 1, **context}),
            against=None if against is None else str(against),
            stand_ins=True,
            **task,
        )
    )


@pytest.mark.parametrize("spread", [None, "cuda:0,cuda:1,cpu"])
def test_float32_agrees_wherever_the_layers_are(exact: Path, spread: str | None) -> None:
    found = validated(exact, spread=spread, **EXACT)
    assert found.ok
    assert found.suspect is None
    assert found.n_flips == 0
    assert found.n_choices == 4 * 40
    assert found.mean_kl < 1e-8
    assert found.positions.relative.max() < 2e-5
    assert [layer.layer for layer in found.layers] == [0, 1, 2, 3, 4]
    assert max(layer.own.max() for layer in found.layers) < 1e-5
    assert found.comparison.flash_attention is False
    expected = ("cpu",) * 5 if spread is None else ("cuda:0", "cuda:0", "cuda:1", "cpu", "cpu")
    assert tuple(found.devices[layer][0] for layer in range(5)) == expected


def test_swapped_layers_are_named_with_their_device(exact: Path, folder: Path) -> None:
    wrong = with_layers_swapped(exact, folder / "swapped.gguf", 2, 4)
    found = validated(wrong, exact, spread="cuda:0,cuda:1,cpu")
    assert not found.ok
    suspect = found.suspect
    assert suspect is not None
    assert (suspect.layer, suspect.certain, found.devices_of(suspect)) == (2, True, ("cuda:1",))
    # the layers between and around them are right, given what they got
    own = {layer.layer: layer.median_own for layer in found.layers}
    assert own[4] > 0.5
    assert max(own[0], own[1], own[3]) < 0.01


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("blk.3.attn_output.weight", 3),
        ("blk.2.ffn_down_exps.weight", 2),
        ("blk.0.ffn_down.weight", 0),
        ("blk.4.attn_norm.weight", 4),
        ("output_norm.weight", None),
        ("output.weight", None),
    ],
)
def test_a_scale_that_is_off_is_found_under_the_noise_of_quantization(
    quantized: Path, folder: Path, tensor: str, layer: int | None
) -> None:
    wrong = with_tensor_scaled(quantized, folder / "scaled.gguf", tensor, 1.5)
    found = validated(wrong, quantized)
    assert not found.ok
    assert found.suspect is not None
    assert (found.suspect.layer, found.suspect.certain) == (layer, True)


@pytest.mark.parametrize("spread", [None, "cuda:0,cuda:1,cpu"])
def test_quantized_weights_blame_nobody(quantized: Path, spread: str | None) -> None:
    """Rounded as llama.cpp rounds, also where a CPU stands in for a GPU, every layer is right to float32."""
    found = validated(quantized, spread=spread)
    assert (found.ok, found.suspect, found.activations) == (True, None, "llama.cpp")
    assert all(layer.median_own < 1e-4 for layer in found.layers)


def test_exact_activations_differ_by_what_llama_cpp_rounds(quantized: Path) -> None:
    found = validated(quantized, activations="exact")
    assert found.activations == "exact"
    assert found.suspect is None or not found.suspect.certain
    assert all(0.001 < layer.median_own < 0.05 for layer in found.layers)
    assert found.comparison.expected(0) > 8 * validated(quantized).comparison.expected(0)


def test_a_file_of_other_types_leaves_activations_exact(exact: Path, quantized: Path) -> None:
    assert validated(quantized, exact).activations == "exact"


#: A model of all that R1 has, in Q8_0.
SMALL = deepseek_config(n_layers=4, nope=32, q_lora_rank=64, v_head=32, rope=yarn())
READ = tuple(files.random_tokens(80))


@pytest.fixture(scope="module")
def right(folder: Path) -> Path:
    return files.write_random(folder / "right.gguf", SMALL, matrix_type="Q8_0")


@pytest.mark.parametrize(
    ("key", "value", "layer"),
    [
        ("rope.scaling.yarn_log_multiplier", 0.05, 0),  # half
        ("rope.freq_base", 10500.0, 0),
        ("expert_weights_scale", 2.0, 1),  # of 2.5; layer 0 is dense, and every layer after it is as wrong
        ("attention.layer_norm_rms_epsilon", 2e-2, 0),
    ],
)
def test_a_wrong_number_in_the_metadata_is_found_where_it_first_matters(
    key: str, value: float, layer: int, right: Path, folder: Path
) -> None:
    wrong = files.write_random(folder / "wrong.gguf", SMALL, matrix_type="Q8_0", metadata={key: value})
    found = validated(wrong, right, tokens=READ)
    assert not found.ok
    assert found.suspect is not None
    assert (found.suspect.layer, found.suspect.certain) == (layer, True)
    assert max((one.median_own for one in found.layers[:layer]), default=0.0) < found.comparison.expected(0)


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("blk.2.attn_kv_a_mqa.weight", 2),
        ("blk.1.attn_q_b.weight", 1),
        ("blk.3.ffn_up_shexp.weight", 3),
        ("blk.2.ffn_gate_exps.weight", 2),
    ],
)
def test_a_tensor_that_is_off_by_a_tenth_is_found(tensor: str, layer: int, right: Path, folder: Path) -> None:
    wrong = with_tensor_scaled(right, folder / "tenth.gguf", tensor, 1.1)
    found = validated(wrong, right, tokens=READ)
    assert not found.ok
    assert found.suspect is not None
    assert (found.suspect.layer, found.suspect.certain) == (layer, True)
    assert all(one.median_own < found.comparison.expected(one.layer) for one in found.layers if one.layer != layer)


@pytest.mark.parametrize("prompt", ["What is 23 * 47?", "Hello there"])
def test_a_sound_model_passes_on_a_few_words_that_it_does_not_know(prompt: str) -> None:
    """They leave tiny-R1 unsure of everything, so that the last bits of a sum come to much."""
    found = validated(assets.tiny_r1(), text=prompt)
    assert found.ok
    assert found.suspect is None
    assert all(layer.median_own < 1e-5 for layer in found.layers)


@pytest.mark.parametrize(("layer", "expert"), [(1, 3), (1, 4), (2, 4)])
def test_one_wrong_expert_is_found_however_few_tokens_it_works_on(layer: int, expert: int, folder: Path) -> None:
    wrong = with_expert_negated(assets.tiny_r1(), folder / "negated.gguf", layer, expert)
    found = validated(wrong, assets.tiny_r1(), max_tokens=None, n_ctx=512)
    assert not found.ok
    assert found.suspect is not None
    assert (found.suspect.layer, found.suspect.certain) == (layer, True)
    assert found.suspect.share < 0.12


@pytest.mark.parametrize(("layer", "rows"), [(1, (1, 2)), (3, (1, 7))])
def test_a_router_that_takes_one_expert_for_another_is_found(layer: int, rows: tuple[int, int], folder: Path) -> None:
    wrong = with_router_rows_swapped(assets.tiny_r1(), folder / "rows.gguf", layer, *rows)
    found = validated(wrong, assets.tiny_r1(), max_tokens=128)
    assert not found.ok
    assert found.suspect is not None
    assert (found.suspect.layer, found.suspect.certain) == (layer, True)


@pytest.mark.parametrize(
    "changes", [{"type_k": "q4_0", "type_v": "q4_0"}, {"type_k": "q8_0", "type_v": "q8_0"}, {"dtype": "bfloat16"}]
)
def test_what_was_asked_for_is_no_fault(changes: dict[str, Any]) -> None:
    found = validated(assets.tiny_r1(), max_tokens=64, **changes)
    assert found.mean_kl > 1e-3  # the limit of the weights alone
    assert found.ok
    assert found.suspect is None


def test_flipped_experts_are_found_where_they_happen(exact: Path, folder: Path) -> None:
    other = with_other_experts(exact, folder / "other.gguf", 2)
    found = validated(other, exact, **EXACT)
    first = found.first_flip
    assert first is not None
    assert first.layer == 2
    assert 0 in first.came + first.gone
    by_layer = {layer.layer: layer for layer in found.layers if layer.own_flipped is not None}
    # the router of layer 2 alone chooses otherwise by itself; those after it only follow
    assert {
        layer: int(one.own_flipped.sum()) > 0 for layer, one in by_layer.items() if one.own_flipped is not None
    } == {
        1: False,
        2: True,
        3: False,
        4: False,
    }
    worst = int(found.positions.max_abs.argmax())
    assert any(one.flipped is not None and one.flipped[: worst + 1].any() for one in found.layers)


def test_a_real_model_passes() -> None:
    found = validated(smollm2.path(), max_tokens=48)
    assert found.ok
    assert found.suspect is None
    assert found.positions.top1.mean() >= 0.9
    reference, llama = found.positions.perplexities() or (0.0, 0.0)
    assert llama == pytest.approx(reference, rel=0.05)


def test_the_reference_may_compute_in_other_types(folder: Path) -> None:
    path = UniformLlama().write(folder / "llama.gguf")
    double = validated(path, dtype="float64", **EXACT)
    half = validated(path, dtype="bfloat16", **EXACT)
    assert double.mean_kl < 1e-8
    assert double.suspect is None
    assert half.positions.relative.max() > 1e-3
    assert half.suspect is None or not half.suspect.certain


def test_a_text_longer_than_the_context_is_refused_with_both_numbers(exact: Path) -> None:
    with pytest.raises(TextTooLongError) as raised:
        validated(exact, text="x" * 300, max_tokens=None)
    assert (raised.value.n_tokens, raised.value.n_ctx) == (301, 256)
    with pytest.raises(TextTooLongError) as raised:
        validated(exact, text="x" * 16, max_tokens=None, n_ctx=16)  # llama.cpp would make it 256
    assert (raised.value.n_tokens, raised.value.n_ctx) == (17, 16)
    with pytest.raises(TextTooLongError) as raised:
        validated(exact, text="x" * 1100, max_tokens=None, n_ctx=4096)
    assert str(raised.value) == "the text has 1101 tokens and the model's context holds 1024: shorten it"


def test_the_default_text_is_cut_to_what_fits(folder: Path) -> None:
    path = UniformLlama(n_layers=1).write(folder / "one.gguf")
    assert len(validated(path, max_tokens=None).tokens) == 256
    assert len(validated(path, max_tokens=None, n_ctx=16).tokens) == 16
    assert len(validated(path, max_tokens=None, n_ctx=1024).tokens) == 512
    assert len(validated(path, max_tokens=7).tokens) == 7
    assert len(validated(path, max_tokens=1).tokens) == 1


def test_a_reference_of_another_model_is_refused(exact: Path, folder: Path) -> None:
    with pytest.raises(DifferentReferenceError, match="its architecture is llama, but the model has deepseek2"):
        validated(exact, TinyLlama().write(folder / "other-llama.gguf"))
    wide = UniformDeepSeek(n_layers=5, n_embd=128).write(folder / "wide.gguf")
    with pytest.raises(DifferentReferenceError, match="its width is 128, but the model has 64: not the same model"):
        validated(exact, wide)
    long = UniformDeepSeek(n_layers=6).write(folder / "long.gguf")
    with pytest.raises(DifferentReferenceError, match="its blocks are 6, but the model has 5"):
        validated(exact, long)


def test_without_torch_nothing_is_run(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    with pytest.raises(MissingExtraError) as raised:
        validated(exact)
    assert "pip install 'ktllama[reference]'" in str(raised.value)


def test_a_layer_that_llama_cpp_does_not_show_is_an_error(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    from ktllama.runtime import probe

    monkeypatch.setattr(probe, "_NODE", re.compile(rb"(l_out)-([0-2])|(?!)"))
    with pytest.raises(LlamaCppError, match=r"llama\.cpp showed nothing as the experts of layer 1"):
        validated(exact)
