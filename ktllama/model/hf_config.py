"""Models by the ``config.json`` that transformers reads: sizes without a file, in a quantization that is assumed.

Keys and defaults: transformers 4.57 ``models/*/configuration_*.py``, and ``configuration_deepseek.py`` of the models
that bring their own code. What becomes of them: llama.cpp ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ktllama.errors import ModelFileError
from ktllama.model import config_fields, presets, quantization
from ktllama.model.byte_source import DiskFile
from ktllama.model.config_fields import Fields
from ktllama.model.model_file import ModelFile
from ktllama.model.presets.gqa import QKV_BIASES, GqaModel
from ktllama.model.presets.mla import MlaModel
from ktllama.model.wording import quoted

FILE_NAME = "config.json"
MAX_BYTES = 4 * 1024**2

_LAYERS = 512  # LLAMA_MAX_LAYERS in llama.cpp
_WIDTH = 2**20
_VOCABULARY = 2**24
_HEADS = 4096
_EXPERTS = 4096
_CONTEXT = 2**31 - 1
_SIGMOID = 2  # llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID


def read(path: str, quantization_name: str = quantization.DEFAULT) -> ModelFile:
    """The model of a ``config.json``, or of the folder that holds one, as if quantized to ``quantization_name``.

    Raises:
        ModelFileError: when it cannot be read, is no such file, or of no known model.
    """
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    with DiskFile(str(file)).open() as source:
        if source.size is not None and source.size > MAX_BYTES:
            raise ModelFileError(str(file), f"has {source.size:,} bytes; a config.json has at most {MAX_BYTES:,}")
        content = source.read_at(0, MAX_BYTES)
    return parse(content, str(file), file.absolute().parent.name, quantization_name)


def parse(content: bytes, path: str, title: str, quantization_name: str = quantization.DEFAULT) -> ModelFile:
    """The model that the text of a ``config.json`` describes; ``path`` names it in messages, ``title`` the model.

    Raises:
        ModelFileError: as :func:`read`.
    """
    if quantization_name not in quantization.MIXES:
        known = ", ".join(quantization.MIXES)
        raise ModelFileError(path, f"no quantization is called {quoted(quantization_name)}; known: {known}")
    values = config_fields.parse(content, path)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in _MODELS:
        said = "is missing" if model_type is None else f"{quoted(str(model_type))} is not known"
        raise ModelFileError(path, f"model_type {said}; known: {', '.join(_MODELS)}")
    architecture, reader = _MODELS[model_type]
    fields = Fields(values, path)
    sizes = reader(fields)
    fields.check(f"a {model_type} model")
    shown_title = title if title.strip() and title.isprintable() else model_type
    named = dataclasses.replace(sizes, title=shown_title, quantization=quantization_name)
    return presets.build(architecture, named)


# --- What all have ----------------------------------------------------------------------------------------------------


def _core(fields: Fields) -> dict[str, Any]:
    """Arguments that both kinds of sizes take."""
    return {
        "title": "",
        "n_vocab": fields.integer("vocab_size", _VOCABULARY),
        "n_embd": fields.integer("hidden_size", _WIDTH),
        "n_layers": fields.integer("num_hidden_layers", _LAYERS),
        "n_heads": fields.integer("num_attention_heads", _HEADS),
        "ffn": fields.integer("intermediate_size", _WIDTH),
        "context": fields.integer("max_position_embeddings", _CONTEXT),
        "rms_epsilon": fields.number("rms_norm_eps", 1.0, default=1e-6),
        **_rope(fields),
    }


def _rope(fields: Fields) -> dict[str, Any]:
    """Base and YaRN; newer transformers write both into ``rope_parameters``."""
    scaling = fields.section("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    home = scaling if scaling.has("rope_theta") else fields
    found: dict[str, Any] = {"rope_base": home.number("rope_theta", 1e12, default=10000.0)}
    kind = "rope_type" if scaling.has("rope_type") else "type"
    if (
        scaling.word(kind, ("default", "yarn", "llama3", "linear", "dynamic", "longrope", "su"), default="default")
        == "yarn"
    ):
        context = scaling.integer("original_max_position_embeddings", _CONTEXT)
        found["yarn"] = (scaling.number("factor", 1e6), context)
    return found


def _experts(fields: Fields, key: str) -> dict[str, Any]:
    n_experts = fields.integer(key, _EXPERTS)
    n_used = fields.integer("num_experts_per_tok", _EXPERTS)
    if n_used > n_experts:
        fields.disagreement("num_experts_per_tok", f"is {n_used}, more than the {n_experts} experts")
    return {"n_experts": n_experts, "n_experts_used": n_used}


def _n_dense(fields: Fields, n_layers: int) -> int:
    n_dense = fields.integer("first_k_dense_replace", _LAYERS, least=0, default=0)
    if n_dense > n_layers:
        fields.disagreement("first_k_dense_replace", f"is {n_dense}, more than the {n_layers} layers")
    return n_dense


# --- Multi-head latent attention --------------------------------------------------------------------------------------


def _deepseek_v3(fields: Fields) -> MlaModel:
    return _mla(fields, default_scoring="sigmoid")


def _deepseek_v2(fields: Fields) -> MlaModel:
    return _mla(fields, default_scoring="softmax")


def _mla(fields: Fields, *, default_scoring: str) -> MlaModel:
    fields.only("moe_layer_freq", 1)
    fields.only("attention_bias", False)
    fields.only("tie_word_embeddings", False)
    core = _core(fields)
    scaling = fields.section("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    scoring = fields.word("scoring_func", ("sigmoid", "softmax"), default=default_scoring)
    return MlaModel(
        **core,
        **_experts(fields, "n_routed_experts"),
        n_dense=_n_dense(fields, core["n_layers"]),
        q_lora_rank=fields.integer("q_lora_rank", _WIDTH, least=0, default=0),
        kv_lora_rank=fields.integer("kv_lora_rank", _WIDTH),
        nope_head_dim=fields.integer("qk_nope_head_dim", _WIDTH),
        rope_head_dim=fields.integer("qk_rope_head_dim", _WIDTH),
        v_head_dim=fields.integer("v_head_dim", _WIDTH),
        expert_ffn=fields.integer("moe_intermediate_size", _WIDTH),
        n_shared_experts=fields.integer("n_shared_experts", _EXPERTS),
        sigmoid=scoring == "sigmoid",
        n_groups=fields.integer("n_group", _EXPERTS, default=1),
        n_groups_used=fields.integer("topk_group", _EXPERTS, default=1),
        weights_scale=fields.number("routed_scaling_factor", 1e6, default=1.0),
        weights_norm=fields.flag("norm_topk_prob", default=False),
        # convert_hf_to_gguf.py: yarn_log_multiplier = 0.1 * mscale_all_dim
        yarn_log_multiplier=round(0.1 * scaling.number("mscale_all_dim", 100.0, default=1.0), 9),
    )


# --- Grouped-query attention ------------------------------------------------------------------------------------------


def _gqa(fields: Fields, *, head_dim: int | None = None) -> dict[str, Any]:
    """Arguments of :class:`GqaModel` that all its models have; ``head_dim`` is the default, else embedding / heads."""
    core = _core(fields)
    n_heads, n_embd = core["n_heads"], core["n_embd"]
    n_kv_heads = fields.integer("num_key_value_heads", _HEADS, default=n_heads)
    if n_heads % n_kv_heads:
        fields.disagreement("num_key_value_heads", f"is {n_kv_heads}, which does not divide the {n_heads} heads")
    if not fields.has("head_dim") and head_dim is None and n_embd % n_heads:
        fields.disagreement("hidden_size", f"is {n_embd}, which {n_heads} heads do not divide; 'head_dim' is missing")
    tied = fields.flag("tie_word_embeddings", default=False)
    dim = fields.integer("head_dim", _WIDTH, default=head_dim or max(1, n_embd // n_heads))
    return {**core, "n_kv_heads": n_kv_heads, "head_dim": dim, "tied": tied}


def _llama(fields: Fields) -> GqaModel:
    fields.only("mlp_bias", False)
    biases = QKV_BIASES | {"attn_output"} if fields.flag("attention_bias", default=False) else frozenset()
    return GqaModel(**_gqa(fields), biases=biases)


def _mixtral(fields: Fields) -> GqaModel:
    arguments = _gqa(fields)
    return GqaModel(**arguments, **_experts(fields, "num_local_experts"), expert_ffn=arguments["ffn"])


def _qwen2(fields: Fields) -> GqaModel:
    return GqaModel(**_gqa(fields), biases=QKV_BIASES)


def _qwen3(fields: Fields) -> GqaModel:
    fields.only("attention_bias", False)
    return GqaModel(**_gqa(fields, head_dim=128), head_norms="head")


def _qwen2_moe(fields: Fields) -> GqaModel:
    shared_ffn = fields.integer("shared_expert_intermediate_size", _WIDTH)
    return GqaModel(
        **_gqa(fields),
        **_qwen_experts(fields),
        biases=QKV_BIASES,
        shared_ffn=shared_ffn,
        shared_gate=True,
        more={"expert_shared_feed_forward_length": shared_ffn},
    )


def _qwen3_moe(fields: Fields) -> GqaModel:
    fields.only("attention_bias", False)
    return GqaModel(**_gqa(fields, head_dim=128), **_qwen_experts(fields), head_norms="head")


def _qwen_experts(fields: Fields) -> dict[str, Any]:
    fields.only("decoder_sparse_step", 1)
    fields.only("mlp_only_layers", [])
    return {**_experts(fields, "num_experts"), "expert_ffn": fields.integer("moe_intermediate_size", _WIDTH)}


def _glm4_moe(fields: Fields) -> GqaModel:
    arguments = _gqa(fields, head_dim=128)
    n_shared = fields.integer("n_shared_experts", _EXPERTS)
    expert_ffn = fields.integer("moe_intermediate_size", _WIDTH)
    return GqaModel(
        **arguments,
        **_experts(fields, "n_routed_experts"),
        n_mtp=fields.integer("num_nextn_predict_layers", 16, least=0, default=0),
        n_dense=_n_dense(fields, arguments["n_layers"]),
        expert_ffn=expert_ffn,
        shared_ffn=n_shared * expert_ffn,
        router_bias=True,
        biases=QKV_BIASES if fields.flag("attention_bias", default=False) else frozenset(),
        head_norms="head" if fields.flag("use_qk_norm", default=False) else "none",
        second_norm="post_attention_norm",
        rope_dim=int(arguments["head_dim"] * fields.number("partial_rotary_factor", 1.0, default=0.5)),
        more={
            "expert_shared_count": n_shared,
            "expert_weights_scale": fields.number("routed_scaling_factor", 1e6, default=1.0),
            "expert_weights_norm": fields.flag("norm_topk_prob", default=True),
            "expert_gating_func": _SIGMOID,
        },
    )


#: model_type → GGUF architecture, and what reads the keys.
_MODELS: Mapping[str, tuple[str, Callable[[Fields], MlaModel | GqaModel]]] = {
    "deepseek_v3": ("deepseek2", _deepseek_v3),
    "kimi_k2": ("deepseek2", _deepseek_v3),
    "deepseek_v2": ("deepseek2", _deepseek_v2),
    "llama": ("llama", _llama),
    "mixtral": ("llama", _mixtral),
    "qwen2": ("qwen2", _qwen2),
    "qwen3": ("qwen3", _qwen3),
    "qwen2_moe": ("qwen2moe", _qwen2_moe),
    "qwen3_moe": ("qwen3moe", _qwen3_moe),
    "glm4_moe": ("glm4moe", _glm4_moe),
}

#: The model types that can be read.
MODEL_TYPES = tuple(_MODELS)
