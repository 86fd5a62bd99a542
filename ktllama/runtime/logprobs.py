"""Log-probabilities of a row of logits, before any sampler."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ktllama.engine.messages import TokenLogprob
from ktllama.runtime import shortlist
from ktllama.runtime.shortlist import Logits, Scratch


def token_logprob(
    scratch: Scratch, logits: Logits, token: int, n_top: int, piece: Callable[[int], bytes]
) -> TokenLogprob:
    """The natural logarithm of ``token``'s softmax probability, and the ``n_top`` most likely tokens'."""
    highest = float(logits.max())
    total = math.log(scratch.total_weight(logits, highest)) + highest
    top = []
    if n_top:
        ids = shortlist.highest_ids(scratch, logits, n_top, highest)
        if ids is None:  # nearly equal logits everywhere
            ids = np.argsort(-logits, kind="stable")[:n_top]
        top = [(each, piece(each), float(logits[each]) - total) for each in ids.tolist()]
    return TokenLogprob(token=token, piece=piece(token), logprob=float(logits[token]) - total, top=tuple(top))
