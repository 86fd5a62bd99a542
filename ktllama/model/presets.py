"""Known models without a file: their hyperparameters, and from them every tensor's name, shape and size.

Sizes: the ``config.json`` that each model was published with; metadata keys: llama.cpp ``src/llama-arch.cpp``.
Quantization is assumed to be Q4_K_M, which most people download, and said so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ktllama.errors import UnknownPresetError
from ktllama.model import quantization
from ktllama.model.model_file import MetadataValue, ModelFile, Tensor
from ktllama.model.modules import block_of

_Shape: TypeAlias = tuple[int, ...]

QUANTIZATION = "Q4_K_M"


@dataclass(frozen=True, slots=True, kw_only=True)
class MlaModel:
    """Hyperparameters of a deepseek2 model. ``q_lora_rank`` 0 means a plain q_proj; ``yarn`` is (factor, context)."""

    title: str
    n_vocab: int
    n_embd: int
    n_layers: int
    n_dense: int
    n_heads: int
    q_lora_rank: int
    kv_lora_rank: int = 512
    nope_head_dim: int = 128
    rope_head_dim: int = 64
    v_head_dim: int = 128
    ffn: int
    expert_ffn: int
    n_experts: int
    n_experts_used: int
    n_shared_experts: int
    sigmoid: bool
    n_groups: int = 1
    n_groups_used: int = 1
    weights_scale: float = 1.0
    weights_norm: bool = False
    context: int = 163840
    rope_base: float = 10000.0
    yarn: tuple[float, int] | None = None
    yarn_log_multiplier: float = 0.1

    def metadata(self) -> dict[str, MetadataValue]:
        """The GGUF metadata that llama.cpp asks for."""
        values: dict[str, MetadataValue] = {
            "block_count": self.n_layers,
            "context_length": self.context,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": 1,
            "rope.freq_base": self.rope_base,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "expert_used_count": self.n_experts_used,
            "expert_count": self.n_experts,
            "expert_group_count": self.n_groups,
            "expert_group_used_count": self.n_groups_used,
            "leading_dense_block_count": self.n_dense,
            "vocab_size": self.n_vocab,
            "attention.kv_lora_rank": self.kv_lora_rank,
            "attention.key_length": self.kv_lora_rank + self.rope_head_dim,
            "attention.value_length": self.kv_lora_rank,
            "attention.key_length_mla": self.nope_head_dim + self.rope_head_dim,
            "attention.value_length_mla": self.v_head_dim,
            "expert_feed_forward_length": self.expert_ffn,
            "expert_shared_count": self.n_shared_experts,
            "expert_weights_scale": self.weights_scale,
            "expert_weights_norm": self.weights_norm,
            "expert_gating_func": 2 if self.sigmoid else 1,
            "rope.dimension_count": self.rope_head_dim,
        }
        if self.q_lora_rank:
            values["attention.q_lora_rank"] = self.q_lora_rank
        if self.yarn:
            values["rope.scaling.type"] = "yarn"
            values["rope.scaling.factor"] = self.yarn[0]
            values["rope.scaling.original_context_length"] = self.yarn[1]
            values["rope.scaling.yarn_log_multiplier"] = self.yarn_log_multiplier
        return {f"deepseek2.{key}": value for key, value in values.items()}

    def shapes(self) -> Iterator[tuple[str, _Shape]]:
        """Every tensor's name and shape, in file order."""
        yield "token_embd.weight", (self.n_embd, self.n_vocab)
        for layer in range(self.n_layers):
            for stem, shape in (*self._attention(), *self._feed_forward(layer)):
                yield f"blk.{layer}.{stem}", shape
        yield "output_norm.weight", (self.n_embd,)
        yield "output.weight", (self.n_embd, self.n_vocab)

    def _attention(self) -> Iterator[tuple[str, _Shape]]:
        q_width = self.n_heads * (self.nope_head_dim + self.rope_head_dim)
        yield "attn_norm.weight", (self.n_embd,)
        if self.q_lora_rank:
            yield "attn_q_a.weight", (self.n_embd, self.q_lora_rank)
            yield "attn_q_a_norm.weight", (self.q_lora_rank,)
            yield "attn_q_b.weight", (self.q_lora_rank, q_width)
        else:
            yield "attn_q.weight", (self.n_embd, q_width)
        yield "attn_kv_a_mqa.weight", (self.n_embd, self.kv_lora_rank + self.rope_head_dim)
        yield "attn_kv_a_norm.weight", (self.kv_lora_rank,)
        yield "attn_k_b.weight", (self.nope_head_dim, self.kv_lora_rank, self.n_heads)
        yield "attn_v_b.weight", (self.kv_lora_rank, self.v_head_dim, self.n_heads)
        yield "attn_output.weight", (self.n_heads * self.v_head_dim, self.n_embd)

    def _feed_forward(self, layer: int) -> Iterator[tuple[str, _Shape]]:
        yield "ffn_norm.weight", (self.n_embd,)
        if layer < self.n_dense:
            yield from _swiglu("ffn_{}.weight", self.n_embd, self.ffn)
            return
        yield "ffn_gate_inp.weight", (self.n_embd, self.n_experts)
        if self.sigmoid:
            yield "exp_probs_b.bias", (self.n_experts,)
        yield from _swiglu("ffn_{}_exps.weight", self.n_embd, self.expert_ffn, self.n_experts)
        yield from _swiglu("ffn_{}_shexp.weight", self.n_embd, self.expert_ffn * self.n_shared_experts)


