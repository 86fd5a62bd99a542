"""Small random models that llama.cpp loads: deepseek2 in its variants, and llama.

The weights are random but seeded, and the vocabulary is the 256 bytes, so that text can be tokenized and every run of
one model gives the same tokens. Tensor names and metadata keys: llama.cpp ``src/models/deepseek2.cpp``,
``src/models/llama.cpp`` and ``src/llama-arch.cpp``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

EOS = 256
N_VOCAB = 260


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyDeepSeek:
    """A deepseek2 model of V3's kind. ``n_layers`` leaves out the MTP block.

    ``legacy`` keeps ``attn_kv_b`` whole and no MLA keys, as early files did; ``fused`` joins the experts' gate and up.
    ``expert_type`` is the ggml type of the experts. ``n_files`` splits the model.
    """

    n_layers: int = 4
    n_dense: int = 1
    n_embd: int = 64
    n_heads: int = 4
    q_lora_rank: int = 32
    kv_lora_rank: int = 32
    nope: int = 16
    rope: int = 16
    v_head: int = 16
    ffn: int = 128
    expert_ffn: int = 32
    n_experts: int = 8
    n_experts_used: int = 2
    n_groups: int = 4
    n_groups_used: int = 2
    expert_type: str = "Q8_0"
    mtp: bool = False
    fused: bool = False
    tied: bool = False
    legacy: bool = False
    n_files: int = 1
    seed: int = 1

    def write(self, path: Path) -> Path:
        """Write the model; the path of its (first) file."""
        writer = _writer(path, "deepseek2", self.n_files, sum(1 for _ in self.tensors()))
        for key, value in self.metadata().items():
            _add(writer, f"deepseek2.{key}", value)
        return _finish(writer, path, self.tensors(), self.seed, self.n_files)

    def metadata(self) -> dict[str, int | float | bool]:
        """The hyperparameters."""
        mla = {"attention.key_length_mla": self.nope + self.rope, "attention.value_length_mla": self.v_head}
        key_length = self.nope + self.rope if self.legacy else self.kv_lora_rank + self.rope
        return {
            "context_length": 1024,
            "block_count": self.n_layers + self.mtp,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_heads if self.legacy else 1,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "attention.q_lora_rank": self.q_lora_rank,
            "attention.kv_lora_rank": self.kv_lora_rank,
            "attention.key_length": key_length,
            "attention.value_length": self.v_head if self.legacy else self.kv_lora_rank,
            "rope.dimension_count": self.rope,
            "rope.freq_base": 10000.0,
            "leading_dense_block_count": self.n_dense,
            "expert_count": self.n_experts,
            "expert_used_count": self.n_experts_used,
            "expert_shared_count": 1,
            "expert_feed_forward_length": self.expert_ffn,
            "expert_group_count": self.n_groups,
            "expert_group_used_count": self.n_groups_used,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
            "vocab_size": N_VOCAB,
            **({} if self.legacy else mla),
            **({"nextn_predict_layers": 1} if self.mtp else {}),
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Name, shape with the contiguous dimension last, and ggml type of every tensor."""
        yield "token_embd.weight", (N_VOCAB, self.n_embd), "F16"
        yield "output_norm.weight", (self.n_embd,), "F32"
        if not self.tied:
            yield "output.weight", (N_VOCAB, self.n_embd), "F16"
        for layer in range(self.n_layers + self.mtp):
            for name, shape, type_name in (*self._attention(), *self._feed_forward(layer)):
                yield f"blk.{layer}.{name}", shape, type_name
        if self.mtp:
            yield f"blk.{self.n_layers}.nextn.eh_proj.weight", (self.n_embd, 2 * self.n_embd), "F16"
            yield f"blk.{self.n_layers}.nextn.enorm.weight", (self.n_embd,), "F32"
            yield f"blk.{self.n_layers}.nextn.hnorm.weight", (self.n_embd,), "F32"

    def _attention(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        d, heads, rank = self.n_embd, self.n_heads, self.kv_lora_rank
        yield "attn_norm.weight", (d,), "F32"
        yield "attn_q_a.weight", (self.q_lora_rank, d), "F16"
        yield "attn_q_a_norm.weight", (self.q_lora_rank,), "F32"
        yield "attn_q_b.weight", (heads * (self.nope + self.rope), self.q_lora_rank), "F16"
        yield "attn_kv_a_mqa.weight", (rank + self.rope, d), "F16"
        yield "attn_kv_a_norm.weight", (rank,), "F32"
        if self.legacy:
            yield "attn_kv_b.weight", (heads * (self.nope + self.v_head), rank), "F16"
        else:
            yield "attn_k_b.weight", (heads, rank, self.nope), "F16"
            yield "attn_v_b.weight", (heads, self.v_head, rank), "F16"
        yield "attn_output.weight", (d, heads * self.v_head), "F16"
        yield "ffn_norm.weight", (d,), "F32"

    def _feed_forward(self, layer: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
        d, width, n = self.n_embd, self.expert_ffn, self.n_experts
        if layer < self.n_dense:
            yield from _swiglu("ffn_{}.weight", d, self.ffn)
            return
        yield "ffn_gate_inp.weight", (n, d), "F32"
        yield "exp_probs_b.bias", (n,), "F32"
        yield "ffn_down_exps.weight", (n, d, width), self.expert_type
        if self.fused:
            yield "ffn_gate_up_exps.weight", (n, 2 * width, d), self.expert_type
        else:
            yield "ffn_gate_exps.weight", (n, width, d), self.expert_type
            yield "ffn_up_exps.weight", (n, width, d), self.expert_type
        yield from _swiglu("ffn_{}_shexp.weight", d, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyLlama:
    """A llama model. ``head_count_array`` gives the KV heads layer by layer, ``rope_freqs`` adds Llama 3's factors."""

    n_layers: int = 3
    n_kv_heads: int = 2
    head_count_array: bool = False
    n_embd: int = 64
    n_heads: int = 4
    ffn: int = 96
    rope_freqs: bool = False
    tied: bool = True
    seed: int = 2

    def write(self, path: Path) -> Path:
        """Write the model; its path."""
        writer = _writer(path, "llama", 1, 0)
        for key, value in self.metadata().items():
            _add(writer, f"llama.{key}", value)
        return _finish(writer, path, self.tensors(), self.seed, 1)

    def metadata(self) -> dict[str, int | float | bool | list[int]]:
        """The hyperparameters."""
        return {
            "context_length": 1024,
            "block_count": self.n_layers,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": [self.n_kv_heads] * self.n_layers if self.head_count_array else self.n_kv_heads,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": self.n_embd // self.n_heads,
            "vocab_size": N_VOCAB,
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Name, shape with the contiguous dimension last, and ggml type of every tensor."""
        d, head, n_kv = self.n_embd, self.n_embd // self.n_heads, self.n_kv_heads
        yield "token_embd.weight", (N_VOCAB, d), "F16"
        yield "output_norm.weight", (d,), "F32"
        if not self.tied:
            yield "output.weight", (N_VOCAB, d), "F16"
        if self.rope_freqs:
            yield "rope_freqs.weight", (head // 2,), "F32"
        for layer in range(self.n_layers):
            block = f"blk.{layer}."
            yield block + "attn_norm.weight", (d,), "F32"
            yield block + "attn_q.weight", (d, d), "F16"
            yield block + "attn_k.weight", (n_kv * head, d), "F16"
            yield block + "attn_v.weight", (n_kv * head, d), "F16"
            yield block + "attn_output.weight", (d, d), "F16"
            yield block + "ffn_norm.weight", (d,), "F32"
            yield from _swiglu(block + "ffn_{}.weight", d, self.ffn)


def cut_after_header(path: Path, target: Path) -> Path:
    """A copy of the model at ``path`` without its tensor data."""
    reader = gguf.GGUFReader(path)
    target.write_bytes(path.read_bytes()[: int(reader.data_offset)])
    return target


def _swiglu(name: str, n_embd: int, width: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield name.format("gate"), (width, n_embd), "F16"
    yield name.format("up"), (width, n_embd), "F16"
    yield name.format("down"), (n_embd, width), "F16"


def _writer(path: Path, architecture: str, n_files: int, n_tensors: int) -> Any:
    per_file = math.ceil(n_tensors / n_files) if n_files > 1 else 0
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=per_file)
    _add_vocabulary(writer)
    return writer


def _add(writer: Any, key: str, value: float | bool | list[int]) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)


def _add_vocabulary(writer: Any) -> None:
    """The 256 bytes as GPT-2 writes them, and four special tokens."""
    specials = ["<eos>", "<bos>", "<user>", "<assistant>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*_byte_characters(), *specials])
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * 256 + [int(gguf.TokenType.CONTROL)] * len(specials))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(EOS)
    writer.add_bos_token_id(EOS + 1)
    writer.add_add_bos_token(True)


def _byte_characters() -> list[str]:
    """GPT-2's visible character for every byte (``bytes_to_unicode`` of its encoder)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(256 + hidden.index(byte)) for byte in range(256)]


def _finish(
    writer: Any, path: Path, tensors: Iterator[tuple[str, tuple[int, ...], str]], seed: int, n_files: int
) -> Path:
    random = np.random.default_rng(seed)
    for name, shape, type_name in tensors:
        values = _values(random, name, shape)
        kind = gguf.GGMLQuantizationType[type_name]
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if n_files == 1:
        return path
    return path.with_name(f"{path.stem}-00001-of-{n_files:05d}.gguf")


def _values(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> Any:
    if "norm" in name:
        return (1 + 0.1 * random.standard_normal(shape)).astype(np.float32)
    if name == "rope_freqs.weight":
        return np.linspace(1, 4, shape[0], dtype=np.float32)
    scale = 1.0 if "token_embd" in name else 2 / math.sqrt(shape[-1])
    return (scale * random.standard_normal(shape)).astype(np.float32)
