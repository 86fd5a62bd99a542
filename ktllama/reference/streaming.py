"""A model whose weights stay in the file: one layer is read, used on all tokens and dropped, an expert at a time.

So a model far larger than memory can be computed, slowly. :func:`in_memory` reads everything once,
for decoding token by token and for training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ktllama.model.model_file import ModelFile
from ktllama.model.modules import block_of
from ktllama.reference.activations import Activations, product
from ktllama.reference.attention import LayerCache, Pass
from ktllama.reference.config import Config, DeepSeekConfig, DenseConfig, RopeConfig
from ktllama.reference.decoder import Embedding, Layer, Observer
from ktllama.reference.deepseek import Block, DeepSeek, LatentAttention, NextTokenBlock, add_own_parts
from ktllama.reference.dense import Dense, DenseBlock
from ktllama.reference.experts import Expert, MixtureOfExperts
from ktllama.reference.layout import blocks_of, parts_of
from ktllama.reference.names import computed_in_float32
from ktllama.reference.parts import Matrix, Product, RMSNorm, Stack
from ktllama.reference.weights import Part, Weights

#: Rows of the output matrix that are read at once.
_OUTPUT_ROWS = 4096

_STACKS = ("gate_exps", "up_exps", "down_exps")


class StreamedModel:
    """A model's stages, read from its file as they come."""

    def __init__(
        self, model: ModelFile, config: Config, dtype: torch.dtype, *, activations: Activations = "exact"
    ) -> None:
        module = skeleton(model, config, mtp=False)
        self.config = config
        self._weights = Weights(model, dtype, activations)
        self._parts = parts_of(model, module, config)
        self._layers = [
            StreamedLayer(config, index, self._weights, dict(blocks_of(self._parts, index)))
            for index in range(config.n_layers)
        ]

    def rounding_as(self, activations: Sequence[Activations]) -> StreamedModel:
        """The same model with other activations: one for each layer, and last that of the output."""
        other = copy.copy(self)
        other._layers = [layer.rounding_as(one) for layer, one in zip(self._layers, activations[:-1], strict=True)]
        other._weights = self._weights.rounding_as(activations[-1])
        return other

    def check(self, layer: int | None) -> None:
        """Whether all tensors of a layer hold numbers, those of unused experts too; None: all that is in none.

        What is in no layer that is computed (embedding, output, the multi-token-prediction block) is in None.

        Raises:
            WeightError: naming the first tensor that does not.
        """
        for name, tensor in self._weights.tensors.items():
            block = block_of(name)
            if layer == (None if block is None or block >= self.config.n_layers else block):
                self._weights.check(tensor)

    @property
    def rope(self) -> RopeConfig:
        """How positions turn."""
        return self.config.rope

    @property
    def rope_factors(self) -> Tensor | None:
        """Llama 3's divisors of the frequencies, where the model has them."""
        part = self._parts.get("rope_freqs.weight")
        return None if part is None else self._weights.read(part)

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, D); only the rows of tokens that occur are read."""
        distinct, places = torch.unique(tokens, return_inverse=True)
        return self._weights.gather(self._parts["token_embd.weight"], distinct)[places]

    def layers(self) -> Sequence[Layer]:
        """The layers in their order."""
        return self._layers

    def normed(self, x: Tensor) -> Tensor:
        """The last norm."""
        norm = RMSNorm(self.config.width, self.config.norm_epsilon)
        norm.weight.data = self._weights.read(
            self._parts["output_norm.weight"], torch.promote_types(x.dtype, torch.float32)
        )
        normed: Tensor = norm(x)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) after the last norm to (…, vocabulary), some rows of the output matrix at a time."""
        part = self._parts["token_embd.weight" if self.config.tied_output else "output.weight"]
        rounding = self._weights.rounding(part)
        logits = torch.empty(*hidden.shape[:-1], part.rows, dtype=hidden.dtype)
        for first in range(0, part.rows, _OUTPUT_ROWS):
            last = min(first + _OUTPUT_ROWS, part.rows)
            some = self._weights.read_rows(part, first, last)
            logits[..., first:last] = product(hidden, some, rounding and rounding.of(slice(first, last)))
        return logits


