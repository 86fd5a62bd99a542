"""Activations rounded as llama.cpp's CPU kernels do: the rounding bit for bit, and layers of whole models."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf.constants import GGMLQuantizationType

from ktllama import reference
from ktllama.model.tensor_types import TENSOR_TYPES
from ktllama.reference.activations import PARTNERS, Activations, Partner, rounded, sums_gained
from ktllama.reference.arrays import Floats, Kernels, Ratings, open_pass
from ktllama.reference.config import Config
from ktllama.reference.weights import can_dequantize
from ktllama.runtime import library
from ktllama.runtime.probe import Capture, tokens_of
from ktllama.validating.default_text import TEXT
from tests.reference import files, llama
from tests.reference.files import deepseek_config, dense_config, random_tokens, yarn
from tests.reference.quantizing import Q4_K_M, quantized
from tests.runtime import smollm2

BOTH: tuple[Activations, ...] = ("llama.cpp", "exact")

#: A block of ggml's, as ``ggml/src/ggml-common.h`` has it.
BLOCKS: dict[Partner, list[tuple[Any, ...]]] = {
    "F16": [("value", "<f2")],
    "BF16": [("value", "<u2")],
    "Q8_0": [("d", "<f2"), ("values", "i1", (32,))],
    "Q8_1": [("d", "<f2"), ("sum", "<f2"), ("values", "i1", (32,))],
    "Q8_K": [("d", "<f4"), ("values", "i1", (256,)), ("sums", "<i2", (16,))],
}


class Traits(ctypes.Structure):
    """``struct ggml_type_traits_cpu`` of ``ggml/include/ggml-cpu.h``."""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


def _traits(type_name: str) -> Any:
    function = library.load().api._lib["ggml_get_type_traits_cpu"]
    function.restype, function.argtypes = ctypes.POINTER(Traits), [ctypes.c_int]
    return function(GGMLQuantizationType[type_name].value).contents


def _by_ggml(x: npt.NDArray[np.float32], partner: Partner) -> npt.NDArray[Any]:
    """Rows of blocks."""
    layout = np.dtype(BLOCKS[partner])
    made = np.zeros((len(x), x.shape[1] // (layout["values"].shape[0] if "values" in layout.fields else 1)), layout)  # type: ignore[operator]
    for row, target in zip(x, made, strict=True):
        _traits(partner).from_float(row.ctypes.data, target.ctypes.data, len(row))
    return made


def _values(blocks: npt.NDArray[Any], partner: Partner) -> npt.NDArray[np.float32]:
    if partner == "BF16":
        values = (blocks["value"].astype(np.uint32) << 16).view(np.float32)
    elif partner == "F16":
        values = blocks["value"].astype(np.float32)
    else:
        values = blocks["d"].astype(np.float32)[..., None] * blocks["values"]
    return values.reshape(len(blocks), -1)


@pytest.fixture
def rows() -> npt.NDArray[np.float32]:
    """Normal values of several sizes, with outliers, a block of zeros and one of a single value."""
    random = np.random.default_rng(0)
    x = (random.standard_normal((40, 1024)) * np.geomspace(1e-4, 1e3, 40)[:, None]).astype(np.float32)
    x[::3, ::100] *= 50
    x[1, 256:512], x[2, :256], x[3] = 0, -0.25, 0
    return x


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="elsewhere ties and scales round otherwise")
@pytest.mark.parametrize("partner", BLOCKS)
def test_the_rounding_is_that_of_ggml_to_the_last_bit(partner: Partner, rows: npt.NDArray[np.float32]) -> None:
    blocks = _by_ggml(rows, partner)
    ours = rounded(torch.from_numpy(rows), partner)
    np.testing.assert_array_equal(ours.numpy(), _values(blocks, partner))
    if partner == "Q8_1":
        sums = blocks["d"].astype(np.float32) * blocks["values"].sum(-1)
        gained = sums_gained(torch.from_numpy(rows)).numpy()
        np.testing.assert_array_equal(gained, blocks["sum"].astype(np.float32) - sums)
        assert np.abs(gained).max() > 0


def test_every_type_has_the_partner_that_ggml_multiplies_it_with() -> None:
    library.load()
    known = [name for name in TENSOR_TYPES if name in GGMLQuantizationType.__members__ and can_dequantize(name)]
    assert {"Q4_1", "Q8_0", "Q4_K", "Q6_K", "F16", "IQ4_XS"} <= set(known)
    found = {name: _traits(name) for name in known}
    partners = {
        name: GGMLQuantizationType(traits.vec_dot_type).name
        for name, traits in found.items()
        if traits.vec_dot and name not in ("F32", "F64")
    }
    assert partners == {name: partner for name, partner in PARTNERS.items() if name in partners}


WIDE = {"width": 256, "ffn": 512, "n_heads": 2, "nope": 128, "v_head": 128, "kv_lora_rank": 256, "q_lora_rank": 256}
LAYERS: dict[str, tuple[Config, str]] = {
    "deepseek, Q8_0": (deepseek_config(**WIDE, expert_ffn=256, rope=yarn(32)), "Q8_0"),
    "deepseek, Q4_1": (deepseek_config(**WIDE, expert_ffn=256, rope=yarn(32)), "Q4_1"),
    "deepseek, Q4_K": (deepseek_config(**WIDE, expert_ffn=256, rope=yarn(32)), "Q4_K"),
    "qwen2, F16": (dense_config("qwen2"), "F16"),
    "llama, tied, BF16": (dense_config(tied_output=True), "BF16"),
    "llama, Q5_1": (dense_config(), "Q5_1"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_makes_of_the_same_input_what_llama_cpp_makes(name: str, tmp_path: Path) -> None:
    config, kind = LAYERS[name]
    made_by_gguf = "F32" if kind == "Q4_K" else kind
    path = files.write_random(tmp_path / "model.gguf", config, matrix_type=made_by_gguf)
    if kind == "Q4_K":
        path = quantized(path, tmp_path / "quantized.gguf", Q4_K_M)
    tokens = random_tokens(100)
    capture = llama.run(path, tokens)
    alike, unlike = (_own_errors(path, tokens, capture, activations) for activations in BOTH)
    assert len(alike) == config.n_layers
    assert max(alike) < 2e-6
    assert min(unlike) > (1e-4 if kind == "F16" else 1e-3)


def _own_errors(path: Path, tokens: list[int], capture: Capture, activations: Activations) -> list[float]:
    """Of every layer, led by llama.cpp's: the median token's error, relative to what the layer adds."""
    leader = _Leader(capture)
    opened = open_pass(path, "float32")
    by_layer = (activations,) * (opened.n_layers + 1)
    kernels = Kernels(activations=by_layer, kv_type="f32", flash_attention=False, n_ubatch=512)
    opened.run(tokens, leader, lambda _what, _share: None, kernels, 1)
    return leader.errors


class _Leader:
    def __init__(self, capture: Capture) -> None:
        self.errors: list[float] = []
        self._hidden = capture.hidden

    def routing(self, layer: int, own: npt.NDArray[np.integer], led: npt.NDArray[np.integer], ratings: Ratings) -> None:
        """Not looked at."""

    def layer(self, layer: int, own: Floats, given: Floats, led: Floats) -> Floats:
        theirs: Floats = self._hidden[layer]
        errors = np.linalg.norm(led - theirs, axis=-1) / np.linalg.norm(theirs - given, axis=-1)
        self.errors.append(float(np.median(errors)))
        return theirs


@pytest.mark.parametrize("name", ["deepseek, Q4_1", "llama, tied, BF16", "llama, Q5_1"])
def test_weights_in_memory_give_the_same(name: str, tmp_path: Path) -> None:
    config, kind = LAYERS[name]
    path = files.write_random(tmp_path / "model.gguf", config, matrix_type=kind)
    tokens = torch.tensor([random_tokens(20)])
    exact = reference.load(path, torch.float64)(tokens)
    streamed, resident = (
        reference.load(path, torch.float64, resident=resident, activations="llama.cpp")(tokens)
        for resident in (False, True)
    )
    torch.testing.assert_close(resident, streamed, rtol=0, atol=1e-9)
    assert (streamed - exact).abs().max() > 1e-3


def test_float32_weights_leave_activations_as_they_are(tmp_path: Path) -> None:
    """And the latent attended to itself is the same as keys and values made of it."""
    path = files.write_random(tmp_path / "model.gguf", deepseek_config(rope=yarn()))
    tokens = torch.tensor([random_tokens(20)])
    exact = reference.load(path, torch.float64)(tokens)
    rounding = reference.load(path, torch.float64, activations="llama.cpp")(tokens)
    torch.testing.assert_close(rounding, exact, rtol=0, atol=1e-12)


def test_other_activations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        reference.load(tmp_path / "model.gguf", activations="rounded")  # type: ignore[arg-type]
    assert str(caught.value) == "activations are 'rounded'; expected one of exact, llama.cpp"


def test_layers_of_real_weights_agree_to_float32() -> None:
    """In the first layer scores are so large that the order of sums already moves 8-bit values."""
    path = smollm2.path()  # Q4_1 and Q8_0
    tokens = list(tokens_of(path, TEXT))[:64]
    errors = _own_errors(path, tokens, llama.run(path, tokens), "llama.cpp")
    assert len(errors) == 30
    assert max(errors) < 1e-2
    assert sum(error < 2e-6 for error in errors) >= 25
