from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ktllama.errors import ModelFileError
from ktllama.model import hf_config, presets, quantization
from ktllama.model.sources import open_config
from tests.model.http_files import Site, serving

DEEPSEEK_V3: Mapping[str, object] = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
V3_ROPE = DEEPSEEK_V3["rope_scaling"]
assert isinstance(V3_ROPE, dict)
KIMI_K2 = {
    **DEEPSEEK_V3,
    "model_type": "kimi_k2",
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "rope_scaling": {**V3_ROPE, "factor": 32.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163840,
}
MOONLIGHT = {
    **DEEPSEEK_V3,
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 11264,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "q_lora_rank": None,
    "rope_scaling": None,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "topk_group": 1,
    "vocab_size": 163840,
}
DEEPSEEK_V2 = {
    **DEEPSEEK_V3,
    "model_type": "deepseek_v2",
    "first_k_dense_replace": 1,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 60,
    "rope_scaling": {**V3_ROPE, "mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 16.0,
    "scoring_func": "softmax",
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
    "vocab_size": 102400,
}
LLAMA_8B: Mapping[str, object] = {
    "model_type": "llama",
    "attention_bias": False,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
MIXTRAL = {
    **LLAMA_8B,
    "model_type": "mixtral",
    "head_dim": None,
    "max_position_embeddings": 32768,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 32000,
}
QWEN2_7B = {
    **LLAMA_8B,
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN2_57B = {
    **QWEN2_7B,
    "model_type": "qwen2_moe",
    "decoder_sparse_step": 1,
    "max_position_embeddings": 32768,
    "mlp_only_layers": [],
    "moe_intermediate_size": 2560,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "rope_theta": 1000000.0,
    "shared_expert_intermediate_size": 20480,
    "vocab_size": 151936,
}
QWEN3_0528 = {
    **LLAMA_8B,
    "model_type": "qwen3",
    "head_dim": 128,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "attn_factor": 0.87,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "rope_type": "yarn",
    },
    "rope_theta": 1000000,
    "vocab_size": 151936,
}
QWEN3_235B = {
    **QWEN3_0528,
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "max_position_embeddings": 40960,
    "mlp_only_layers": [],
    "moe_intermediate_size": 1536,
    "num_attention_heads": 64,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 94,
    "num_key_value_heads": 4,
    "rope_scaling": None,
}
GLM_4_5 = {
    **LLAMA_8B,
    "model_type": "glm4_moe",
    "attention_bias": True,
    "first_k_dense_replace": 3,
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_group": 1,
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 92,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 0.5,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 2.5,
    "use_qk_norm": True,
    "vocab_size": 151552,
}
CONFIGS = {
    "deepseek-r1": DEEPSEEK_V3,
    "kimi-k2": KIMI_K2,
    "moonlight-16b-a3b": MOONLIGHT,
    "deepseek-v2": DEEPSEEK_V2,
    "r1-distill-llama-8b": LLAMA_8B,
    "mixtral-8x7b": MIXTRAL,
    "r1-distill-qwen-7b": QWEN2_7B,
    "qwen2-57b-a14b": QWEN2_57B,
    "r1-0528-qwen3-8b": QWEN3_0528,
    "qwen3-235b-a22b": QWEN3_235B,
    "glm-4.5": GLM_4_5,
}


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as served:
        yield served


def text(config: Mapping[str, object]) -> bytes:
    return json.dumps(config).encode()


def reason(content: bytes, quant: str = "Q4_K_M") -> str:
    with pytest.raises(ModelFileError) as caught:
        hf_config.parse(content, "config.json", "x", quant)
    return str(caught.value).removeprefix("config.json: ")


# --- Sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", CONFIGS)
def test_a_published_config_gives_the_preset(preset: str) -> None:
    title = presets.PRESETS[preset][1].title
    assert hf_config.parse(text(CONFIGS[preset]), "config.json", title) == presets.load(preset)


def test_every_model_type_is_compared_with_a_preset() -> None:
    assert {config["model_type"] for config in CONFIGS.values()} == set(hf_config.MODEL_TYPES)


def test_rope_parameters_of_newer_transformers() -> None:
    newer = {key: value for key, value in DEEPSEEK_V3.items() if key not in ("rope_scaling", "rope_theta")}
    assert isinstance(V3_ROPE, dict)
    newer["rope_parameters"] = {**V3_ROPE, "type": None, "rope_type": "yarn", "rope_theta": 10000.0}
    assert hf_config.parse(text(newer), "c", "x") == hf_config.parse(text(DEEPSEEK_V3), "c", "x")


@pytest.mark.parametrize("quant", sorted(set(quantization.MIXES) - {"MXFP4", "Q4_K_M"}))
def test_quantization(quant: str) -> None:
    model = hf_config.parse(text(LLAMA_8B), "c", "Llama", quant)
    assert model.name == f"Llama {quant}"
    types = {tensor.name: tensor.type for tensor in model.tensors}
    assert types["token_embd.weight"] == quant
    assert types["output_norm.weight"] == "F32"
    assert all(kind in (quant, "F32") for kind in types.values())


def test_biases_and_tied_embeddings() -> None:
    names = {
        tensor.name
        for tensor in hf_config.parse(
            text({**LLAMA_8B, "attention_bias": True, "tie_word_embeddings": True}), "c", "x"
        ).tensors
    }
    plain = {tensor.name for tensor in presets.load("r1-distill-llama-8b").tensors}
    biases = {f"blk.{layer}.attn_{part}.bias" for layer in range(32) for part in ("q", "k", "v", "output")}
    assert (names - plain, plain - names) == (biases, {"output.weight"})


def test_the_head_dimension_follows_from_the_others() -> None:
    model = hf_config.parse(text({**LLAMA_8B, "num_attention_heads": 64}), "c", "x")
    assert model.integer("attention.key_length") == 64


# --- What is wrong with it --------------------------------------------------------------------------------------------

KNOWN = "deepseek_v3, kimi_k2, deepseek_v2, llama, mixtral, qwen2, qwen3, qwen2_moe, qwen3_moe, glm4_moe"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not JSON: expecting value in line 1, column 1"),
        (b'{"a": 1,\n  b}', "is not JSON: expecting property name enclosed in double quotes in line 2, column 3"),
        (b"GGUF\xff", "is not UTF-8; expected a config.json (at byte 4)"),
        (b"[" * 100_000, "is not JSON that can be read: a number or its nesting is beyond bounds"),
        (b'{"a": NaN}', "is not JSON that can be read: a number or its nesting is beyond bounds"),
        (b'{"a": 1' + b"0" * 9999 + b"}", "is not JSON that can be read: a number or its nesting is beyond bounds"),
        (b"[1]", "is not a JSON object; expected a config.json"),
        (b"{}", f"model_type is missing; known: {KNOWN}"),
        (b'{"model_type": "bert\\u001b"}', f"model_type 'bert\\x1b' is not known; known: {KNOWN}"),
        (b'{"model_type": ["llama"]}', f"model_type '['llama']' is not known; known: {KNOWN}"),
    ],
)
def test_no_config(content: bytes, expected: str) -> None:
    assert reason(content) == expected


def test_an_unknown_quantization() -> None:
    known = ", ".join(quantization.MIXES)
    assert reason(text(LLAMA_8B), "Q9") == f"no quantization is called 'Q9'; known: {known}"


def test_everything_missing_is_told_at_once() -> None:
    assert reason(b'{"model_type": "qwen3_moe"}') == (
        "is no config of a qwen3_moe model: "
        "'vocab_size' is missing, expected a whole number from 1 to 16,777,216; "
        "'hidden_size' is missing, expected a whole number from 1 to 1,048,576; "
        "'num_hidden_layers' is missing, expected a whole number from 1 to 512; "
        "'num_attention_heads' is missing, expected a whole number from 1 to 4,096; "
        "'intermediate_size' is missing, expected a whole number from 1 to 1,048,576; "
        "'max_position_embeddings' is missing, expected a whole number from 1 to 2,147,483,647; "
        "'num_experts' is missing, expected a whole number from 1 to 4,096; "
        "'num_experts_per_tok' is missing, expected a whole number from 1 to 4,096; "
        "'moe_intermediate_size' is missing, expected a whole number from 1 to 1,048,576"
    )


@pytest.mark.parametrize(
    ("base", "change", "expected"),
    [
        (LLAMA_8B, {"hidden_size": "4096"}, "'hidden_size' is '4096', expected a whole number from 1 to 1,048,576"),
        (LLAMA_8B, {"hidden_size": 4096.0}, "'hidden_size' is 4096.0, expected a whole number from 1 to 1,048,576"),
        (LLAMA_8B, {"num_hidden_layers": True}, "'num_hidden_layers' is true, expected a whole number from 1 to 512"),
        (LLAMA_8B, {"num_hidden_layers": 0}, "'num_hidden_layers' is 0, expected a whole number from 1 to 512"),
        (
            LLAMA_8B,
            {"num_hidden_layers": 10**9},
            "'num_hidden_layers' is 1000000000, expected a whole number from 1 to 512",
        ),
        (
            LLAMA_8B,
            {"num_hidden_layers": -(10**40)},
            "'num_hidden_layers' is a number of 41 digits, expected a whole number from 1 to 512",
        ),
        (LLAMA_8B, {"vocab_size": [1]}, "'vocab_size' is a list, expected a whole number from 1 to 16,777,216"),
        (LLAMA_8B, {"rope_theta": -1}, "'rope_theta' is -1, expected a number above 0, at most 1e+12"),
        (LLAMA_8B, {"rms_norm_eps": "x\x1b"}, "'rms_norm_eps' is 'x\\x1b', expected a number above 0, at most 1"),
        (LLAMA_8B, {"tie_word_embeddings": 0}, "'tie_word_embeddings' is 0, expected true or false"),
        (LLAMA_8B, {"mlp_bias": True}, "'mlp_bias' is true; only false is supported"),
        (LLAMA_8B, {"num_key_value_heads": 7}, "'num_key_value_heads' is 7, which does not divide the 32 heads"),
        (LLAMA_8B, {"rope_scaling": "yarn"}, "'rope_scaling' is 'yarn', expected an object"),
        (
            LLAMA_8B,
            {"hidden_size": 4100},
            "'hidden_size' is 4100, which 32 heads do not divide; 'head_dim' is missing",
        ),
        (
            LLAMA_8B,
            {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
            "'rope_scaling.original_max_position_embeddings' is missing, expected a whole number from 1 to "
            "2,147,483,647",
        ),
        (
            LLAMA_8B,
            {"rope_scaling": {"type": "mystery"}},
            "'rope_scaling.type' is 'mystery', expected 'default' or 'yarn' or 'llama3' or 'linear' or 'dynamic' or "
            "'longrope' or 'su'",
        ),
        (QWEN3_235B, {"mlp_only_layers": [0]}, "'mlp_only_layers' is a list; only [] is supported"),
        (QWEN3_235B, {"decoder_sparse_step": 2}, "'decoder_sparse_step' is 2; only 1 is supported"),
        (QWEN3_235B, {"num_experts_per_tok": 129}, "'num_experts_per_tok' is 129, more than the 128 experts"),
        (DEEPSEEK_V3, {"moe_layer_freq": 2}, "'moe_layer_freq' is 2; only 1 is supported"),
        (DEEPSEEK_V3, {"first_k_dense_replace": 62}, "'first_k_dense_replace' is 62, more than the 61 layers"),
        (DEEPSEEK_V3, {"scoring_func": "tanh"}, "'scoring_func' is 'tanh', expected 'sigmoid' or 'softmax'"),
    ],
)
def test_a_wrong_value(base: Mapping[str, object], change: Mapping[str, object], expected: str) -> None:
    model_type = base["model_type"]
    assert reason(text({**base, **change})) == f"is no config of a {model_type} model: {expected}"


# --- Where it is ------------------------------------------------------------------------------------------------------


def test_a_path_or_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "My Llama"
    folder.mkdir()
    (folder / "config.json").write_bytes(text(LLAMA_8B))
    model = open_config(folder / "config.json", "Q8_0")
    assert model.name == "My Llama Q8_0"
    assert open_config(str(folder), "Q8_0") == model


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ModelFileError) as caught:
            open_config(path, "Q8_0")
        assert str(caught.value) == f"{tmp_path / 'config.json'}: no such file"


def test_a_huge_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b" " * (4 * 1024**2 + 1))
    with pytest.raises(ModelFileError) as caught:
        open_config(tmp_path, "Q8_0")
    assert caught.value.reason == "has 4,194,305 bytes; a config.json has at most 4,194,304"


def test_a_repository(site: Site) -> None:
    site.files["/o/My-Llama/resolve/main/config.json"] = text(LLAMA_8B)
    assert open_config("hf:o/My-Llama", "F16", site.access()).name == "My-Llama F16"


def test_an_address(site: Site) -> None:
    site.files["/o/r/resolve/v1/config.json"] = text(LLAMA_8B)
    for url in (f"{site.url}/o/r/resolve/v1/config.json", f"{site.url}/o/r/blob/v1/config.json"):
        assert open_config(url, "F16", site.access()).name == "llama F16"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:o/r:x.gguf", "hf:o/r:x.gguf: is no config.json; expected hf:OWNER/REPO"),
        ("hf:o/none", "URL/o/none/resolve/main/config.json: the server answers HTTP 404 Not Found; check the address"),
    ],
)
def test_no_config_there(site: Site, source: str, expected: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        open_config(source, "F16", site.access())
    assert str(caught.value).replace(site.url, "URL") == expected
