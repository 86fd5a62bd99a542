"""GGUF files of small random models, written from the torch modules themselves, in any tensor type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ktllama.reference.config import Config, DeepSeekConfig, DenseConfig, MoeConfig, RopeConfig, YarnConfig
from ktllama.reference.decoder import initialise
from ktllama.reference.deepseek import DeepSeek
from ktllama.reference.dense import Dense
from ktllama.reference.names import gguf_name, kept_in_float32

N_VOCAB = 260

#: Name and value, with the contiguous dimension last.
Tensors: TypeAlias = dict[str, npt.NDArray[np.float32]]


def deepseek_config(**changes: Any) -> DeepSeekConfig:
    """A small V3: 8 experts in 4 groups, sigmoid gating, no YaRN."""
    moe = {name: changes.pop(name) for name in list(changes) if name in MoeConfig.__dataclass_fields__}
    usual: dict[str, Any] = {
        "vocabulary": N_VOCAB,
        "n_layers": 3,
        "width": 64,
        "ffn": 96,
        "n_heads": 4,
        "nope": 16,
        "v_head": 24,
        "kv_lora_rank": 32,
        "q_lora_rank": 48,
        "rope": RopeConfig(n_dims=8),
        "moe": MoeConfig(
            **{
                "n_experts": 8,
                "n_experts_used": 3,
                "n_shared": 1,
                "expert_ffn": 32,
                "n_groups": 4,
                "n_groups_used": 2,
                "scale": 2.5,
                **moe,
            }
        ),
        "context": 1024,
    }
    return DeepSeekConfig(**{**usual, **changes})


def yarn(n_dims: int = 8, *, log_multiplier: float | None = 0.1, factor: float = 8.0, original: int = 64) -> RopeConfig:
    return RopeConfig(
        n_dims=n_dims,
        factor=factor,
        yarn=YarnConfig(original_context=original, log_multiplier=log_multiplier),
    )


def dense_config(architecture: str = "llama", **changes: Any) -> DenseConfig:
    """A small Llama or Qwen2 of three layers."""
    usual: dict[str, Any] = {
        "architecture": architecture,
        "vocabulary": N_VOCAB,
        "n_layers": 3,
        "width": 64,
        "ffn": 96,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head": 16,
        "rope": RopeConfig(n_dims=changes.get("head", 16)),
        "pairing": "neighbours" if architecture == "llama" else "halves",
        "qkv_bias": architecture == "qwen2",
        "context": 1024,
    }
    return DenseConfig(**{**usual, **changes})


def random_module(config: Config, seed: int = 1, gain: float | None = None) -> DeepSeek | Dense:
    """A model with seeded weights whose logits are of unit size; norms and biases are random, too.

    The many layers of a deep one write less each, as in a trained model; else rounding alone grows from layer to layer.
    """
    module = DeepSeek(config) if isinstance(config, DeepSeekConfig) else Dense(config)
    initialise(module, seed)
    gain = gain or (0.7 if config.n_layers > 20 else 1.0)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name == "rope_freqs.weight":
                parameter.copy_(torch.linspace(1, 8, len(parameter)))
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif name.startswith("blk.") and "gate_inp" not in name:
                parameter.mul_(gain)
    return module


def tensors_of(module: nn.Module) -> Tensors:
    """The parameters under their GGUF names."""
    return {gguf_name(name): parameter.detach().float().numpy() for name, parameter in module.named_parameters()}


def write(
    path: Path,
    config: Config,
    tensors: Tensors,
    *,
    matrix_type: str = "F32",
    types: Mapping[str, str] | None = None,
    metadata: Mapping[str, object] | None = None,
    n_files: int = 1,
) -> Path:
    """Write a model file; the path of its first.

    ``matrix_type`` is for what is not kept in float32 anyway, ``types`` for single tensors by GGUF name; ``metadata``
    changes hyperparameters, None leaves one out.
    """
    per_file = -(-len(tensors) // n_files) if n_files > 1 else 0
    writer = gguf.GGUFWriter(path, config.architecture, split_max_tensors=per_file)
    for key, value in {**metadata_of(config), **(metadata or {})}.items():
        if value is not None:
            _add(writer, f"{config.architecture}.{key}", value)
    add_vocabulary(writer)
    for name, values in tensors.items():
        usual = "F32" if kept_in_float32(name) or name.endswith("gate_inp.weight") or values.ndim == 1 else matrix_type
        kind = gguf.GGMLQuantizationType[(types or {}).get(name, usual)]
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if n_files == 1 else path.with_name(f"{path.stem}-00001-of-{n_files:05d}.gguf")


def write_random(path: Path, config: Config, *, seed: int = 1, gain: float | None = None, **options: Any) -> Path:
    """Write a model with seeded weights."""
    return write(path, config, tensors_of(random_module(config, seed, gain)), **options)


def metadata_of(config: Config) -> dict[str, object]:
    """The hyperparameters as llama.cpp's converter writes them."""
    rope = config.rope
    found: dict[str, object] = {
        "context_length": config.context,
        "block_count": config.n_layers,
        "embedding_length": config.width,
        "feed_forward_length": config.ffn,
        "attention.head_count": config.n_heads,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "rope.dimension_count": rope.n_dims,
        "rope.freq_base": rope.base,
        "vocab_size": config.vocabulary,
    }
    if rope.yarn is not None:
        found["rope.scaling.type"] = "yarn"
        found["rope.scaling.original_context_length"] = rope.yarn.original_context
        found["rope.scaling.yarn_log_multiplier"] = rope.yarn.log_multiplier
    if rope.factor != 1:
        found["rope.scaling.factor"] = rope.factor
    if isinstance(config, DenseConfig):
        return {**found, "attention.head_count_kv": config.n_kv_heads}
    return {**found, **_deepseek_metadata(config)}


