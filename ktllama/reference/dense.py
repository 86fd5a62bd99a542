"""Llama and Qwen2, which the distills of R1 are, in plain PyTorch.

Source: ``src/models/llama.cpp`` and ``src/models/qwen2.cpp`` of the llama.cpp in llama-cpp-python 0.3.36. Conversion
permutes Llama's queries and keys so that neighbours turn together; Qwen2's turn as in its paper, by halves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ktllama.reference.attention import LayerCache, Pass
from ktllama.reference.config import DenseConfig
from ktllama.reference.decoder import Decoder, Observer
from ktllama.reference.parts import FeedForward, RMSNorm, linear
from ktllama.reference.rope import rotate


class GroupedAttention(nn.Module):
    """Grouped-query attention: several query heads share one head of keys and values."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.config = config
        width, head = config.width, config.head
        self.q = linear(width, config.n_heads * head, bias=config.qkv_bias)
        self.k = linear(width, config.n_kv_heads * head, bias=config.qkv_bias)
        self.v = linear(width, config.n_kv_heads * head, bias=config.qkv_bias)
        self.output = linear(config.n_heads * head, width, bias=config.output_bias)

    def forward(self, x: Tensor, at: Pass, cache: LayerCache) -> Tensor:
        """(B, T, D) to the same."""
        config = self.config
        q, k, v = (project(x).unflatten(-1, (-1, config.head)) for project in (self.q, self.k, self.v))
        q, k = rotate(q, at.turn, config.pairing), rotate(k, at.turn, config.pairing)
        k, v = cache.extend(k, v)  # (B, S, KV heads, head)

        shared = config.n_heads // config.n_kv_heads
        k, v = (part.transpose(1, 2).repeat_interleave(shared, 1) for part in (k, v))  # (B, H, S, head)
        made = at.attend(q.transpose(1, 2), k, v, config.score_scale)
        mixed: Tensor = self.output(made.transpose(1, 2).flatten(2))
        return mixed


class DenseBlock(nn.Module):
    """One layer: x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attn = GroupedAttention(config)
        self.ffn_norm = RMSNorm(config.width, config.norm_epsilon)
        self.ffn = FeedForward(config.width, config.ffn)

    def forward(self, x: Tensor, at: Pass, cache: LayerCache, index: int, observe: Observer) -> Tensor:  # noqa: ARG002
        """(B, T, D) to the same."""
        x = x + self.attn(self.attn_norm(x), at, cache)
        fed: Tensor = x + self.ffn(self.ffn_norm(x))
        return fed


class RopeFactors(nn.Module):
    """Llama 3's divisors of the rotation's frequencies: ``weight`` (head/2,)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n), requires_grad=False)


class Dense(Decoder):
    """The whole model. Weights are uninitialised: load them, or call ``initialise``."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__(
            config.rope,
            [DenseBlock(config) for _ in range(config.n_layers)],
            vocabulary=config.vocabulary,
            width=config.width,
            norm_epsilon=config.norm_epsilon,
            tied_output=config.tied_output,
        )
        self.config = config
        self.rope_freqs = RopeFactors(config.rope.n_dims // 2) if config.rope_factors else None

    @property
    def rope_factors(self) -> Tensor | None:
        """Llama 3's divisors of the frequencies, where the model has them."""
        return None if self.rope_freqs is None else self.rope_freqs.weight
