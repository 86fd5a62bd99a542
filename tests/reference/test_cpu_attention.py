"""Attention rounded as llama.cpp's CPU kernels do: layers of float32 weights, given llama.cpp's own input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ktllama.reference.activations import Activations
from ktllama.reference.arrays import Floats, Kernels, Ratings, open_pass
from ktllama.reference.attention import attend, visibility
from ktllama.reference.config import Config
from ktllama.reference.cpu_attention import CpuAttention
from ktllama.runtime.probe import Capture, Probe
from tests.reference import files, llama
from tests.reference.files import deepseek_config, dense_config, random_tokens, yarn

MODELS: dict[str, Config] = {"deepseek": deepseek_config(rope=yarn()), "qwen2": dense_config("qwen2")}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: files.write_random(folder / f"{name}.gguf", config) for name, config in MODELS.items()}


class Led:
    """Every layer's errors given llama.cpp's input, a token each, relative to what the layer adds."""

    def __init__(self, capture: Capture) -> None:
        self.errors: list[npt.NDArray[np.float64]] = []
        self._hidden = capture.hidden

    def routing(self, layer: int, own: npt.NDArray[np.integer], led: npt.NDArray[np.integer], ratings: Ratings) -> None:
        """Not looked at."""

    def layer(self, layer: int, own: Floats, given: Floats, led: Floats) -> Floats:
        theirs: Floats = self._hidden[layer]
        errors = np.linalg.norm(led - theirs, axis=-1) / np.linalg.norm(theirs - given, axis=-1)
        self.errors.append(errors.astype(np.float64))
        return theirs


def _errors(path: Path, capture: Capture, kernels: Kernels) -> npt.NDArray[np.float64]:
    led = Led(capture)
    open_pass(path, "float32").run(capture.tokens, led, lambda _what, _share: None, kernels, 1)
    return np.stack(led.errors)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("kv_type", "flash"), [("f16", "on"), ("f32", "on"), ("f16", "off"), ("bf16", "off"), ("bf16", "on")]
)
def test_a_layer_makes_of_the_same_input_what_llama_cpp_makes(
    name: str, kv_type: str, flash: str, paths: dict[str, Path]
) -> None:
    """100 tokens in graphs of 80: flash attention works in tiles for the first, token by token for the rest."""
    options = replace(llama.EXACT, type_k=kv_type, type_v=kv_type, flash_attn=flash, n_ubatch=80)  # type: ignore[arg-type]
    with Probe(paths[name], llama.CPU, options) as probe:
        capture = probe.run(random_tokens(100))
    assert capture.flash_attention == (flash == "on")
    rounded: list[Activations] = ["llama.cpp"] * (MODELS[name].n_layers + 1)
    exact: list[Activations] = ["exact"] * len(rounded)
    kernels = Kernels(activations=rounded, kv_type=kv_type, flash_attention=flash == "on", n_ubatch=80)
    alike = _errors(paths[name], capture, kernels)
    unlike = _errors(paths[name], capture, replace(kernels, activations=exact))
    for graph in (slice(0, 80), slice(80, None)):
        # 5e-6 was seen, and 1e-4 exactly: a value near a tie is rounded otherwise now and then
        assert np.median(alike[:, graph]) < 1.5e-5
        assert np.median(unlike[:, graph]) > 1e-4


def test_a_cache_that_is_quantized_leaves_attention_exact() -> None:
    kernels = Kernels(activations=("llama.cpp", "exact"), kv_type="q8_0", flash_attention=True, n_ubatch=512)
    assert kernels.attention(0) is None
    floats = replace(kernels, kv_type="f16")
    assert floats.attention(0) == CpuAttention(kept="F16", flash=True, n_ubatch=512)
    assert floats.attention(1) is None


def test_a_cache_in_float32_without_flash_attention_rounds_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 30, 16, generator=generator) for _ in range(3))
    visible = visibility(0, 30)
    found = CpuAttention(kept="F32", flash=False, n_ubatch=7).attend(q, k, v, visible, 0.25)
    torch.testing.assert_close(found, attend(q, k, v, visible, 0.25), rtol=1e-5, atol=1e-6)
