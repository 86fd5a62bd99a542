"""DeepSeek-V2, V3 and R1 in plain PyTorch: to be read, to be trained, and to check llama.cpp against.

Source: arXiv 2405.04434 and 2412.19437, and ``src/models/deepseek2.cpp`` of the llama.cpp in llama-cpp-python 0.3.36,
whose layout of weights this has. Parameters are named as the tensors of a GGUF file, see ``names``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ktllama.reference.activations import Rounding, product
from ktllama.reference.attention import Cache, LayerCache, Pass
from ktllama.reference.config import DeepSeekConfig
from ktllama.reference.decoder import Decoder, Embedding, Observer, RouterObserver, Unobserved, initialise, prepare
from ktllama.reference.experts import MixtureOfExperts
from ktllama.reference.parts import FeedForward, Matrix, RMSNorm, Stack, linear
from ktllama.reference.rope import rotate

__all__ = ["DeepSeek", "initialise"]


class LatentAttention(nn.Module):
    """Multi-head latent attention: keys and values of all heads come from one short vector a token.

    Besides that latent, all heads share one key with position; the cache keeps these two alone. Either keys and values
    are made of the latent (``decompressed``), or the latent is attended to itself, by queries that went through the
    keys' matrix. Both are the same but for rounding; the first is less work, the second is what llama.cpp does.
    """

    def __init__(self, config: DeepSeekConfig) -> None:
        super().__init__()
        self.config = config
        width, rank, heads = config.width, config.kv_lora_rank, config.n_heads
        head = config.nope + config.rope.n_dims
        if config.q_lora_rank is None:
            self.q = linear(width, heads * head)
        else:
            self.q_a = linear(width, config.q_lora_rank)
            self.q_a_norm = RMSNorm(config.q_lora_rank, config.norm_epsilon)
            self.q_b = linear(config.q_lora_rank, heads * head)
        self.kv_a_mqa = linear(width, rank + config.rope.n_dims)
        self.kv_a_norm = RMSNorm(rank, config.norm_epsilon)
        self.k_b = Stack(heads, rank, config.nope)
        self.v_b = Stack(heads, config.v_head, rank)
        self.output = linear(heads * config.v_head, width)
        self.decompressed = True

    def forward(self, x: Tensor, at: Pass, cache: LayerCache) -> Tensor:
        """(B, T, D) to the same."""
        nope, rope, rank = self.config.nope, self.config.rope.n_dims, self.config.kv_lora_rank
        q_nope, q_rope = torch.split(self.queries(x), [nope, rope], -1)  # (B, T, H, nope), (B, T, H, rope)
        latent, k_rope = torch.split(self.kv_a_mqa(x), [rank, rope], -1)  # (B, T, rank), (B, T, rope)
        q_rope = rotate(q_rope, at.turn, "neighbours")
        k_rope = rotate(k_rope[:, :, None], at.turn, "neighbours")  # one head for all
        latent, k_rope = cache.extend(self.kv_a_norm(latent), k_rope)  # from here S tokens, those of the cache too

        attended = self._to_heads if self.decompressed else self._to_latent
        made = attended(q_nope.transpose(1, 2), q_rope.transpose(1, 2), latent, k_rope.transpose(1, 2), at)
        mixed: Tensor = self.output(made.transpose(1, 2).flatten(2))
        return mixed

    def _to_heads(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, at: Pass) -> Tensor:
        """Queries (B, H, T, nope) and (B, H, T, rope) with what (B, S, rank) and (B, 1, S, rope) hold: (B, H, T, v)."""
        k_nope = _by_head(latent, self.k_b.weight.mT, self.k_b.rounding)  # (B, H, S, nope)
        v = _by_head(latent, self.v_b.weight, self.v_b.rounding)  # (B, H, S, v)
        k = torch.cat((k_nope, k_rope.expand(-1, self.config.n_heads, -1, -1)), -1)
        return at.attend(torch.cat((q_nope, q_rope), -1), k, v, self.config.score_scale)

    def _to_latent(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, at: Pass) -> Tensor:
        """The same, with the latent as the one key and value of all heads."""
        q_latent = product(q_nope, self.k_b.weight, self.k_b.rounding)  # (B, H, T, rank)
        latent = latent[:, None]
        q, k = torch.cat((q_latent, q_rope), -1), torch.cat((latent, k_rope), -1)
        made = at.attend(q, k, latent, self.config.score_scale)  # (B, H, T, rank)
        return product(made, self.v_b.weight, self.v_b.rounding)

    def queries(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, H, nope + rope), through the short vector where there is one."""
        q = self.q(x) if self.config.q_lora_rank is None else self.q_b(self.q_a_norm(self.q_a(x)))
        heads: Tensor = q.unflatten(-1, (self.config.n_heads, -1))
        return heads