def _swiglu(name: str, n_embd: int, width: int, *experts: int) -> Iterator[tuple[str, _Shape]]:
    yield name.format("gate"), (n_embd, width, *experts)
    yield name.format("up"), (n_embd, width, *experts)
    yield name.format("down"), (width, n_embd, *experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseModel:
    """Hyperparameters of a dense llama model."""

    title: str
    n_vocab: int
    n_embd: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn: int
    context: int = 131072
    rope_base: float = 500000.0

    def metadata(self) -> dict[str, MetadataValue]:
        """The GGUF metadata that llama.cpp asks for."""
        values: dict[str, MetadataValue] = {
            "block_count": self.n_layers,
            "context_length": self.context,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads,
            "rope.freq_base": self.rope_base,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "vocab_size": self.n_vocab,
            "rope.dimension_count": self.head_dim,
        }
        return {f"llama.{key}": value for key, value in values.items()}

    def shapes(self) -> Iterator[tuple[str, _Shape]]:
        """Every tensor's name and shape, in file order."""
        q_width, kv_width = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        yield "token_embd.weight", (self.n_embd, self.n_vocab)
        for layer in range(self.n_layers):
            block = f"blk.{layer}."
            yield block + "attn_norm.weight", (self.n_embd,)
            yield block + "attn_q.weight", (self.n_embd, q_width)
            yield block + "attn_k.weight", (self.n_embd, kv_width)
            yield block + "attn_v.weight", (self.n_embd, kv_width)
            yield block + "attn_output.weight", (q_width, self.n_embd)
            yield block + "ffn_norm.weight", (self.n_embd,)
            yield from _swiglu(block + "ffn_{}.weight", self.n_embd, self.ffn)
        yield "output_norm.weight", (self.n_embd,)
        yield "output.weight", (self.n_embd, self.n_vocab)


_V3 = {
    "n_vocab": 129280,
    "n_embd": 7168,
    "n_layers": 61,
    "n_dense": 3,
    "n_heads": 128,
    "q_lora_rank": 1536,
    "ffn": 18432,
    "expert_ffn": 2048,
    "n_experts": 256,
    "n_experts_used": 8,
    "n_shared_experts": 1,
    "n_groups": 8,
    "n_groups_used": 4,
}

#: Preset name → hyperparameters. The first preset that fits a rule file's classes is the default one.
PRESETS: Mapping[str, tuple[str, MlaModel | DenseModel]] = {
    "deepseek-r1": (
        "deepseek2",
        MlaModel(title="DeepSeek R1", sigmoid=True, weights_scale=2.5, weights_norm=True, yarn=(40.0, 4096), **_V3),
    ),
    "deepseek-v3": (
        "deepseek2",
        MlaModel(title="DeepSeek V3", sigmoid=True, weights_scale=2.5, weights_norm=True, yarn=(40.0, 4096), **_V3),
    ),
    "moonlight-16b-a3b": (
        "deepseek2",
        MlaModel(
            title="Moonlight 16B A3B Instruct",
            n_vocab=163840,
            n_embd=2048,
            n_layers=27,
            n_dense=1,
            n_heads=16,
            q_lora_rank=0,
            ffn=11264,
            expert_ffn=1408,
            n_experts=64,
            n_experts_used=6,
            n_shared_experts=2,
            sigmoid=True,
            weights_scale=2.446,
            weights_norm=True,
            context=8192,
            rope_base=50000.0,
        ),
    ),
    "deepseek-v2": (
        "deepseek2",
        MlaModel(
            title="DeepSeek V2 Chat",
            n_vocab=102400,
            n_embd=5120,
            n_layers=60,
            n_dense=1,
            n_heads=128,
            q_lora_rank=1536,
            ffn=12288,
            expert_ffn=1536,
            n_experts=160,
            n_experts_used=6,
            n_shared_experts=2,
            sigmoid=False,
            n_groups=8,
            n_groups_used=3,
            weights_scale=16.0,
            yarn=(40.0, 4096),
            yarn_log_multiplier=0.0707,
        ),
    ),
    "deepseek-v2-lite": (
        "deepseek2",
        MlaModel(
            title="DeepSeek V2 Lite Chat",
            n_vocab=102400,
            n_embd=2048,
            n_layers=27,
            n_dense=1,
            n_heads=16,
            q_lora_rank=0,
            ffn=10944,
            expert_ffn=1408,
            n_experts=64,
            n_experts_used=6,
            n_shared_experts=2,
            sigmoid=False,
            yarn=(40.0, 4096),
            yarn_log_multiplier=0.0707,
        ),
    ),
    "r1-distill-llama-70b": (
        "llama",
        DenseModel(
            title="DeepSeek R1 Distill Llama 70B",
            n_vocab=128256,
            n_embd=8192,
            n_layers=80,
            n_heads=64,
            n_kv_heads=8,
            head_dim=128,
            ffn=28672,
        ),
    ),
    "r1-distill-llama-8b": (
        "llama",
        DenseModel(
            title="DeepSeek R1 Distill Llama 8B",
            n_vocab=128256,
            n_embd=4096,
            n_layers=32,
            n_heads=32,
            n_kv_heads=8,
            head_dim=128,
            ffn=14336,
        ),
    ),
}


def load(name: str) -> ModelFile:
    """The model called ``name``, as if its Q4_K_M file had been read.

    Raises:
        UnknownPresetError: if there is no such preset.
    """
    if name not in PRESETS:
        raise UnknownPresetError(f"no preset is called '{name}'; known presets: {', '.join(PRESETS)}")
    architecture, sizes = PRESETS[name]
    metadata: dict[str, MetadataValue] = {
        "general.architecture": architecture,
        "general.name": sizes.title,
        "general.quantization_version": 2,
        **sizes.metadata(),
    }
    return ModelFile(
        name=f"{sizes.title} {QUANTIZATION}",
        architecture=architecture,
        metadata=metadata,
        tensors=tuple(_tensors(sizes)),
    )


def _tensors(sizes: MlaModel | DenseModel) -> Iterator[Tensor]:
    offset, alignment = 0, 32
    for name, shape in sizes.shapes():
        type_name = quantization.q4_k_m(name, shape, block_of(name), sizes.n_layers)
        n_bytes = quantization.n_bytes(shape, type_name)
        yield Tensor(name=name, shape=shape, type=type_name, n_bytes=n_bytes, offset=offset)
        offset += -(-n_bytes // alignment) * alignment
