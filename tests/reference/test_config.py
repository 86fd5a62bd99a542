"""Configs from metadata: whole values, and every key that is missing or absurd."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ktllama.errors import ModelFileError
from ktllama.model.model_file import MetadataArray, MetadataValue, ModelFile, Tensor
from ktllama.reference.config import Config, DeepSeekConfig, DenseConfig, RopeConfig
from tests.reference.files import deepseek_config, dense_config, metadata_of, yarn


def _model(config: Config, *names: str, **changes: MetadataValue | None) -> ModelFile:
    """A header with the metadata of a config; ``changes`` by key, with ``__`` for dots, None for none."""
    changed = {**metadata_of(config), **{key.replace("__", "."): value for key, value in changes.items()}}
    metadata: dict[str, MetadataValue] = {"general.architecture": config.architecture}
    for key, value in changed.items():
        if value is not None:
            assert isinstance(value, bool | int | float | str | MetadataArray)
            metadata[f"{config.architecture}.{key}"] = value
    tensors = tuple(Tensor(name=name, shape=(1,), type="F32", n_bytes=4) for name in names)
    return ModelFile(name="m", architecture=config.architecture, metadata=metadata, tensors=tensors, paths=("m.gguf",))


@pytest.mark.parametrize(
    "config",
    [
        deepseek_config(),
        deepseek_config(rope=yarn(), n_mtp=1, q_lora_rank=None),
        deepseek_config(rope=yarn(log_multiplier=None), tied_output=True, n_dense=0),
        deepseek_config(gating="softmax", selection_bias=False, normalize=False, scale=16.0),
        deepseek_config(rope=RopeConfig(n_dims=8, base=5e5, factor=2.0), n_shared=0),
    ],
)
def test_a_deepseek_config_comes_back_from_its_metadata(config: DeepSeekConfig) -> None:
    names = [] if config.tied_output else ["output.weight"]
    names += ["blk.1.exp_probs_b.bias"] if config.moe.selection_bias else []
    assert DeepSeekConfig.from_metadata(_model(config, *names)) == config


@pytest.mark.parametrize("config", [dense_config(), dense_config("qwen2", rope=yarn(16, log_multiplier=None))])
def test_a_dense_config_comes_back_from_its_metadata(config: DenseConfig) -> None:
    names = ["output.weight", *(["blk.0.attn_q.bias"] if config.qkv_bias else [])]
    assert DenseConfig.from_metadata(_model(config, *names)) == config


def test_what_llama_cpp_does_without_a_key_is_done_here() -> None:
    model = _model(
        deepseek_config(),
        "output.weight",
        expert_gating_func=None,
        expert_weights_scale=None,
        expert_weights_norm=None,
        expert_group_count=None,
        expert_group_used_count=None,
        leading_dense_block_count=None,
    )
    usual = {"gating": "softmax", "selection_bias": False, "normalize": False, "n_groups": 1, "n_groups_used": 1}
    assert DeepSeekConfig.from_metadata(model) == deepseek_config(**usual, scale=1.0, n_dense=0)


@pytest.mark.parametrize(
    ("n_layers", "vocabulary", "expected"),
    [(26, 260, None), (27, 260, None), (48, 128256, None), (48, 260, 48), (28, 260, 48)],
)
def test_files_that_llama_cpp_takes_for_lite_have_no_compressed_queries(
    n_layers: int, vocabulary: int, expected: int | None
) -> None:
    config = deepseek_config(n_layers=n_layers, vocabulary=vocabulary, q_lora_rank=48)
    assert DeepSeekConfig.from_metadata(_model(config, "output.weight")).q_lora_rank == expected


@pytest.mark.parametrize(
    ("n_layers", "n_mtp", "vocabulary", "gating"),
    [
        (47, 0, 154880, "sigmoid"),
        (47, 1, 154880, "sigmoid"),
        (48, 0, 154880, "sigmoid"),
        (46, 0, 154880, "softmax"),
        (47, 0, 260, "softmax"),
    ],
)
def test_gating_that_is_not_said_is_that_of_glm_by_its_size(
    n_layers: int, n_mtp: int, vocabulary: int, gating: str
) -> None:
    config = deepseek_config(n_layers=n_layers, n_mtp=n_mtp, vocabulary=vocabulary)
    model = _model(config, "output.weight", expert_gating_func=None)
    assert DeepSeekConfig.from_metadata(model).moe.gating == gating


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_yarn_multiplier_is_deepseeks_alone(architecture: str) -> None:
    config = dense_config(architecture, rope=yarn(16, log_multiplier=None))
    names = ["output.weight", *(["blk.0.attn_q.bias"] if config.qkv_bias else [])]
    model = _model(config, *names, rope__scaling__yarn_log_multiplier=0.1)
    assert DenseConfig.from_metadata(model) == config


def test_numbers_may_be_given_by_layer_if_they_are_the_same() -> None:
    config = dense_config()
    same = MetadataArray(item_type=4, n_items=3, values=(2, 2, 2))
    assert DenseConfig.from_metadata(_model(config, "output.weight", attention__head_count_kv=same)) == replace(
        config, n_kv_heads=2
    )
    different = MetadataArray(item_type=4, n_items=3, values=(2, 1, 2))
    with pytest.raises(ModelFileError) as caught:
        DenseConfig.from_metadata(_model(config, attention__head_count_kv=different))
    assert str(caught.value) == (
        "m.gguf: metadata key 'llama.attention.head_count_kv' is an array of 3 items; "
        "expected one whole number from 1 to 1,048,576, the same in all layers"
    )


def test_the_vocabulary_may_be_told_by_the_list_of_tokens() -> None:
    model = _model(deepseek_config(), "output.weight", vocab_size=None)
    listed = MetadataArray(item_type=8, n_items=777)
    model = replace(model, metadata={**model.metadata, "tokenizer.ggml.tokens": listed})
    assert DeepSeekConfig.from_metadata(model).vocabulary == 777


MLA = "attention.key_length_mla"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("embedding_length", None, "is missing; expected a whole number from 1 to 1,048,576"),
        ("embedding_length", 0, "is 0; expected a whole number from 1 to 1,048,576"),
        ("embedding_length", 2**30, "is 1073741824; expected a whole number from 1 to 1,048,576"),
        ("feed_forward_length", "wide", "is 'wide'; expected a whole number from 1 to 1,048,576"),
        ("attention.head_count", True, "is True; expected a whole number from 1 to 1,048,576"),
        ("attention.kv_lora_rank", None, "is missing; expected a whole number from 1 to 1,048,576"),
        ("attention.value_length_mla", None, "is missing; expected a whole number from 1 to 1,048,576"),
        ("attention.layer_norm_rms_epsilon", None, "is missing; expected a number above 0, at most 1"),
        ("attention.layer_norm_rms_epsilon", float("nan"), "is nan; expected a number above 0, at most 1"),
        ("attention.temperature_scale", 0.1, "is 0.1; expected no such key: the reference has no attention temperature"),
        ("rope.dimension_count", 7, "is 7; expected an even number"),
        ("rope.dimension_count", 24, "is 24; expected fewer than the 24 values of a head"),
        ("rope.freq_base", 1.0, "is 1.0; expected a number above 1"),
        ("rope.scaling.type", "longrope", "is 'longrope'; expected 'none' or 'linear' or 'yarn'"),
        ("rope.scaling.factor", -2.0, "is -2.0; expected a number above 0, at most 1e+06"),
        ("context_length", None, "is missing; expected a whole number from 1 to 2,147,483,648"),
        ("expert_count", None, "is missing; expected a whole number from 1 to 1,024"),
        ("expert_used_count", 9, "is 9; expected a whole number from 1 to 8"),
        ("expert_used_count", 5, "is 5; expected no more experts than the chosen groups have"),
        ("expert_group_count", 3, "is 3; expected groups of two or more of the 8 experts, all of one size"),
        ("expert_group_used_count", None, "is missing; expected a whole number from 1 to 4"),
        ("expert_gating_func", 3, "is 3; expected 1 (softmax) or 2 (sigmoid)"),
        ("expert_weights_norm", 1, "is 1; expected true or false"),
        ("expert_feed_forward_length", None, "is missing; expected a whole number from 1 to 1,048,576"),
        ("vocab_size", None, "is missing; expected a whole number from 1 to 16,777,216"),
        ("nextn_predict_layers", 2, "is 2; expected a whole number from 0 to 1"),
    ],
)  # fmt: skip
def test_a_missing_or_absurd_key_is_named(key: str, value: MetadataValue | None, said: str) -> None:
    model = _model(deepseek_config(), "output.weight", **{key.replace(".", "__"): value})
    with pytest.raises(ModelFileError) as caught:
        DeepSeekConfig.from_metadata(model)
    assert str(caught.value) == f"m.gguf: metadata key 'deepseek2.{key}' {said}"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attention.head_count", None, "is missing; expected a whole number from 1 to 1,048,576"),
        ("attention.head_count_kv", 3, "is 3; expected a divisor of the 4 heads"),
        ("rope.dimension_count", 8, "is 8; expected 16, the length of a head"),
        ("expert_count", 8, "is 8; expected 0: the reference has no experts for this architecture"),
    ],
)
def test_a_dense_model_is_checked_too(key: str, value: MetadataValue | None, said: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        DenseConfig.from_metadata(_model(dense_config(), **{key.replace(".", "__"): value}))
    assert str(caught.value) == f"m.gguf: metadata key 'llama.{key}' {said}"
