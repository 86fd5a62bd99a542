"""Write a random deepseek2 model in Q4_K, of about 2 GB by default, with SmolLM2's vocabulary and chat template.

    python -m bench.serve.random_deepseek FILE.gguf [MOE_LAYERS]

The blocks are random bytes under scales that keep activations in range, so what it says is noise, and what it costs is
what a model of this shape costs: DeepSeek-V2-Lite's attention and 64 experts of which 6 answer, in fewer layers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.runtime import smollm2

N_EMBD, N_HEADS, Q_RANK, KV_RANK = 2048, 16, 512, 512
NOPE, ROPE, V_HEAD = 128, 64, 128
FFN, EXPERT_FFN, N_EXPERTS, N_USED = 8192, 1536, 64, 6
N_VOCAB = 49152
_BLOCK = {"Q4_K": (256, 144), "Q8_0": (32, 34)}  # values, bytes


def tensors(n_moe: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape with the contiguous dimension last, and ggml type."""
    yield "token_embd.weight", (N_VOCAB, N_EMBD), "Q4_K"
    yield "output_norm.weight", (N_EMBD,), "F32"
    yield "output.weight", (N_VOCAB, N_EMBD), "Q4_K"
    for layer in range(n_moe + 1):
        for name, shape, kind in (*_attention(), *_feed_forward(dense=layer == 0)):
            yield f"blk.{layer}.{name}", shape, kind


def _attention() -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield "attn_norm.weight", (N_EMBD,), "F32"
    yield "attn_q_a.weight", (Q_RANK, N_EMBD), "Q4_K"
    yield "attn_q_a_norm.weight", (Q_RANK,), "F32"
    yield "attn_q_b.weight", (N_HEADS * (NOPE + ROPE), Q_RANK), "Q4_K"
    yield "attn_kv_a_mqa.weight", (KV_RANK + ROPE, N_EMBD), "Q4_K"
    yield "attn_kv_a_norm.weight", (KV_RANK,), "F32"
    yield "attn_k_b.weight", (N_HEADS, KV_RANK, NOPE), "Q8_0"
    yield "attn_v_b.weight", (N_HEADS, V_HEAD, KV_RANK), "Q8_0"
    yield "attn_output.weight", (N_EMBD, N_HEADS * V_HEAD), "Q4_K"
    yield "ffn_norm.weight", (N_EMBD,), "F32"


def _feed_forward(*, dense: bool) -> Iterator[tuple[str, tuple[int, ...], str]]:
    if dense:
        yield from _swiglu("ffn_{}.weight", FFN)
        return
    yield "ffn_gate_inp.weight", (N_EXPERTS, N_EMBD), "F32"
    yield "exp_probs_b.bias", (N_EXPERTS,), "F32"
    yield "ffn_gate_exps.weight", (N_EXPERTS, EXPERT_FFN, N_EMBD), "Q4_K"
    yield "ffn_up_exps.weight", (N_EXPERTS, EXPERT_FFN, N_EMBD), "Q4_K"
    yield "ffn_down_exps.weight", (N_EXPERTS, N_EMBD, EXPERT_FFN), "Q4_K"
    yield from _swiglu("ffn_{}_shexp.weight", EXPERT_FFN)


def _swiglu(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield name.format("gate"), (width, N_EMBD), "Q4_K"
    yield name.format("up"), (width, N_EMBD), "Q4_K"
    yield name.format("down"), (N_EMBD, width), "Q4_K"


def metadata(n_moe: int) -> dict[str, int | float | bool]:
    """The hyperparameters, without the architecture's prefix."""
    return {
        "context_length": 32768,
        "block_count": n_moe + 1,
        "embedding_length": N_EMBD,
        "feed_forward_length": FFN,
        "attention.head_count": N_HEADS,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.q_lora_rank": Q_RANK,
        "attention.kv_lora_rank": KV_RANK,
        "attention.key_length": KV_RANK + ROPE,
        "attention.value_length": KV_RANK,
        "attention.key_length_mla": NOPE + ROPE,
        "attention.value_length_mla": V_HEAD,
        "rope.dimension_count": ROPE,
        "rope.freq_base": 10000.0,
        "leading_dense_block_count": 1,
        "expert_count": N_EXPERTS,
        "expert_used_count": N_USED,
        "expert_shared_count": 1,
        "expert_feed_forward_length": EXPERT_FFN,
        "expert_group_count": 8,
        "expert_group_used_count": 4,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "vocab_size": N_VOCAB,
    }


def _data(random: np.random.Generator, name: str, shape: tuple[int, ...], kind: str) -> Any:
    if kind == "F32":
        values = random.standard_normal(shape) * (0.1 if "norm" in name else 0.02)
        return (values + ("norm" in name)).astype(np.float32)
    n_values, n_bytes = _BLOCK[kind]
    blocks = np.frombuffer(random.bytes(math.prod(shape) // n_values * n_bytes), np.uint8).reshape(-1, n_bytes).copy()
    deviation = 1.0 if name == "token_embd.weight" else 1 / math.sqrt(shape[-1])
    if kind == "Q8_0":
        blocks[:, :2] = np.frombuffer(np.float16(deviation / 74).tobytes(), np.uint8)
    else:  # d × scale × (0 … 15) − dmin × min: with dmin = 7.5 d its mean is 0 and its deviation about 250 d
        scales = np.array([deviation / 250, 7.5 * deviation / 250], np.float16)
        blocks[:, :4] = np.frombuffer(scales.tobytes(), np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def write(path: Path, n_moe: int = 5, seed: int = 1) -> Path:
    """Write the model; its path."""
    writer = gguf.GGUFWriter(path, "deepseek2")
    for key, value in metadata(n_moe).items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32 if isinstance(value, int) else None
        (add or writer.add_float32)(f"deepseek2.{key}", value)
    for key, field in gguf.GGUFReader(smollm2.path()).fields.items():
        if key.startswith("tokenizer."):
            writer.add_key_value(
                key, field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None
            )
    listed = list(tensors(n_moe))
    for name, shape, kind in listed:
        n_values, n_bytes = _BLOCK.get(kind, (1, 4))
        row = (*shape[:-1], shape[-1] // n_values * n_bytes) if kind in _BLOCK else shape
        raw = gguf.GGMLQuantizationType[kind] if kind in _BLOCK else None
        size = math.prod(shape) // n_values * n_bytes
        writer.add_tensor_info(name, row, np.dtype(np.uint8 if raw else np.float32), size, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(seed)
    for name, shape, kind in listed:
        writer.write_tensor_data(_data(random, name, shape, kind))
    writer.close()
    return path


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    print(write(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 5))
