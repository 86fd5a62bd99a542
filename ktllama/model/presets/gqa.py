"""Models with grouped-query attention: most that are neither DeepSeek's nor recurrent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ktllama.model.model_file import MetadataValue
from ktllama.model.presets.sizes import Shape, mtp, swiglu


@dataclass(frozen=True, slots=True, kw_only=True)
class GqaModel:
    """Hyperparameters. Without ``n_experts`` the model is dense.

    ``n_dense`` layers of ``ffn`` come before the layers of experts. ``shared_ffn`` is the width of all shared experts
    together. ``head_norms`` are per head or as wide as the projection. ``second_norm`` is what llama.cpp calls the
    norm behind the attention. ``biases`` are stems of matrices that have one; ``more`` is metadata that only this
    architecture asks for. ``n_layers`` does not count the ``n_mtp`` blocks behind them.
    """

    title: str
    n_vocab: int
    n_embd: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn: int
    context: int
    rope_base: float
    rope_dim: int = 0
    rms_epsilon: float = 1e-6
    n_dense: int = 0
    n_experts: int = 0
    n_experts_used: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    head_norms: Literal["none", "head", "all"] = "none"
    second_norm: str = "ffn_norm"
    sinks: bool = False
    biases: frozenset[str] = frozenset()
    tied: bool = False
    n_mtp: int = 0
    yarn: tuple[float, int] | None = None
    more: Mapping[str, MetadataValue] = field(default_factory=dict)
    quantization: str = "Q4_K_M"

    def metadata(self) -> dict[str, MetadataValue]:
        """The GGUF metadata that llama.cpp asks for."""
        values: dict[str, MetadataValue] = {
            "block_count": self.n_layers + self.n_mtp,
            "context_length": self.context,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads,
            "rope.freq_base": self.rope_base,
            "attention.layer_norm_rms_epsilon": self.rms_epsilon,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "vocab_size": self.n_vocab,
            "rope.dimension_count": self.rope_dim or self.head_dim,
        }
        if self.n_experts:
            values["expert_count"] = self.n_experts
            values["expert_used_count"] = self.n_experts_used
            values["expert_feed_forward_length"] = self.expert_ffn
        if self.n_dense:
            values["leading_dense_block_count"] = self.n_dense
        if self.n_mtp:
            values["nextn_predict_layers"] = self.n_mtp
        if self.yarn:
            values["rope.scaling.type"] = "yarn"
            values["rope.scaling.factor"] = self.yarn[0]
            values["rope.scaling.original_context_length"] = self.yarn[1]
        return {**values, **self.more}

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Every tensor's name and shape, in file order."""
        yield "token_embd.weight", (self.n_embd, self.n_vocab)
        for layer in range(self.n_layers + self.n_mtp):
            for stem, shape in self.block(layer):
                yield f"blk.{layer}.{stem}", shape
        yield "output_norm.weight", (self.n_embd,)
        if not self.tied:
            yield "output.weight", (self.n_embd, self.n_vocab)

    def block(self, layer: int) -> Iterator[tuple[str, Shape]]:
        """The tensors of one block, without ``blk.N.``."""
        yield "attn_norm.weight", (self.n_embd,)
        yield from self.mixer(layer)
        yield f"{self.second_norm}.weight", (self.n_embd,)
        yield from self._dense() if layer < self.n_dense or not self.n_experts else self._experts()
        if layer >= self.n_layers:
            yield from mtp(self.n_embd, self.n_vocab)

    def mixer(self, _layer: int) -> Iterator[tuple[str, Shape]]:
        """The attention of one block."""
        q_width, kv_width = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        yield from self._matrix("attn_q", (self.n_embd, q_width))
        yield from self._matrix("attn_k", (self.n_embd, kv_width))
        yield from self._matrix("attn_v", (self.n_embd, kv_width))
        yield from self._matrix("attn_output", (q_width, self.n_embd))
        if self.head_norms != "none":
            yield "attn_q_norm.weight", (self.head_dim if self.head_norms == "head" else q_width,)
            yield "attn_k_norm.weight", (self.head_dim if self.head_norms == "head" else kv_width,)
        if self.sinks:
            yield "attn_sinks.weight", (self.n_heads,)

    def _dense(self) -> Iterator[tuple[str, Shape]]:
        yield from swiglu("ffn_{}.weight", self.n_embd, self.ffn)

    def _experts(self) -> Iterator[tuple[str, Shape]]:
        yield from self._matrix("ffn_gate_inp", (self.n_embd, self.n_experts))
        if self.router_bias:
            yield "exp_probs_b.bias", (self.n_experts,)
        for name, shape in swiglu("ffn_{}_exps", self.n_embd, self.expert_ffn, self.n_experts):
            yield from self._matrix(name, shape)
        if self.shared_gate:
            yield "ffn_gate_inp_shexp.weight", (self.n_embd,)
        if self.shared_ffn:
            yield from swiglu("ffn_{}_shexp.weight", self.n_embd, self.shared_ffn)

    def _matrix(self, stem: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
        yield f"{stem}.weight", shape
        if stem in self.biases:
            yield f"{stem}.bias", shape[1:]


#: The biases of Qwen2 and GLM-4.5.
QKV_BIASES = frozenset({"attn_q", "attn_k", "attn_v"})
