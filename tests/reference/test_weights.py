"""Weights from files in every form that they come in, and files that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from ktllama import reference
from ktllama.errors import KtllamaError, ModelFileError, ReferenceModelError, TokensError, WeightError
from ktllama.reference.config import Config
from ktllama.reference.streaming import StreamedModel
from ktllama.reference.weights import can_dequantize
from tests.reference import files
from tests.reference.files import Tensors, deepseek_config, dense_config, random_module, random_tokens, tensors_of

TOKENS = torch.tensor([random_tokens(20)])
CONFIG = deepseek_config()


def _logits(path: Path, **options: Any) -> torch.Tensor:
    logits: torch.Tensor = reference.load(path, **options)(TOKENS)
    return logits


def _expected(config: Config) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = random_module(config)(TOKENS)
        return logits


@pytest.mark.parametrize("config", [CONFIG, deepseek_config(tied_output=True), dense_config("qwen2"), dense_config()])
@pytest.mark.parametrize("resident", [False, True])
def test_a_file_computes_what_its_module_computes(config: Config, resident: bool, tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "model.gguf", config)
    torch.testing.assert_close(_logits(path, resident=resident), _expected(config), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_types_are_dequantized_as_the_gguf_package_does(kind: str, tmp_path: Path) -> None:
    config = dense_config(width=128, ffn=256, n_heads=4, head=32)
    tensors = tensors_of(random_module(config))
    path = files.write(tmp_path / "model.gguf", config, tensors, matrix_type=kind)
    number = gguf.GGMLQuantizationType[kind]
    module = reference.load_module(path)
    for name, values in tensors.items():
        if values.ndim == 2:
            encoded = gguf.quants.quantize(values, number).reshape(len(values), -1)
            found = dict(module.named_parameters())[name.replace("attn_", "attn.").replace("ffn_", "ffn.")
                                                    if "norm" not in name else name]  # fmt: skip
            np.testing.assert_array_equal(found.numpy(), gguf.quants.dequantize(encoded, number))


def test_split_files_are_one_model(tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "model.gguf", CONFIG, n_files=3)
    assert path.name == "model-00001-of-00003.gguf"
    torch.testing.assert_close(_logits(path), _expected(CONFIG), rtol=0, atol=1e-5)


def test_legacy_keys_and_values_in_one_tensor(tmp_path: Path) -> None:
    tensors = tensors_of(random_module(CONFIG))
    for layer in range(3):
        k_b, v_b = (tensors.pop(f"blk.{layer}.attn_{part}_b.weight") for part in "kv")
        joined = np.concatenate((k_b.transpose(0, 2, 1), v_b), 1)
        tensors[f"blk.{layer}.attn_kv_b.weight"] = joined.reshape(-1, joined.shape[-1])
    changes: dict[str, object] = {
        "attention.key_length_mla": None,
        "attention.value_length_mla": None,
        "attention.key_length": CONFIG.nope + CONFIG.rope.n_dims,
        "attention.value_length": CONFIG.v_head,
        "attention.head_count_kv": CONFIG.n_heads,
    }
    path = files.write(tmp_path / "model.gguf", CONFIG, tensors, metadata=changes)
    torch.testing.assert_close(_logits(path), _expected(CONFIG), rtol=0, atol=1e-5)


def test_experts_with_gate_and_up_in_one_tensor(tmp_path: Path) -> None:
    tensors = tensors_of(random_module(CONFIG))
    for layer in (1, 2):
        gate, up = (tensors.pop(f"blk.{layer}.ffn_{part}_exps.weight") for part in ("gate", "up"))
        tensors[f"blk.{layer}.ffn_gate_up_exps.weight"] = np.concatenate((gate, up), 1)
    path = files.write(tmp_path / "model.gguf", CONFIG, tensors)
    for resident in (False, True):
        torch.testing.assert_close(_logits(path, resident=resident), _expected(CONFIG), rtol=0, atol=1e-5)


def test_queries_keys_and_values_in_one_tensor(tmp_path: Path) -> None:
    config = dense_config("qwen2")
    tensors = tensors_of(random_module(config))
    for layer in range(3):
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"blk.{layer}.attn_{part}.{kind}") for part in "qkv"]
            tensors[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(parts)
    path = files.write(tmp_path / "model.gguf", config, tensors)
    torch.testing.assert_close(_logits(path), _expected(config), rtol=0, atol=1e-5)


def test_a_layer_may_lack_the_selection_bias(tmp_path: Path) -> None:
    tensors = tensors_of(random_module(CONFIG))
    del tensors["blk.2.exp_probs_b.bias"]
    path = files.write(tmp_path / "model.gguf", CONFIG, tensors)
    module = random_module(CONFIG)
    module.get_parameter("blk.2.ffn.exp_probs_b.bias").zero_()
    with torch.no_grad():
        expected = module(TOKENS)
    for resident in (False, True):
        torch.testing.assert_close(_logits(path, resident=resident), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    config = dense_config()
    path = files.write_random(tmp_path / "model.gguf", config)
    logits = _logits(path, dtype=dtype)
    assert logits.dtype == dtype
    exact = random_module(config).double()(TOKENS).detach()
    assert (logits - exact).abs().max() < (0.2 if dtype == torch.bfloat16 else 1e-12)
    with pytest.raises(ValueError, match=r"dtype is torch\.float16; expected one of torch\.float32, torch\.bfloat16"):
        reference.load(path, torch.float16)


def test_the_multi_token_block_is_read_on_demand(tmp_path: Path) -> None:
    config = deepseek_config(n_mtp=1)
    module = random_module(config)
    path = files.write(tmp_path / "model.gguf", config, tensors_of(module))
    torch.testing.assert_close(_logits(path), module(TOKENS).detach(), rtol=0, atol=1e-5)
    read = reference.load_module(path, mtp=True)
    assert isinstance(read, reference.DeepSeek)
    assert isinstance(module, reference.DeepSeek)
    hidden = module.hidden(TOKENS).detach()
    found, expected = read.next_but_one(hidden, TOKENS), module.next_but_one(hidden, TOKENS)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)


def test_progress_is_told_after_every_layer(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    model = reference.load(files.write_random(tmp_path / "model.gguf", CONFIG))
    model(TOKENS, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]


# --- What cannot be used ----------------------------------------------------------------------------------------------


def _refused(path: Path, error: type[KtllamaError]) -> str:
    """The message with which a file is refused, without its path."""
    with pytest.raises(error) as caught:
        _logits(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def _broken(path: Path, **changes: Any) -> Path:
    """A model file with some tensors changed (by GGUF name, with ``__`` for dots); None leaves one out."""
    tensors: Tensors = tensors_of(random_module(CONFIG))
    for name, values in changes.items():
        key = name.replace("__", ".")
        if values is None:
            del tensors[key]
        else:
            tensors[key] = values
    return files.write(path, CONFIG, tensors)


def test_a_missing_tensor(tmp_path: Path) -> None:
    path = _broken(tmp_path / "model.gguf", blk__1__attn_q_b__weight=None)
    assert _refused(path, WeightError) == "tensor 'blk.1.attn_q_b.weight' is missing"


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    path = _broken(tmp_path / "model.gguf", blk__1__ffn_up_exps__weight=np.zeros((8, 32, 32), np.float32))
    assert _refused(path, WeightError) == (
        "tensor 'blk.1.ffn_up_exps.weight' has the shape 8 × 32 × 32; expected 8 × 32 × 64 by the metadata"
    )


def test_a_tensor_that_would_be_left_out(tmp_path: Path) -> None:
    path = _broken(tmp_path / "model.gguf", blk__1__attn_q_norm__weight=np.zeros(16, np.float32))
    assert _refused(path, WeightError) == (
        "tensor 'blk.1.attn_q_norm.weight' is not known in a model of architecture deepseek2"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name", ["blk.2.attn_norm.weight", "token_embd.weight", "output.weight", "blk.0.attn_k_b.weight"]
)
def test_values_that_are_no_numbers(name: str, value: float, tmp_path: Path) -> None:
    values = tensors_of(random_module(CONFIG))[name].copy()
    values.reshape(-1, values.shape[-1])[:, -1] = value
    path = _broken(tmp_path / "model.gguf", **{name.replace(".", "__"): values})
    assert _refused(path, WeightError) == f"tensor '{name}' holds values that are no numbers (NaN or infinity)"


def test_only_experts_that_tokens_go_to_are_read(tmp_path: Path) -> None:
    name = "blk.1.ffn_gate_exps.weight"
    values = tensors_of(random_module(CONFIG))[name].copy()
    bias = np.zeros(8, np.float32)
    bias[5], values[5] = -100, np.nan
    path = _broken(tmp_path / "model.gguf", blk__1__ffn_gate_exps__weight=values, blk__1__exp_probs_b__bias=bias)
    assert _logits(path).isfinite().all()
    with pytest.raises(WeightError, match="no numbers"):
        reference.load(path, resident=True)


def test_a_type_that_cannot_be_dequantized(tmp_path: Path) -> None:
    assert not can_dequantize("I32")
    config = dense_config(width=64, n_heads=2, head=32)
    tensors = tensors_of(random_module(config))
    path = files.write(tmp_path / "model.gguf", config, tensors)
    data = path.read_bytes()
    name = b"blk.1.attn_q.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8
    assert data[at : at + 4] == (0).to_bytes(4, "little")  # F32
    path.write_bytes(data[:at] + (26).to_bytes(4, "little") + data[at + 4 :])  # I32
    assert _refused(path, WeightError) == "tensor 'blk.1.attn_q.weight' has type I32, which cannot be dequantized"


def test_an_architecture_that_the_reference_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(1)
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert _refused(path, ReferenceModelError) == (
        "the reference has no architecture 'gpt2'; it has: deepseek2, llama, qwen2"
    )


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = files.write_random(tmp_path / "model.gguf", CONFIG)
    model = reference.load(path)
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(ModelFileError, match="ends before tensor"):
        model(TOKENS)
    path.unlink()
    with pytest.raises(ModelFileError, match="No such file"):
        model(TOKENS)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (torch.tensor([1, 2]), "tokens are of type int64 and shape 2; expected int64, rows of one token or more"),
        (torch.zeros(1, 2), "tokens are of type float32 and shape 1 × 2; expected int64, rows of one token or more"),
        (torch.zeros(1, 0, dtype=torch.int64), "tokens are of type int64 and shape 1 × 0; expected int64, rows of one token or more"),
        (torch.tensor([[1, 260]]), "token 260 is not in the vocabulary of 260"),
        (torch.tensor([[-1, 2]]), "token -1 is not in the vocabulary of 260"),
        (torch.zeros(1, 1025, dtype=torch.int64), "1,025 tokens are more than the model's context of 1,024"),
    ],
)  # fmt: skip
def test_tokens_that_cannot_be_computed(tokens: torch.Tensor, reason: str, tmp_path: Path) -> None:
    model = reference.load(files.write_random(tmp_path / "model.gguf", CONFIG))
    with pytest.raises(TokensError) as caught:
        model(tokens)
    assert str(caught.value) == reason


def _checked(path: Path, layer: int | None) -> str | None:
    """What is said of the tensors of a layer, or of those of none, when they are looked at; None where they are well."""
    stages = reference.load(path).stages
    assert isinstance(stages, StreamedModel)
    try:
        stages.check(layer)
    except WeightError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


@pytest.mark.parametrize(
    ("name", "row", "layer"),
    [
        ("blk.1.ffn_gate_exps.weight", (5, 3), 1),
        ("token_embd.weight", (259,), None),
        ("blk.2.ffn_down_shexp.weight", (0,), 2),
        ("blk.3.nextn.eh_proj.weight", (63,), None),
    ],
)
@pytest.mark.parametrize("matrix_type", ["F32", "BF16", "Q8_0", "Q4_1"])
def test_what_is_no_number_is_found_wherever_it_is(
    name: str, row: tuple[int, ...], layer: int | None, matrix_type: str, tmp_path: Path
) -> None:
    config = deepseek_config(n_mtp=1, nope=32, q_lora_rank=64, v_head=32)
    tensors = tensors_of(random_module(config))
    path = files.write(tmp_path / "model.gguf", config, tensors, matrix_type=matrix_type)
    assert [_checked(path, one) for one in (None, 0, 1, 2)] == [None] * 4
    reader = gguf.GGUFReader(path, "r+")
    (found,) = (tensor for tensor in reader.tensors if tensor.name == name)
    data = found.data[row]
    data[:] = 0xFF if data.dtype == np.uint8 else np.nan
    reader.data.flush()
    said = {one: _checked(path, one) for one in (None, 0, 1, 2)}
    wrong = f"tensor '{name}' holds values that are no numbers (NaN or infinity)"
    assert said == {one: wrong if one == layer else None for one in (None, 0, 1, 2)}
