"""KV cache sizes, worked out by hand from the models' published sizes."""

from __future__ import annotations

import pytest

from ktllama.errors import ModelFileError
from ktllama.model import presets
from ktllama.model.kv_cache import kv_bytes_per_token, n_cells, recurrent_layers, state_bytes
from ktllama.model.model_file import MetadataArray, MetadataValue, ModelFile


def _model(architecture: str = "llama", **hyperparameters: MetadataValue) -> ModelFile:
    metadata = {f"{architecture}.{key.replace('__', '.')}": value for key, value in hyperparameters.items()}
    return ModelFile(name="made up", architecture=architecture, metadata=metadata, tensors=())


def test_mla_keeps_the_compressed_key_only() -> None:
    model = presets.load("deepseek-r1")
    # kv_lora_rank 512 + rope 64 values of two bytes
    assert [kv_bytes_per_token(model, layer) for layer in (0, 60)] == [1152, 1152]


def test_mla_in_q8_0_takes_34_bytes_a_32_values() -> None:
    assert kv_bytes_per_token(presets.load("deepseek-r1"), 0, "q8_0", "q8_0") == 576 // 32 * 34


def test_early_deepseek_files_keep_full_heads_of_both() -> None:
    model = _model(
        "deepseek2",
        block_count=2,
        embedding_length=5120,
        attention__head_count=128,
        attention__head_count_kv=128,
        attention__key_length=192,
        attention__value_length=128,
    )
    assert kv_bytes_per_token(model, 0) == 128 * (192 + 128) * 2


def test_grouped_heads_take_their_share_of_the_embedding() -> None:
    model = presets.load("r1-distill-llama-8b")
    assert kv_bytes_per_token(model, 0) == 8 * 128 * 2 * 2


def test_heads_may_differ_by_layer_and_v_is_padded_without_flash_attention() -> None:
    heads = MetadataArray(item_type=5, n_items=3, values=(2, 0, 4))
    model = _model(block_count=3, embedding_length=64, attention__head_count=4, attention__head_count_kv=heads)
    assert [kv_bytes_per_token(model, layer) for layer in range(3)] == [128, 0, 256]
    assert [kv_bytes_per_token(model, layer, flash_attention=False) for layer in range(3)] == [192, 128, 256]


def test_without_kv_heads_every_head_has_its_own() -> None:
    model = _model(block_count=1, embedding_length=64, attention__head_count=4)
    assert kv_bytes_per_token(model, 0, "f32", "q4_0") == 64 * 4 + 64 // 32 * 18


def test_a_header_without_heads_is_an_error() -> None:
    with pytest.raises(ModelFileError, match=r"llama\.attention\.head_count is missing"):
        kv_bytes_per_token(_model(block_count=1, embedding_length=64), 0)


def test_three_layers_of_four_of_qwen3next_have_a_state_and_no_cache() -> None:
    model = presets.load("qwen3-next-80b-a3b")
    assert recurrent_layers(model) == set(range(48)) - {3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47}
    assert [kv_bytes_per_token(model, layer) for layer in (2, 3)] == [0, 2 * 256 * 2 * 2]
    # a convolution over 2 * 16 + 32 heads of 128 that remembers 3 tokens, and 32 states of 128 by 128, in f32, twice
    assert state_bytes(model, 2) == (3 * (2 * 16 + 32) * 128 + 32 * 128 * 128) * 4 * 2


def test_the_header_says_which_layers_are_recurrent_where_it_does() -> None:
    kinds = MetadataArray(item_type=7, n_items=3, values=(True, False, True))
    model = _model("qwen3next", block_count=3, attention__recurrent_layers=kinds)
    assert recurrent_layers(model) == {0, 2}
    assert recurrent_layers(_model("qwen3next", block_count=4, full_attention_interval=2)) == {0, 2}


def test_other_recurrent_states_are_not_guessed() -> None:
    assert state_bytes(_model("rwkv7", block_count=1, wkv__head_size=64)) is None


@pytest.mark.parametrize(
    ("n_ctx", "n_seq_max", "unified", "cells"),
    [(512, 1, True, 512), (500, 1, True, 512), (1, 4, True, 256), (1000, 3, False, 1536), (0, 1, True, 4096)],
)
def test_cells_are_padded_to_256(n_ctx: int, n_seq_max: int, unified: bool, cells: int) -> None:
    assert n_cells(n_ctx, n_seq_max=n_seq_max, unified=unified, n_ctx_train=4096) == cells
