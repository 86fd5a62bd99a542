"""The frame of every model here: embedding, layers, norm, output; and who may watch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ktllama.reference.activations import Rounding, product
from ktllama.reference.attention import Cache, LayerCache, Pass, visibility
from ktllama.reference.config import MoeConfig, RopeConfig
from ktllama.reference.parts import RMSNorm, linear
from ktllama.reference.rope import rotation


class Observer(Protocol):
    """Sees what goes on inside a forward pass."""

    def layer(self, index: int, hidden: Tensor) -> None:
        """The output of layer ``index``, (B, T, D): llama.cpp's ``l_out-N``."""

    def routing(self, index: int, experts: Tensor, weights: Tensor) -> None:
        """The experts that layer ``index`` chose, best first, and their weights, both (B·T, k): ``ffn_moe_topk-N``."""


@runtime_checkable
class RouterObserver(Observer, Protocol):
    """An observer that looks at routers, too."""

    def router(self, index: int, x: Tensor, mixture: Mixture) -> None:
        """What the router of layer ``index`` is given, (B·T, D), and where it is; told before its choice."""


class Mixture(Protocol):
    """A mixture of experts, of which an observer sees the router."""

    config: MoeConfig

    def ratings(self, x: Tensor) -> Tensor:
        """As :meth:`ktllama.reference.experts.MixtureOfExperts.ratings`."""


class Unobserved:
    """An observer that looks away."""

    def layer(self, index: int, hidden: Tensor) -> None:
        """Do nothing."""

    def routing(self, index: int, experts: Tensor, weights: Tensor) -> None:
        """Do nothing."""


class Layer(Protocol):
    """One layer of a model: (B, T, D) to the same."""

    def __call__(self, x: Tensor, at: Pass, cache: LayerCache, index: int, observe: Observer) -> Tensor:
        """What the layer adds to and makes of ``x``."""


def prepare(
    rope: RopeConfig,
    tokens: Tensor,
    cache: Cache,
    dtype: torch.dtype,
    *,
    positions: Tensor | None = None,
    segments: Tensor | None = None,
    factors: Tensor | None = None,
) -> Pass:
    """What all layers need for ``tokens`` (B, T): the rotation at their positions, and what they may see.

    Positions go on from the cache where none are given. ``segments`` (B, T) number the texts of packed sequences, and
    need an empty cache.

    Raises:
        ValueError: for segments with a cache that has tokens.
    """
    n_new = tokens.shape[1]
    if segments is not None and cache.n_tokens:
        raise ValueError("segments need an empty cache")
    if positions is None:
        positions = torch.arange(cache.n_tokens, cache.n_tokens + n_new)
    turn = rotation(rope, positions, torch.promote_types(dtype, torch.float32), factors)
    return Pass(turn=turn, visible=visibility(cache.n_tokens, n_new, segments))


def through(x: Tensor, layers: Iterable[Layer], at: Pass, cache: Cache, observe: Observer) -> Tensor:
    """``x`` (B, T, D) through all layers, each shown to ``observe``; the cache then holds the new tokens."""
    for index, (layer, kept) in enumerate(zip(layers, cache.layers, strict=True)):
        x = layer(x, at, kept, index, observe)
        observe.layer(index, x)
    cache.n_tokens += x.shape[1]
    return x


class Embedding(nn.Module):
    """One row of ``weight`` (vocabulary, D) for each token. ``rounding`` is for where it is the output, too."""

    rounding: Rounding | None = None

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, D)."""
        return functional.embedding(tokens, self.weight)


class Stages(Protocol):
    """What a forward pass goes through, whether the weights are in memory or come from a file layer by layer."""

    @property
    def rope(self) -> RopeConfig:
        """How positions turn."""

    @property
    def rope_factors(self) -> Tensor | None:
        """Llama 3's divisors of the frequencies, where the model has them."""

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, D)."""

    def layers(self) -> Sequence[Layer]:
        """The layers in their order."""

    def normed(self, x: Tensor) -> Tensor:
        """The last norm."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) after the last norm to (…, vocabulary)."""


def hidden_states(
    model: Stages,
    tokens: Tensor,
    *,
    positions: Tensor | None = None,
    segments: Tensor | None = None,
    cache: Cache | None = None,
    observe: Observer | None = None,
) -> Tensor:
    """``tokens`` (B, T) through embedding, layers and the last norm: (B, T, D).

    Raises:
        ValueError: for segments with a cache that has tokens.
    """
    layers = model.layers()
    cache = cache or Cache.empty(len(layers))
    x = model.embed(tokens)
    at = prepare(model.rope, tokens, cache, x.dtype, positions=positions, segments=segments, factors=model.rope_factors)
    return model.normed(through(x, layers, at, cache, observe or Unobserved()))


class Decoder(nn.Module):
    """Embedding, layers, norm and output, all in memory. Parameters are named as in GGUF, see ``names``."""

    def __init__(
        self,
        rope: RopeConfig,
        layers: Iterable[nn.Module],
        *,
        vocabulary: int,
        width: int,
        norm_epsilon: float,
        tied_output: bool,
    ) -> None:
        super().__init__()
        self.rope = rope
        self.token_embd = Embedding(vocabulary, width)
        self.blk = nn.ModuleList(layers)
        self.output_norm = RMSNorm(width, norm_epsilon)
        self.output = None if tied_output else linear(width, vocabulary)

    @property
    def rope_factors(self) -> Tensor | None:
        """Llama 3's divisors of the frequencies, where the model has them."""
        return None

    @property
    def n_layers(self) -> int:
        """The layers that a forward pass goes through."""
        return len(self.blk)

    def new_cache(self) -> Cache:
        """A cache for chunked prefill and decode."""
        return Cache.empty(self.n_layers)

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, D)."""
        embedded: Tensor = self.token_embd(tokens)
        return embedded

    def layers(self) -> Sequence[Layer]:
        """The layers in their order."""
        return list(self.blk)[: self.n_layers]

    def normed(self, x: Tensor) -> Tensor:
        """The last norm."""
        normed: Tensor = self.output_norm(x)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) after the last norm to (…, vocabulary)."""
        output = self.token_embd if self.output is None else self.output
        return product(hidden, output.weight, output.rounding)

    def hidden(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: Cache | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Like :meth:`forward`, up to the last norm: (B, T, D)."""
        return hidden_states(self, tokens, positions=positions, segments=segments, cache=cache, observe=observe)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: Cache | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """The logits (B, T, vocabulary) of ``tokens`` (B, T).

        ``positions`` (T,) or (B, T) default to 0, 1, 2 … after the cache's. ``segments`` (B, T) number the texts that
        share a row: a token sees those of its own number only. ``observe`` is shown every layer's output and routing.

        Raises:
            ValueError: for segments with a cache that has tokens.
        """
        return self.logits(self.hidden(tokens, positions=positions, segments=segments, cache=cache, observe=observe))


def initialise(model: nn.Module, seed: int, *, gain: float = 1.0, embedding_std: float = 1.0) -> None:
    """Random weights: matrices normal with deviation gain/√in, embeddings with ``embedding_std``, norms 1, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if name.endswith(".bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1)
            else:
                std = embedding_std if name.startswith("token_embd") else gain / parameter.shape[-1] ** 0.5
                parameter.normal_(0, std, generator=generator)
