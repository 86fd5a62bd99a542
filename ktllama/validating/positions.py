"""Two sets of logits, position by position: how far apart they are, and whether it matters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]

#: Logits that are compared at once, so that float64 copies stay small beside the logits themselves.
_CHUNK_VALUES = 1 << 21

_TOP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionErrors:
    """One value a position, T positions.

    ``max_abs`` and ``mean_abs`` are of the difference of the logits; ``kl`` is KL(reference‖llama.cpp) in nats of the
    next token's distribution; ``top1`` says whether both find the same token most likely; ``top5`` is the share of the
    reference's five most likely tokens that are among llama.cpp's. ``relative`` is the length of the difference over
    that of the reference's logits, both without their mean, which softmax does not see. ``reference_nll`` and
    ``llama_nll`` are -log of what each gave the text's next token; the last position has none and holds NaN. Where
    llama.cpp's logits are not numbers, errors are infinite and nothing agrees.
    """

    max_abs: Floats
    mean_abs: Floats
    kl: Floats
    top1: npt.NDArray[np.bool_]
    top5: Floats
    relative: Floats
    reference_nll: Floats
    llama_nll: Floats

    @property
    def n_positions(self) -> int:
        """How many positions were compared."""
        return len(self.kl)

    def perplexities(self) -> tuple[float, float] | None:
        """The reference's and llama.cpp's perplexity of the text; None for a text of one token."""
        if self.n_positions < 2:
            return None
        reference, llama = (float(np.mean(nll[:-1])) for nll in (self.reference_nll, self.llama_nll))
        return _exp(reference), _exp(llama)


def compare_positions(reference: Logits, llama: Logits, tokens: tuple[int, ...]) -> PositionErrors:
    """Compare (T, vocabulary) logits over the text ``tokens``, in pieces, in float64."""
    n_tokens, n_vocab = reference.shape
    assert llama.shape == (n_tokens, n_vocab)
    assert len(tokens) == n_tokens
    columns = {name: np.full(n_tokens, np.nan) for name in _COLUMNS}
    top1 = np.zeros(n_tokens, np.bool_)
    for part in _chunks(n_tokens, n_vocab):
        ours, theirs = reference[part].astype(np.float64), llama[part].astype(np.float64)
        bad = ~np.isfinite(theirs).all(axis=1)
        theirs[bad] = 0.0
        _differences(ours, theirs, columns, part)
        top1[part] = _agreement(ours, theirs, columns, part)
        _likelihoods(ours, theirs, tokens, columns, part)
        rows = np.flatnonzero(bad) + part.start
        for name in ("max_abs", "mean_abs", "kl", "relative", "llama_nll"):
            columns[name][rows] = np.inf
        columns["top5"][rows], top1[rows] = 0.0, False
    columns["reference_nll"][-1] = columns["llama_nll"][-1] = np.nan
    return PositionErrors(top1=top1, **columns)


_COLUMNS = ("max_abs", "mean_abs", "kl", "top5", "relative", "reference_nll", "llama_nll")


def _chunks(n_tokens: int, n_vocab: int) -> Iterator[slice]:
    rows = max(1, _CHUNK_VALUES // n_vocab)
    return (slice(start, min(start + rows, n_tokens)) for start in range(0, n_tokens, rows))


def _differences(ours: Floats, theirs: Floats, columns: dict[str, Floats], part: slice) -> None:
    difference = theirs - ours
    absolute = np.abs(difference)
    columns["max_abs"][part], columns["mean_abs"][part] = absolute.max(axis=1), absolute.mean(axis=1)
    columns["relative"][part] = ratio(_spread(difference), _spread(ours))


def output_errors(led: Mapping[int, Logits], llama: Logits) -> Floats:
    """The output's own errors: |difference| / |led|, both without their mean, at the positions of ``led``.

    ``led`` are the logits (vocabulary) that the reference's output makes of llama.cpp's last hidden states.
    """
    ours = np.stack(list(led.values())).astype(np.float64)
    theirs = llama[list(led)].astype(np.float64)
    with np.errstate(invalid="ignore"):
        errors = ratio(_spread(theirs - ours), _spread(ours))
    errors[~np.isfinite(errors)] = np.inf
    return errors


def _spread(values: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(values - values.mean(axis=1, keepdims=True), axis=1)
    return lengths


def ratio(part: Floats, whole: Floats) -> Floats:
    """``part / whole``; nothing of nothing is 0, something of nothing infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient: Floats = np.where(part == 0, 0.0, part / whole)
    return quotient


def _agreement(ours: Floats, theirs: Floats, columns: dict[str, Floats], part: slice) -> npt.NDArray[np.bool_]:
    n_top = min(_TOP, ours.shape[1])
    best, found = (np.argpartition(-values, n_top - 1, axis=1)[:, :n_top] for values in (ours, theirs))
    columns["top5"][part] = (best[:, :, None] == found[:, None, :]).any(axis=2).mean(axis=1)
    same: npt.NDArray[np.bool_] = ours.argmax(axis=1) == theirs.argmax(axis=1)
    return same


def _likelihoods(
    ours: Floats, theirs: Floats, tokens: tuple[int, ...], columns: dict[str, Floats], part: slice
) -> None:
    log_p, log_q = _log_softmax(ours), _log_softmax(theirs)
    # rounding can make the sum of nothing -1e-17
    columns["kl"][part] = np.maximum(0.0, (np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    following = np.array([*tokens[1:], 0][part])
    rows = np.arange(len(following))
    columns["reference_nll"][part], columns["llama_nll"][part] = -log_p[rows, following], -log_q[rows, following]


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_p


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