class StreamedLayer:
    """One layer, in memory only while it is called."""

    def __init__(self, config: Config, index: int, weights: Weights, parts: Mapping[str, Part]) -> None:
        self._config = config
        self._index = index
        self._weights = weights
        self._parts = parts

    def rounding_as(self, activations: Activations) -> StreamedLayer:
        """The same layer with other activations."""
        return StreamedLayer(self._config, self._index, self._weights.rounding_as(activations), self._parts)

    def __call__(self, x: Tensor, at: Pass, cache: LayerCache, index: int, observe: Observer) -> Tensor:
        """(B, T, D) to the same."""
        made: Tensor = self._block()(x, at, cache, index, observe)
        return made

    def _block(self) -> nn.Module:
        with torch.device("meta"):
            block = _new_block(self._config, self._index)
            if isinstance(block, Block) and isinstance(block.ffn, MixtureOfExperts):
                block.ffn = StreamedExperts(block.ffn, self._config.width, self._weights, self._parts)
        _fill(block, self._weights, {name: part for name, part in self._parts.items() if not _is_stack(name)})
        return block


class StreamedExperts(MixtureOfExperts):
    """Experts that are read when tokens go to them, and dropped."""

    def __init__(self, like: MixtureOfExperts, width: int, weights: Weights, parts: Mapping[str, Part]) -> None:
        super().__init__(width, like.config)
        self._weights = weights
        self._stacks = [parts[f"ffn.{name}.weight"] for name in _STACKS]
        if "ffn.exp_probs_b.bias" not in parts:
            self.exp_probs_b = None

    def used(self, counts: list[int]) -> Iterable[Expert]:
        """The matrices of the experts that have tokens, one expert after the other."""
        return (self._read(index) for index, n in enumerate(counts) if n)

    def _read(self, index: int) -> Expert:
        gate, up, down = (self._matrix(part, index) for part in self._stacks)
        return gate, up, down

    def _matrix(self, part: Part, index: int) -> Product:
        rounding = self._weights.rounding_of_one(part, index)
        return partial(product, weight=self._weights.read_one(part, index), rounding=rounding)


def in_memory(
    model: ModelFile, config: Config, dtype: torch.dtype, *, mtp: bool = False, activations: Activations = "exact"
) -> DeepSeek | Dense:
    """The whole model with its weights, as a module; ``mtp`` with its multi-token-prediction block.

    Raises:
        WeightError: for a tensor that is missing or cannot be used.
    """
    module = skeleton(model, config, mtp=mtp)
    weights = Weights(model, dtype, activations)
    _fill(module, weights, parts_of(model, module, config))
    return module


def skeleton(model: ModelFile, config: Config, *, mtp: bool) -> DeepSeek | Dense:
    """The model without weights (on torch's meta device), with those optional parts that the file has."""
    names = {tensor.name for tensor in model.tensors}
    with torch.device("meta"):
        if isinstance(config, DenseConfig):
            return Dense(config)
        module = DeepSeek(config if mtp else replace(config, n_mtp=0))
        for index, block in enumerate(module.blk):
            if isinstance(block, NextTokenBlock):
                add_own_parts(block.nextn, config, {name for name in names if f"blk.{index}.nextn." in name})
            if f"blk.{index}.exp_probs_b.bias" not in names and isinstance(block.ffn, MixtureOfExperts):
                block.ffn.exp_probs_b = None
    return module


def _new_block(config: Config, index: int) -> nn.Module:
    if isinstance(config, DeepSeekConfig):
        return Block(config, dense=index < config.n_dense)
    return DenseBlock(config)


def _is_stack(name: str) -> bool:
    return name in {f"ffn.{stack}.weight" for stack in _STACKS}


def _fill(module: nn.Module, weights: Weights, parts: Mapping[str, Part]) -> None:
    """Give a module on the meta device its weights, one after the other."""
    for name, part in parts.items():
        owner, _, leaf = name.rpartition(".")
        dtype = torch.promote_types(weights.dtype, torch.float32) if computed_in_float32(name) else weights.dtype
        holder = module.get_submodule(owner)
        setattr(holder, leaf, nn.Parameter(weights.read(part, dtype), requires_grad=False))
        if leaf == "weight" and isinstance(holder, Matrix | Stack | Embedding):
            holder.rounding = weights.rounding(part)
    if weights.activations == "llama.cpp":
        _follow_files(module, parts)


def _follow_files(module: nn.Module, parts: Mapping[str, Part]) -> None:
    """Keys and values are made of the latent where the file has one matrix for both, as llama.cpp does then."""
    for name, attention in module.named_modules():
        if isinstance(attention, LatentAttention):
            attention.decompressed = parts[f"{name}.k_b.weight"].transposed
