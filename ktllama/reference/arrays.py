"""The reference beside what another program computed, for callers that know no torch: numpy arrays in and out.

Two texts go through the model at once, both the same. The first is the reference's own pass. The second is led: after
every layer its hidden states are replaced by the other program's, so that each layer sees exactly what the other's saw,
and what it makes of it can be compared without the errors of the layers before. It costs arithmetic, but no weight is
read twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ktllama.reference.activations import Activations
from ktllama.reference.attention import AttentionKernels, Cache
from ktllama.reference.cpu_attention import CpuAttention
from ktllama.reference.decoder import Mixture, prepare
from ktllama.reference.model import DTYPES, Model, load
from ktllama.reference.streaming import StreamedModel

Floats = npt.NDArray[np.float32]

DTYPE_BY_NAME: Mapping[str, torch.dtype] = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}

#: Positions for which the led pass's logits are computed: the output is one matrix, so some are enough.
LED_OUTPUTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """What a router chose by: ``rated`` (T, E), the more the better.

    ``moves`` (T, E) is how far a rating moves, about, if what the router was given is off by all its length. The
    experts are in ``n_groups`` groups of one size; ``n_groups_used`` are chosen first, by the sum of their ``n_rating``
    best.
    """

    rated: Floats
    moves: Floats
    n_groups: int = 1
    n_groups_used: int = 1
    n_rating: int = 1


class Leader(Protocol):
    """Sees every layer of a pass over T tokens, and knows what the other program made of it."""

    def routing(self, layer: int, own: npt.NDArray[np.integer], led: npt.NDArray[np.integer], ratings: Ratings) -> None:
        """The experts (T, experts used) that a layer chose in either pass; told before its output.

        ``ratings`` are what the choice of the led pass was made by.
        """

    def layer(self, layer: int, own: Floats, given: Floats, led: Floats) -> Floats:
        """A layer's output in its own pass, and what it was given and made of it in the led pass, all (T, width).

        The answer (T, width) is the other program's output of this layer, which leads on.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """What the other program computes with.

    ``activations`` says for each layer, and last for the output, whether the reference rounds as it does. The rest is
    for layers that do, and as in :class:`ktllama.reference.cpu_attention.CpuAttention`; of another type of cache
    attention is exact.
    """

    activations: Sequence[Activations]
    kv_type: str
    flash_attention: bool
    n_ubatch: int

    def attention(self, layer: int) -> AttentionKernels | None:
        """How a layer's attention is computed, if not exactly."""
        kept = _KEPT.get(self.kv_type)
        if kept is None or self.activations[layer] == "exact":
            return None
        return CpuAttention(kept=kept, flash=self.flash_attention, n_ubatch=self.n_ubatch)


_KEPT: Mapping[str, Literal["F32", "F16", "BF16"]] = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


class ReferencePass:
    """An opened model. Its weights are read layer by layer whenever it runs."""

    def __init__(self, model: Model) -> None:
        assert isinstance(model.stages, StreamedModel)
        self._model = model
        self._stages = model.stages

    @property
    def n_layers(self) -> int:
        """Layers that a pass goes through."""
        return self._model.config.n_layers

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self._model.config.vocabulary

    def run(
        self,
        tokens: Sequence[int],
        leader: Leader,
        progress: Callable[[str, float], None],
        kernels: Kernels,
        n_threads: int | None = None,
    ) -> tuple[Floats, dict[int, Floats]]:
        """The logits (T, vocabulary) of one text, and by position some of the led pass's (vocabulary).

        ``progress`` gets what is done, and the share of the layers. All weights of the file are looked at, whether
        tokens need them or not. ``n_threads`` is torch's own choice where it is None.

        Raises:
            TokensError, WeightError, ModelFileError: as :class:`ktllama.reference.model.Model` does.
        """
        ids = torch.tensor([list(tokens)] * 2, dtype=torch.int64)
        self._model.check(ids)
        stages = self._stages.rounding_as(kernels.activations)
        stages.check(None)
        with torch.no_grad(), _threads(n_threads):
            x = _through(stages, ids, kernels, leader, progress)
            shown = sorted({round(at) for at in np.linspace(0, len(tokens) - 1, LED_OUTPUTS)})
            logits = _array(stages.logits(stages.normed(torch.cat((x[0], x[1][shown])))))
        return logits[: len(tokens)], dict(zip(shown, logits[len(tokens) :], strict=True))


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Let torch use ``n`` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _through(
    stages: StreamedModel, ids: Tensor, kernels: Kernels, leader: Leader, progress: Callable[[str, float], None]
) -> Tensor:
    """Both passes (2, T, width) through all layers."""
    layers = stages.layers()
    cache, x = Cache.empty(len(layers)), stages.embed(ids)
    at = prepare(stages.rope, ids, cache, x.dtype, factors=stages.rope_factors)
    routing = _Routing(leader)
    for index, (layer, kept) in enumerate(zip(layers, cache.layers, strict=True)):
        stages.check(index)
        here = replace(at, kernels=kernels.attention(index))
        given, x = _array(x[1]), layer(x, here, kept, index, routing)
        theirs = leader.layer(index, _array(x[0]), given, _array(x[1]))
        x = torch.stack((x[0], torch.from_numpy(theirs).to(x.dtype)))
        kept.kept = ()  # no token follows
        progress("reference", (index + 1) / len(layers))
    return x


def open_pass(path: str | os.PathLike[str], dtype: str) -> ReferencePass:
    """The model of a GGUF file, to be computed in the ``dtype`` of that name (:data:`DTYPE_BY_NAME`).

    Raises:
        ModelFileError, ReferenceModelError, WeightError: as :func:`ktllama.reference.model.load` does.
    """
    return ReferencePass(load(path, DTYPE_BY_NAME[dtype]))


class _Routing:
    """An observer of the routers of both passes."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._ratings: Ratings | None = None

    def layer(self, index: int, hidden: Tensor) -> None:
        """Told by :func:`_through` itself."""

    def router(self, index: int, x: Tensor, mixture: Mixture) -> None:  # noqa: ARG002
        """Keep the led pass's ratings for :meth:`routing`."""
        config = mixture.config
        rated, moves = mixture.ratings(x[len(x) // 2 :])
        self._ratings = Ratings(
            rated=_array(rated),
            moves=_array(moves),
            n_groups=config.n_groups,
            n_groups_used=config.n_groups_used,
            n_rating=1 if config.group_score == "max" else 2,
        )

    def routing(self, index: int, experts: Tensor, weights: Tensor) -> None:  # noqa: ARG002
        """Experts (2·T, k): first those of the own pass."""
        own, led = experts.numpy().reshape(2, -1, experts.shape[-1])
        assert self._ratings is not None
        self._leader.routing(index, own, led, self._ratings)


def _array(values: Tensor) -> Floats:
    array: Floats = values.detach().to(torch.float32).contiguous().numpy()
    return array
