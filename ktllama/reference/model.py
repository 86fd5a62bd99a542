"""A model to check llama.cpp against: tokens in, logits out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeAlias, get_args

import torch
from torch import Tensor

from ktllama.errors import ReferenceModelError, TokensError
from ktllama.model import gguf
from ktllama.model.model_file import ModelFile
from ktllama.model.wording import quoted
from ktllama.reference.activations import Activations
from ktllama.reference.attention import Cache
from ktllama.reference.config import Config, DeepSeekConfig, DenseConfig
from ktllama.reference.decoder import Observer, Stages, Unobserved, hidden_states
from ktllama.reference.deepseek import DeepSeek
from ktllama.reference.dense import Dense
from ktllama.reference.streaming import StreamedModel, in_memory

#: Called with the number of layers that are done and of all.
Progress: TypeAlias = Callable[[int, int], None]

DTYPES = (torch.float32, torch.bfloat16, torch.float64)

#: Architectures by GGUF's name, with what reads their config.
ARCHITECTURES: Mapping[str, Callable[[ModelFile], Config]] = {
    "deepseek2": DeepSeekConfig.from_metadata,
    "llama": DenseConfig.from_metadata,
    "qwen2": DenseConfig.from_metadata,
}


class Model:
    """A GGUF model, computed by torch on the CPU. Make one with :func:`load`.

    ``stages`` are what it computes, for who wants to look between them.
    """

    def __init__(self, stages: Stages, config: Config, dtype: torch.dtype) -> None:
        self.config = config
        self.dtype = dtype
        self.stages = stages

    def __call__(
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        observe: Observer | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """The logits (B, T, vocabulary) of ``tokens`` (B, T), of int64.

        With a ``cache`` the tokens come after those that it has seen, and join them. ``observe`` is shown every layer's
        output and routing; ``progress`` is told after every layer.

        Raises:
            TokensError: for tokens of another shape or type, outside the vocabulary, or past the model's context.
            WeightError: for weights that are not numbers, when they are read.
            ModelFileError: when the file cannot be read any more.
        """
        self.check(tokens, cache)
        watched = _Watched(observe or Unobserved(), progress, self.config.n_layers)
        with torch.no_grad():
            return self.stages.logits(hidden_states(self.stages, tokens, cache=cache, observe=watched))

    def new_cache(self) -> Cache:
        """A cache that has seen nothing."""
        return Cache.empty(self.config.n_layers)

    def check(self, tokens: Tensor, cache: Cache | None = None) -> None:
        """Whether the model can read ``tokens`` (B, T) after those that the ``cache`` has seen.

        Raises:
            TokensError: for tokens of another shape or type, outside the vocabulary, or past the model's context.
        """
        if tokens.ndim != 2 or tokens.dtype != torch.int64 or not tokens.numel():
            shape = " × ".join(str(size) for size in tokens.shape) or "none"
            kind = str(tokens.dtype).removeprefix("torch.")
            raise TokensError(f"tokens are of type {kind} and shape {shape}; expected int64, rows of one token or more")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocabulary:
            wrong = low if low < 0 else high
            raise TokensError(f"token {wrong} is not in the vocabulary of {self.config.vocabulary:,}")
        n_tokens = tokens.shape[1] + (cache.n_tokens if cache else 0)
        if n_tokens > self.config.context:
            raise TokensError(f"{n_tokens:,} tokens are more than the model's context of {self.config.context:,}")


class _Watched:
    """An observer that tells a progress bar, too."""

    def __init__(self, observe: Observer, progress: Progress | None, n_layers: int) -> None:
        self._observe = observe
        self._progress = progress
        self._n_layers = n_layers

    def layer(self, index: int, hidden: Tensor) -> None:
        self._observe.layer(index, hidden)
        if self._progress is not None:
            self._progress(index + 1, self._n_layers)

    def routing(self, index: int, experts: Tensor, weights: Tensor) -> None:
        self._observe.routing(index, experts, weights)


def load(
    path: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
    *,
    resident: bool = False,
    activations: Activations = "exact",
) -> Model:
    """The model of a GGUF file (of split files: the first).

    Its weights are read layer by layer whenever it is called, which needs little memory and much time; with
    ``resident`` they are read once and kept, as decoding token by token wants it. ``activations`` are exact, or rounded
    before every product with weights that are not float32, as llama.cpp's CPU kernels do (see
    :mod:`ktllama.reference.activations`).

    Raises:
        ModelFileError: for a file that cannot be read, or metadata that is missing or absurd.
        ReferenceModelError: for an architecture that the reference does not have.
        WeightError: for a tensor that is missing, has a wrong shape, or cannot be dequantized.
        ValueError: for a ``dtype`` that is not one of :data:`DTYPES`, and for activations of another name.
    """
    if activations not in get_args(Activations):
        raise ValueError(f"activations are {activations!r}; expected one of {', '.join(get_args(Activations))}")
    model, config = _open(path, dtype)
    make = in_memory if resident else StreamedModel
    stages: Stages = make(model, config, dtype, activations=activations)
    return Model(stages, config, dtype)


def load_module(
    path: str | os.PathLike[str], dtype: torch.dtype = torch.float32, *, mtp: bool = False
) -> DeepSeek | Dense:
    """The model of a GGUF file as a torch module with all its weights in memory; ``mtp`` with its MTP block.

    Raises:
        As :func:`load` does.
    """
    model, config = _open(path, dtype)
    return in_memory(model, config, dtype, mtp=mtp)


def _open(path: str | os.PathLike[str], dtype: torch.dtype) -> tuple[ModelFile, Config]:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}; expected one of {', '.join(map(str, DTYPES))}")
    model = gguf.read(path)
    if model.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        reason = f"the reference has no architecture {quoted(model.architecture)}; it has: {known}"
        raise ReferenceModelError(os.fspath(path), reason)
    return model, ARCHITECTURES[model.architecture](model)
