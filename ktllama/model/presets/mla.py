"""Models with multi-head latent attention: GGUF architecture ``deepseek2``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ktllama.model.model_file import MetadataValue
from ktllama.model.presets.sizes import Shape, swiglu


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
    rms_epsilon: float = 1e-6
    quantization: str = "Q4_K_M"

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
            "attention.layer_norm_rms_epsilon": self.rms_epsilon,
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
        return values

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Every tensor's name and shape, in file order."""
        yield "token_embd.weight", (self.n_embd, self.n_vocab)
        for layer in range(self.n_layers):
            for stem, shape in (*self._attention(), *self._feed_forward(layer)):
                yield f"blk.{layer}.{stem}", shape
        yield "output_norm.weight", (self.n_embd,)
        yield "output.weight", (self.n_embd, self.n_vocab)

    def _attention(self) -> Iterator[tuple[str, Shape]]:
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

    def _feed_forward(self, layer: int) -> Iterator[tuple[str, Shape]]:
        yield "ffn_norm.weight", (self.n_embd,)
        if layer < self.n_dense:
            yield from swiglu("ffn_{}.weight", self.n_embd, self.ffn)
            return
        yield "ffn_gate_inp.weight", (self.n_embd, self.n_experts)
        if self.sigmoid:
            yield "exp_probs_b.bias", (self.n_experts,)
        yield from swiglu("ffn_{}_exps.weight", self.n_embd, self.expert_ffn, self.n_experts)
        yield from swiglu("ffn_{}_shexp.weight", self.n_embd, self.expert_ffn * self.n_shared_experts)