def _deepseek_metadata(config: DeepSeekConfig) -> dict[str, object]:
    moe, rank = config.moe, config.kv_lora_rank
    return {
        "block_count": config.n_layers + config.n_mtp,
        "nextn_predict_layers": config.n_mtp or None,
        "attention.head_count_kv": 1,
        "attention.key_length": rank + config.rope.n_dims,
        "attention.value_length": rank,
        "attention.key_length_mla": config.nope + config.rope.n_dims,
        "attention.value_length_mla": config.v_head,
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": rank,
        "leading_dense_block_count": config.n_dense,
        "expert_count": moe.n_experts,
        "expert_used_count": moe.n_experts_used,
        "expert_shared_count": moe.n_shared,
        "expert_feed_forward_length": moe.expert_ffn,
        "expert_group_count": moe.n_groups,
        "expert_group_used_count": moe.n_groups_used,
        "expert_gating_func": 1 if moe.gating == "softmax" else 2,
        "expert_weights_norm": moe.normalize,
        "expert_weights_scale": moe.scale,
    }


def _add(writer: Any, key: str, value: object) -> None:
    kinds: list[tuple[type | tuple[type, ...], Callable[[str, Any], None]]] = [
        (bool, writer.add_bool),
        (int, writer.add_uint32),
        (float, writer.add_float32),
        (str, writer.add_string),
        ((list, tuple), writer.add_array),
    ]
    next(add for kind, add in kinds if isinstance(value, kind))(key, value)


def add_vocabulary(writer: Any) -> None:
    """Tokens that llama.cpp takes: it is only ever given ids here."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<{index}>" for index in range(N_VOCAB)])
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * N_VOCAB)
    writer.add_token_merges(["a b"])


def random_tokens(n: int, seed: int = 0) -> list[int]:
    """Token ids of the small vocabulary."""
    chosen: Iterable[int] = np.random.default_rng(seed).integers(0, N_VOCAB, n).tolist()
    return list(chosen)
