"""Models whose layers are gated delta nets but for every fourth: GGUF architecture ``qwen3next``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ktllama.model.model_file import MetadataValue
from ktllama.model.presets.gqa import GqaModel
from ktllama.model.presets.sizes import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaNetModel(GqaModel):
    """Hyperparameters; the names of the new ones are those of ``config.json`` with ``linear_`` in front.

    Every ``full_attention_interval``-th layer attends, and its q projection carries a gate as wide as q.
    """

    conv_kernel: int = 4
    key_head_dim: int = 128
    value_head_dim: int = 128
    n_key_heads: int = 16
    n_value_heads: int = 32
    full_attention_interval: int = 4

    def metadata(self) -> dict[str, MetadataValue]:
        """The GGUF metadata that llama.cpp asks for."""
        return {
            **GqaModel.metadata(self),
            "expert_shared_feed_forward_length": self.shared_ffn,
            "ssm.conv_kernel": self.conv_kernel,
            "ssm.state_size": self.key_head_dim,
            "ssm.group_count": self.n_key_heads,
            "ssm.time_step_rank": self.n_value_heads,
            "ssm.inner_size": self.value_head_dim * self.n_value_heads,
            "full_attention_interval": self.full_attention_interval,
        }

    def mixer(self, layer: int) -> Iterator[tuple[str, Shape]]:
        """Attention, or the delta net that stands in for it."""
        if (layer + 1) % self.full_attention_interval:
            yield from self._delta_net()
            return
        for name, shape in GqaModel.mixer(self, layer):
            yield name, (shape[0], 2 * shape[1]) if name == "attn_q.weight" else shape

    def _delta_net(self) -> Iterator[tuple[str, Shape]]:
        keys, values = self.n_key_heads * self.key_head_dim, self.n_value_heads * self.value_head_dim
        yield "attn_qkv.weight", (self.n_embd, 2 * keys + values)
        yield "attn_gate.weight", (self.n_embd, values)
        yield "ssm_conv1d.weight", (self.conv_kernel, 2 * keys + values)
        yield "ssm_dt.bias", (self.n_value_heads,)
        yield "ssm_a", (self.n_value_heads,)
        yield "ssm_ba.weight", (self.n_embd, 2 * self.n_value_heads)
        yield "ssm_norm.weight", (self.value_head_dim,)
        yield "ssm_out.weight", (values, self.n_embd)
