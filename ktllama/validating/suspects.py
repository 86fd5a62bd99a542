"""Which layer goes wrong first.

Every layer is judged by what it makes of llama.cpp's own input (``LayerErrors.own``), so errors that it merely passes
on do not count, and a chain of wrong layers is told from one wrong layer. It is suspected where the error of many
tokens is ``JUMP`` times what its arithmetic may rightly add. A token whose router chose other experts for the same
input has a large error, and rightly, since two experts were nearly as good; it counts only where most tokens do so,
which no rounding explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ktllama.validating.layers import LayerErrors
from ktllama.validating.positions import Floats

#: Times the expected error.
JUMP = 4.0

#: The share of all tokens that must be past it with the same experts, and with any. Sound layers of SmolLM2 have up to
#: 4% past it, since a value near a tie may move a token by much; few tokens then hold many of them now and then.
_SHARE_WITHOUT_FLIPS = 0.1
_SHARE_OF_ALL = 0.5

#: One or two tokens may be past it by chance; then they must be past this many times the expected error.
_FEW = 3
_FAR = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A layer that does not compute what it should. ``layer`` is None for what follows the last: norm and output.

    ``error`` is the typical (median) token's own error, ``share`` that of the tokens whose error is past what is
    expected. ``certain`` is False for the layer where the error is merely the largest.
    """

    layer: int | None
    error: float
    share: float
    certain: bool


def first_suspect(
    layers: tuple[LayerErrors, ...], output: Floats, expected: Callable[[int | None], float]
) -> Suspect | None:
    """The first layer, or the output, that adds more error than it may; None where none does.

    ``output`` are the own errors of the logits, at some positions; ``expected`` is the error that a layer may add, or
    for None the output.
    """
    for found in layers:
        past = found.own > JUMP * expected(found.layer)
        calm = past if found.own_flipped is None else past & ~found.own_flipped
        far = past.sum() >= _FEW or found.median_own > _FAR * expected(found.layer)
        if _too_many(int(calm.sum()), len(calm)) or (past.mean() >= _SHARE_OF_ALL and far):
            return Suspect(layer=found.layer, error=found.median_own, share=float(past.mean()), certain=True)
    past = output > JUMP * expected(None)
    if past.mean() >= _SHARE_OF_ALL:
        return Suspect(layer=None, error=float(np.median(output)), share=float(past.mean()), certain=True)
    return None


def _too_many(n_past: int, n_tokens: int) -> bool:
    """Whether more tokens are past it than chance gives where the share is the one that is allowed: two deviations."""
    allowed = _SHARE_WITHOUT_FLIPS * n_tokens
    return n_past >= max(_FEW, allowed + 2 * math.sqrt(allowed))


def largest(layers: tuple[LayerErrors, ...], expected: Callable[[int | None], float]) -> Suspect | None:
    """The layer whose own error is the largest; None where there is no layer."""
    if not layers:
        return None
    worst = max(layers, key=lambda found: found.median_own)
    share = float((worst.own > JUMP * expected(worst.layer)).mean())
    return Suspect(layer=worst.layer, error=worst.median_own, share=share, certain=False)
