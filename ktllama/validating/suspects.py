"""Which layer goes wrong first.

Every layer is judged by what it makes of llama.cpp's own input (``LayerErrors.own``), so errors that it merely passes
on do not count, and a chain of wrong layers is told from one wrong layer. It is suspected where the error of many
tokens is ``JUMP`` times what its arithmetic may rightly add, or that of few ``FAR`` times: one expert of many works on
few. A token whose router chose other experts for the same input has a large error, and rightly where two experts were
nearly as good; it then counts only where most tokens do so, which no rounding explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ktllama.validating.layers import LayerErrors
from ktllama.validating.positions import Floats

#: Times the expected error.
JUMP = 4.0

#: The same for single tokens. Of 6,000 tokens in sound layers of SmolLM2 the worst has 6; a sound router's other choice
#: is explained by 2 (tiny-R1 with a KV cache in Q4_0), a wrong one's by hundreds.
FAR = 10.0

#: The share of all tokens that must be past ``JUMP`` with the same experts, and with any. Sound layers of SmolLM2 have
#: up to 4% past it, since a value near a tie may move a token by much; few tokens then hold many of them now and then.
_SHARE_WITHOUT_FLIPS = 0.1
_SHARE_OF_ALL = 0.5

#: One or two tokens may be past it by chance.
_FEW = 3

#: Where next to nothing is expected, large scores of attention make this of the last bits.
_LEAST = 3e-4

Marks = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A layer that does not compute what it should. ``layer`` is None for what follows the last: norm and output.

    ``error`` is the typical (median) own error of the tokens that speak against it, ``share`` their part of all tokens.
    ``certain`` is False for the layer where an error is merely the largest, which ``error`` then is.
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
        wrong = _wrong(found, expected(found.layer))
        if wrong is not None:
            return Suspect(
                layer=found.layer, error=float(np.median(found.own[wrong])), share=float(wrong.mean()), certain=True
            )
    past = output > JUMP * expected(None)
    if past.mean() >= _SHARE_OF_ALL:
        return Suspect(layer=None, error=float(np.median(output[past])), share=float(past.mean()), certain=True)
    return None


def _wrong(found: LayerErrors, expected: float) -> Marks | None:
    """The tokens that a layer gets wrong, if they are more than chance explains."""
    past, explained = found.own > JUMP * expected, explained_flips(found, expected)
    single = far_off(found, expected)
    far = past.sum() >= _FEW or np.median(found.own) > FAR * expected
    if past.mean() >= _SHARE_OF_ALL and far:
        return past
    if single.sum() >= _FEW or _too_many(int((past & ~explained).sum()), len(past)):
        return (past & ~explained) | single
    return None


def explained_flips(found: LayerErrors, expected: float) -> Marks:
    """The tokens with other experts for the same input, between which rounding may decide."""
    if found.own_flipped is None:
        return np.zeros(len(found.own), np.bool_)
    if found.nudges is None:
        return found.own_flipped
    return found.own_flipped & (found.nudges <= FAR * max(expected, _LEAST))


def far_off(found: LayerErrors, expected: float) -> Marks:
    """The tokens that no rounding explains, each by itself: a far larger error, or experts far from chosen."""
    explained = explained_flips(found, expected)
    far = (found.own > FAR * max(expected, _LEAST)) & ~explained
    return far if found.own_flipped is None else far | (found.own_flipped & ~explained)


def _too_many(n_past: int, n_tokens: int) -> bool:
    """Whether more tokens are past it than chance gives where the share is the one that is allowed: two deviations."""
    allowed = _SHARE_WITHOUT_FLIPS * n_tokens
    return n_past >= max(_FEW, allowed + 2 * math.sqrt(allowed))


def largest(layers: tuple[LayerErrors, ...], expected: Callable[[int | None], float]) -> Suspect | None:
    """The layer with the token whose own error, not explained by a flip, is furthest past what is expected, if any."""
    worst: tuple[float, Suspect] | None = None
    for found in layers:
        allowed = expected(found.layer)
        calm = np.where(explained_flips(found, allowed), 0.0, found.own)
        error = float(calm.max(initial=0.0))
        if error > allowed and (worst is None or error / allowed > worst[0]):
            share = float((calm > JUMP * allowed).mean())
            worst = error / allowed, Suspect(layer=found.layer, error=error, share=share, certain=False)
    return None if worst is None else worst[1]
