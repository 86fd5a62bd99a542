"""Models of any size that cost what real ones of their shape cost: random weights, no vocabulary.

What they say is noise. The weights keep activations in range, so that no kernel meets infinities, and a router of noise
spreads tokens over all experts. Tensor names and keys: llama.cpp ``src/models/deepseek2.cpp``, ``qwen3moe.cpp``,
``llama.cpp`` and ``src/llama-arch.cpp``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ktllama.errors import ModelFileError
from ktllama.model import sparse
from ktllama.model.gguf_header import DEFAULT_ALIGNMENT
from ktllama.model.model_file import MetadataValue, ModelFile, Tensor
from ktllama.model.tensor_types import TENSOR_TYPES, padded, tensor_bytes

_SEED = 1
_PATTERN_BYTES = 1 << 24  # random bytes are repeated after so many; no cache holds as much of a matrix at once

#: Where a block of a type keeps its half-precision scales: (byte of the first, how many follow it, what each is in
#: units of the deviation of the weights). Sources: ``ggml/src/ggml-common.h``.
_SCALES: dict[str, tuple[int, tuple[float, ...]]] = {
    "Q4_0": (0, (1 / 5,)),
    "Q4_1": (0, (1 / 5, -1.5)),
    "Q5_0": (0, (1 / 10,)),
    "Q5_1": (0, (1 / 10, -1.5)),
    "Q8_0": (0, (1 / 74,)),
    "IQ4_NL": (0, (1 / 70,)),
    "Q2_K": (80, (1 / 15, 1 / 15)),
    "Q3_K": (108, (1 / 40,)),
    "Q4_K": (0, (1 / 250, 7.5 / 250)),
    "Q5_K": (0, (1 / 500, 15 / 500)),
    "Q6_K": (208, (1 / 1400,)),
    "IQ4_XS": (0, (1 / 1400,)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides a sample's cost. ``architecture`` is llama.cpp's name: deepseek2 (MLA, one dense layer, one shared
    expert), qwen3moe (grouped queries, all layers with experts), llama or qwen3 (dense: ``n_experts`` is 0).

    ``matrix_type`` is the ggml type of all matrices but the experts' (``expert_type``) and the output's.
    """

    architecture: str
    n_layers: int
    n_embd: int = 1024
    n_heads: int = 16
    n_kv_heads: int = 4
    head: int = 128
    ffn: int = 4096
    expert_ffn: int = 512
    n_experts: int = 0
    n_used: int = 4
    n_vocab: int = 8192
    matrix_type: str = "Q8_0"
    expert_type: str = "Q4_K"
    output_type: str = "Q6_K"
    q_rank: int = 512
    kv_rank: int = 512
    rope: int = 64
    context: int = 8192
    extra: dict[str, MetadataValue] = field(default_factory=dict)


def sample(shape: Shape, name: str = "sample") -> ModelFile:
    """The header of a sample.

    Raises:
        ValueError: when rows of a type are not whole blocks.
    """
    tensors = tuple(
        Tensor(name=f"{stem}", shape=dims, type=kind, n_bytes=tensor_bytes(kind, dims))
        for stem, dims, kind in _tensors(shape)
    )
    prefixed = {f"{shape.architecture}.{key}": value for key, value in _metadata(shape).items()}
    return ModelFile(
        name=name,
        architecture=shape.architecture,
        metadata={"general.architecture": shape.architecture, "general.name": name, **prefixed},
        tensors=tensors,
    )


def write(model: ModelFile, path: Path, seed: int = _SEED) -> Path:
    """Write a sample with its weights.

    Raises:
        ModelFileError: when ``path`` exists or cannot be written.
    """
    sparse.write(model, path)
    sizes = [padded(tensor.n_bytes, DEFAULT_ALIGNMENT) for tensor in model.tensors]
    offset = path.stat().st_size - sum(sizes)
    random = np.random.default_rng(seed)
    patterns: dict[tuple[str, float], NDArray[np.uint8]] = {}
    try:
        with path.open("r+b") as file:
            for tensor, size in zip(model.tensors, sizes, strict=True):
                file.seek(offset)
                for piece in _data(random, tensor, patterns):
                    file.write(piece)
                offset += size
    except OSError as fault:
        path.unlink(missing_ok=True)
        raise ModelFileError(os.fspath(path), f"cannot be written: {fault.strerror}") from fault
    return path