def _by_head(latent: Tensor, weight: Tensor, rounding: Rounding | None) -> Tensor:
    """(B, S, rank) by (H, out, rank): (B, H, S, out), as one product."""
    made = product(latent, weight.flatten(0, 1), rounding and rounding.joined())
    return made.view(*latent.shape[:2], len(weight), -1).transpose(1, 2)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + ffn(norm(x)), where the ffn is dense or a mixture of experts."""

    def __init__(self, config: DeepSeekConfig, *, dense: bool) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attn = LatentAttention(config)
        self.ffn_norm = RMSNorm(config.width, config.norm_epsilon)
        self.ffn = FeedForward(config.width, config.ffn) if dense else MixtureOfExperts(config.width, config.moe)

    def forward(self, x: Tensor, at: Pass, cache: LayerCache, index: int, observe: Observer) -> Tensor:
        """(B, T, D) to the same; ``index`` is what the observer is told."""
        x = x + self.attn(self.attn_norm(x), at, cache)
        normed = self.ffn_norm(x)
        if isinstance(self.ffn, FeedForward):
            fed: Tensor = x + self.ffn(normed)
            return fed
        if isinstance(observe, RouterObserver):
            observe.router(index, normed.flatten(0, 1), self.ffn)
        made, experts, weights = self.ffn(normed.flatten(0, 1))
        observe.routing(index, experts, weights)
        mixed: Tensor = x + made.view_as(x)
        return mixed


class NextTokenParts(nn.Module):
    """What a multi-token-prediction block has besides a layer; the last three only where they are its own."""

    def __init__(self, config: DeepSeekConfig) -> None:
        super().__init__()
        self.eh_proj = linear(2 * config.width, config.width)
        self.enorm = RMSNorm(config.width, config.norm_epsilon)
        self.hnorm = RMSNorm(config.width, config.norm_epsilon)
        self.embed_tokens: Embedding | None = None
        self.shared_head_norm: RMSNorm | None = None
        self.shared_head_head: Matrix | None = None


def add_own_parts(parts: NextTokenParts, config: DeepSeekConfig, tensors: set[str]) -> None:
    """Give an MTP block those optional parts that are among the GGUF ``tensors``."""
    endings = {name.rsplit(".nextn.")[-1] for name in tensors}
    if "embed_tokens.weight" in endings:
        parts.embed_tokens = Embedding(config.vocabulary, config.width)
    if "shared_head_norm.weight" in endings:
        parts.shared_head_norm = RMSNorm(config.width, config.norm_epsilon)
    if "shared_head_head.weight" in endings:
        parts.shared_head_head = linear(config.width, config.vocabulary)


class NextTokenBlock(Block):
    """V3's multi-token prediction: one more layer that guesses the token after the next."""

    def __init__(self, config: DeepSeekConfig) -> None:
        super().__init__(config, dense=False)
        self.nextn = NextTokenParts(config)

    def join(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """What the layer begins with, from the next tokens' embeddings and the normed hidden states (B, T, D)."""
        both = torch.cat((self.nextn.enorm(embedded), self.nextn.hnorm(hidden)), -1)
        joined: Tensor = self.nextn.eh_proj(both)
        return joined


class DeepSeek(Decoder):
    """The whole model. Weights are uninitialised: load them, or call ``initialise``."""

    def __init__(self, config: DeepSeekConfig) -> None:
        layers: list[nn.Module] = [Block(config, dense=index < config.n_dense) for index in range(config.n_layers)]
        layers += [NextTokenBlock(config) for _ in range(config.n_mtp)]
        super().__init__(
            config.rope,
            layers,
            vocabulary=config.vocabulary,
            width=config.width,
            norm_epsilon=config.norm_epsilon,
            tied_output=config.tied_output,
        )
        self.config = config

    @property
    def n_layers(self) -> int:
        """The layers that a forward pass goes through; the MTP block comes after them."""
        return self.config.n_layers

    def next_but_one(
        self,
        hidden: Tensor,
        next_tokens: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """The MTP block's logits (B, T, vocabulary) for the tokens after ``next_tokens`` (B, T).

        ``hidden`` (B, T, D) is what :meth:`hidden` gave for the tokens before ``next_tokens``, as
        ``llama_model_deepseek2::graph_mtp`` has it.
        """
        block = self.blk[self.n_layers]
        assert isinstance(block, NextTokenBlock)
        own = block.nextn
        embedded = (own.embed_tokens or self.token_embd)(next_tokens)
        at = prepare(self.rope, next_tokens, Cache.empty(0), hidden.dtype, positions=positions, segments=segments)
        x = block.join(embedded, hidden)
        x = block(x, at, LayerCache(), self.n_layers, observe or Unobserved())
        x = (own.shared_head_norm or self.output_norm)(x)
        return self.logits(x) if own.shared_head_head is None else own.shared_head_head(x)
