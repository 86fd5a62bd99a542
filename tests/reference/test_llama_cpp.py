"""The reference against llama.cpp on the same files: logits, layers, chosen experts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ktllama import reference
from ktllama.lower.settings import LlamaSettings
from ktllama.reference.activations import Activations
from ktllama.reference.config import Config, RopeConfig
from ktllama.runtime.probe import tokens_of
from ktllama.validating.default_text import TEXT
from tests.reference import files, llama
from tests.reference.files import deepseek_config, dense_config, random_tokens, yarn
from tests.reference.quantizing import ALL_F32, Q4_K_M, Q6_K, quantized
from tests.reference.watching import Watcher
from tests.runtime import smollm2
from tests.runtime.plans import runs

#: Largest difference of a logit, where logits have a deviation of 1.
TOLERANCE = 2e-5

_BOTH: tuple[Activations, ...] = ("llama.cpp", "exact")

ONE_GROUP = {"n_groups": 1, "n_groups_used": 1}
SOFTMAX = {"gating": "softmax", "selection_bias": False, "normalize": False}
LITE = {"q_lora_rank": None, **SOFTMAX, **ONE_GROUP, "width": 32, "ffn": 48, "n_heads": 2}

MODELS: dict[str, Config] = {
    "v3 without yarn": deepseek_config(),
    "v3 with yarn": deepseek_config(rope=yarn()),
    "v3 of one group": deepseek_config(rope=yarn(), **ONE_GROUP),
    "v3 of two groups": deepseek_config(n_groups=2, n_groups_used=1, n_experts_used=4),
    "sigmoid without bias": deepseek_config(selection_bias=False, normalize=False, scale=1.0),
    "v2: softmax in groups": deepseek_config(**SOFTMAX, scale=16.0, rope=yarn(log_multiplier=0.0707)),
    "softmax, one group, normalized": deepseek_config(**{**SOFTMAX, "normalize": True}, **ONE_GROUP),
    "yarn without multiplier": deepseek_config(rope=yarn(log_multiplier=None)),
    "linear scaling": deepseek_config(rope=RopeConfig(n_dims=8, factor=4.0)),
    "two shared experts": deepseek_config(n_shared=2),
    "tied output, two dense layers": deepseek_config(tied_output=True, n_dense=2),
    "v2-lite, 26 layers": deepseek_config(n_layers=26, **LITE),
    "v2-lite, 27 layers, yarn": deepseek_config(n_layers=27, rope=yarn(log_multiplier=0.0707), **LITE),
    "llama": dense_config(),
    "llama 3": dense_config(rope_factors=True, n_kv_heads=1),
    "llama, tied": dense_config(tied_output=True, n_kv_heads=4),
    "llama, linear scaling": dense_config(rope=RopeConfig(n_dims=16, factor=4.0)),
    "llama, yarn": dense_config(rope=yarn(16, log_multiplier=None)),
    "llama with biases": dense_config(qkv_bias=True, output_bias=True),
    "qwen2": dense_config("qwen2"),
    "qwen2, yarn, tied": dense_config("qwen2", rope=yarn(16, log_multiplier=None), tied_output=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_float32_logits_layers_and_experts_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "model.gguf", MODELS[name])
    tokens = random_tokens(200)  # past YaRN's original 64
    watcher = Watcher()

    ours = reference.load(path)(torch.tensor([tokens]), observe=watcher)[0].numpy()
    theirs = llama.run(path, tokens)

    assert np.abs(ours - theirs.logits).max() / ours.std() <= TOLERANCE
    assert sorted(watcher.hidden) == sorted(theirs.hidden)
    for layer, hidden in theirs.hidden.items():
        assert np.abs(watcher.hidden[layer][0].numpy() - hidden).max() / hidden.std() <= TOLERANCE
    assert sorted(watcher.experts) == sorted(theirs.experts)
    for layer, experts in theirs.experts.items():
        np.testing.assert_array_equal(np.sort(watcher.experts[layer].numpy()), np.sort(experts))


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (dense_config("qwen2", rope=yarn(16, log_multiplier=None)), "rope.scaling.yarn_log_multiplier", 0.1),
        (dense_config(rope=yarn(16, log_multiplier=None)), "rope.scaling.yarn_log_multiplier", 0.1),
        (deepseek_config(n_layers=26, **LITE), "attention.q_lora_rank", 48),
    ],
)
def test_what_llama_cpp_does_not_look_at_changes_nothing(
    config: Config, key: str, value: float, tmp_path: Path
) -> None:
    path = files.write_random(tmp_path / "model.gguf", config, metadata={key: value})
    tokens = random_tokens(100)
    ours = reference.load(path)(torch.tensor([tokens]))[0].numpy()
    assert np.abs(ours - llama.run(path, tokens).logits).max() / ours.std() <= TOLERANCE


@pytest.mark.parametrize(
    ("changes", "wrong_rope"),
    [
        ({}, {"base": 10010.0}),
        ({"rope": yarn()}, {"factor": 8.01}),
        ({"rope": yarn(log_multiplier=0.1)}, {"log": 0.1001}),
    ],
)
def test_a_small_change_of_the_rotation_is_seen(
    changes: dict[str, RopeConfig], wrong_rope: dict[str, float], tmp_path: Path
) -> None:
    keys = {"base": "rope.freq_base", "factor": "rope.scaling.factor", "log": "rope.scaling.yarn_log_multiplier"}
    config = deepseek_config(**changes)
    tensors = files.tensors_of(files.random_module(config))
    right = files.write(tmp_path / "right.gguf", config, tensors)
    changed = {keys[name]: value for name, value in wrong_rope.items()}
    wrong = files.write(tmp_path / "wrong.gguf", config, tensors, metadata=changed)
    tokens = random_tokens(200)

    ours = reference.load(wrong)(torch.tensor([tokens]))[0].numpy()

    assert np.abs(ours - llama.run(right, tokens).logits).max() > 5 * TOLERANCE
    assert np.abs(ours - llama.run(wrong, tokens).logits).max() <= TOLERANCE


WIDE = deepseek_config(
    width=256,
    ffn=512,
    n_heads=2,
    nope=128,
    v_head=128,
    kv_lora_rank=256,
    q_lora_rank=256,
    expert_ffn=256,
    rope=yarn(32),
)


@pytest.mark.parametrize(("matrix_type", "most_kl"), [("F16", 1e-6), ("BF16", 1e-4), ("Q8_0", 1e-3), ("Q4_0", 1e-3)])
def test_of_quantized_weights_the_distributions_agree(matrix_type: str, most_kl: float, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "model.gguf", WIDE, matrix_type=matrix_type, gain=0.5)
    assert _kl(path, path) <= most_kl


@pytest.mark.parametrize(("file_type", "most_kl"), [(Q4_K_M, 2e-3), (Q6_K, 1e-3)])
def test_of_k_quants_the_distributions_agree(file_type: int, most_kl: float, tmp_path: Path) -> None:
    whole = files.write_random(tmp_path / "f32.gguf", WIDE, gain=0.5)
    path = quantized(whole, tmp_path / "quantized.gguf", file_type)
    alike, unlike = _kl(path, path), _kl(whole, path)
    assert alike <= most_kl
    assert unlike >= 10 * alike  # so it is the same weights that agree


@pytest.mark.parametrize(("matrix_type", "most_kl"), [("Q8_0", 1e-3), ("Q4_K", 2e-2)])
def test_with_activations_rounded_alike_a_model_that_forgives_nothing_agrees(
    matrix_type: str, most_kl: float, tmp_path: Path
) -> None:
    """At full gain every error of a layer is passed on whole, and flips experts."""
    path = files.write_random(
        tmp_path / "f32.gguf", WIDE, gain=1.0, matrix_type="F32" if "K" in matrix_type else "Q8_0"
    )
    if matrix_type == "Q4_K":
        path = quantized(path, tmp_path / "quantized.gguf", Q4_K_M)
    tokens = random_tokens(200)
    theirs = torch.from_numpy(llama.run(path, tokens).logits)
    alike, unlike = (
        _divergence(reference.load(path, activations=activations)(torch.tensor([tokens]))[0], theirs)
        for activations in _BOTH
    )
    assert alike <= most_kl
    assert alike < unlike


def _kl(path: Path, llama_path: Path) -> float:
    """KL(reference‖llama.cpp) in nats, the mean over 200 positions."""
    tokens = random_tokens(200)
    ours = reference.load(path)(torch.tensor([tokens]))[0]
    return _divergence(ours, torch.from_numpy(llama.run(llama_path, tokens).logits))


def _divergence(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_real_weights_choose_the_tokens_that_llama_cpp_chooses(tmp_path: Path) -> None:
    path = smollm2.path()  # Q4_1 and Q8_0
    tokens = list(tokens_of(path, TEXT))[:420]
    ours = reference.load(path)(torch.tensor([tokens]))[0]

    # llama.cpp computes products with quantized weights from activations that it quantizes, too
    theirs = torch.from_numpy(llama.run(path, tokens).logits)
    same = ours.argmax(-1) == theirs.argmax(-1)
    best = ours.topk(2).values
    assert float(same.double().mean()) >= 0.95
    assert float((best[:, 0] - best[:, 1])[~same].max()) < 0.5  # where it was nearly a tie
    assert _divergence(ours, theirs) <= 2e-2

    # with the same weights in float32 it does not
    exact = torch.from_numpy(llama.run(quantized(path, tmp_path / "f32.gguf", ALL_F32), tokens).logits)
    assert float((ours.argmax(-1) == exact.argmax(-1)).double().mean()) >= 0.98
    # 3.8e-5 was seen: thirty layers, 420 tokens
    assert float((ours - exact).abs().max() / ours.std()) <= 1e-4
    assert float((ours.argmax(-1)[:-1] == torch.tensor(tokens[1:])).double().mean()) > 0.2  # it has read the text


@pytest.mark.parametrize(
    "settings",
    [
        runs(("CUDA0", 5)),
        runs(("CUDA0", 2), ("CPU", 1), ("CUDA1", 2), overrides={r"blk\.3\.ffn_.*_exps": "CPU"}),
    ],
)
def test_placement_on_stand_ins_changes_nothing(settings: LlamaSettings, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "model.gguf", deepseek_config(n_layers=4, rope=yarn()))
    tokens = random_tokens(150)

    ours = reference.load(path)(torch.tensor([tokens]))[0].numpy()
    theirs = llama.run(path, tokens, settings, stand_ins=True)

    assert np.abs(ours - theirs.logits).max() / ours.std() <= TOLERANCE