def _data(
    random: np.random.Generator, tensor: Tensor, patterns: dict[tuple[str, float], NDArray[np.uint8]]
) -> Iterator[memoryview]:
    if tensor.type == "F32":
        values = random.standard_normal(math.prod(tensor.shape)) * (0.1 if "norm" in tensor.name else 0.05)
        yield (values + ("norm" in tensor.name)).astype(np.float32).data.cast("B")
        return
    deviation = 1.0 if tensor.name == "token_embd.weight" else 1 / math.sqrt(tensor.shape[0])
    key = (tensor.type, deviation)
    if key not in patterns:
        patterns[key] = _pattern(random, tensor.type, deviation)
    pattern, left = patterns[key], tensor.n_bytes
    block = TENSOR_TYPES[tensor.type].block_bytes
    begin = int(random.integers(len(pattern) // block)) * block  # matrices must not be alike
    while left:
        piece = pattern[begin : begin + left]
        yield piece.data
        left, begin = left - len(piece), 0


def _pattern(random: np.random.Generator, type_name: str, deviation: float) -> NDArray[np.uint8]:
    """Blocks of random weights of about this deviation."""
    known = TENSOR_TYPES[type_name]
    n_blocks = _PATTERN_BYTES // known.block_bytes
    if type_name == "F16":
        return (random.standard_normal(n_blocks) * deviation).astype(np.float16).view(np.uint8)
    if type_name == "BF16":
        wide = (random.standard_normal(n_blocks) * deviation).astype(np.float32).view(np.uint32)
        return (wide >> 16).astype(np.uint16).view(np.uint8)
    blocks = np.frombuffer(random.bytes(n_blocks * known.block_bytes), np.uint8).reshape(n_blocks, -1).copy()
    at, scales = _SCALES[type_name]
    for number, scale in enumerate(scales):
        first = at + 2 * number
        blocks[:, first : first + 2] = np.frombuffer(np.float16(scale * deviation).tobytes(), np.uint8)
    return blocks.reshape(-1)


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape with the contiguous dimension first, and type."""
    yield "token_embd.weight", (shape.n_embd, shape.n_vocab), shape.matrix_type
    yield "output_norm.weight", (shape.n_embd,), "F32"
    yield "output.weight", (shape.n_embd, shape.n_vocab), shape.output_type
    for layer in range(shape.n_layers):
        attention = _latent_attention(shape) if shape.architecture == "deepseek2" else _grouped_attention(shape)
        for stem, dims, kind in (*attention, *_feed_forward(shape, layer)):
            yield f"blk.{layer}.{stem}", dims, kind


def _latent_attention(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], str]]:
    kind, heads = shape.matrix_type, shape.n_heads
    yield "attn_norm.weight", (shape.n_embd,), "F32"
    yield "attn_q_a.weight", (shape.n_embd, shape.q_rank), kind
    yield "attn_q_a_norm.weight", (shape.q_rank,), "F32"
    yield "attn_q_b.weight", (shape.q_rank, heads * (shape.head + shape.rope)), kind
    yield "attn_kv_a_mqa.weight", (shape.n_embd, shape.kv_rank + shape.rope), kind
    yield "attn_kv_a_norm.weight", (shape.kv_rank,), "F32"
    # rows of a head are shorter than a block of 256
    small = "Q8_0" if TENSOR_TYPES[kind].block_items > shape.head else kind
    yield "attn_k_b.weight", (shape.head, shape.kv_rank, heads), small
    yield "attn_v_b.weight", (shape.kv_rank, shape.head, heads), kind
    yield "attn_output.weight", (heads * shape.head, shape.n_embd), kind
    yield "ffn_norm.weight", (shape.n_embd,), "F32"


def _grouped_attention(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], str]]:
    kind = shape.matrix_type
    yield "attn_norm.weight", (shape.n_embd,), "F32"
    for name, heads in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
        yield f"attn_{name}.weight", (shape.n_embd, heads * shape.head), kind
    yield "attn_output.weight", (shape.n_heads * shape.head, shape.n_embd), kind
    if shape.architecture in ("qwen3moe", "qwen3"):
        for name in ("q", "k"):
            yield f"attn_{name}_norm.weight", (shape.head,), "F32"
    yield "ffn_norm.weight", (shape.n_embd,), "F32"


def _feed_forward(shape: Shape, layer: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    latent = shape.architecture == "deepseek2"
    if not shape.n_experts or (latent and layer == 0):
        yield from _gated(shape, "ffn_{}.weight", shape.ffn)
        return
    yield "ffn_gate_inp.weight", (shape.n_embd, shape.n_experts), "F32"
    for name in ("gate", "up"):
        yield f"ffn_{name}_exps.weight", (shape.n_embd, shape.expert_ffn, shape.n_experts), shape.expert_type
    yield "ffn_down_exps.weight", (shape.expert_ffn, shape.n_embd, shape.n_experts), shape.expert_type
    if latent:
        yield "exp_probs_b.bias", (shape.n_experts,), "F32"
        yield from _gated(shape, "ffn_{}_shexp.weight", shape.expert_ffn)


def _gated(shape: Shape, name: str, width: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    for part in ("gate", "up"):
        yield name.format(part), (shape.n_embd, width), shape.matrix_type
    yield name.format("down"), (width, shape.n_embd), shape.matrix_type


def _metadata(shape: Shape) -> dict[str, MetadataValue]:
    """The hyperparameters, without the architecture's prefix."""
    found: dict[str, MetadataValue] = {
        "vocab_size": shape.n_vocab,
        "context_length": shape.context,
        "block_count": shape.n_layers,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.ffn,
        "attention.head_count": shape.n_heads,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10000.0,
    }
    if shape.n_experts:
        found |= {
            "expert_count": shape.n_experts,
            "expert_used_count": shape.n_used,
            "expert_feed_forward_length": shape.expert_ffn,
        }
    if shape.architecture != "deepseek2":
        return found | {
            "attention.head_count_kv": shape.n_kv_heads,
            "attention.key_length": shape.head,
            "attention.value_length": shape.head,
            "rope.dimension_count": shape.head,
            **shape.extra,
        }
    return found | {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": shape.q_rank,
        "attention.kv_lora_rank": shape.kv_rank,
        "attention.key_length": shape.kv_rank + shape.rope,
        "attention.value_length": shape.kv_rank,
        "attention.key_length_mla": shape.head + shape.rope,
        "attention.value_length_mla": shape.head,
        "rope.dimension_count": shape.rope,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        **shape.extra,
    }
