"""Which ubatch, and whether prefill streams: decode first, then prefill, then memory."""

from __future__ import annotations

from collections.abc import Sequence

from ktllama.planner.plan import Candidate

#: Decode comes first: a ubatch may cost it this share and no more.
DECODE_TOLERANCE = 0.02

#: A larger compute buffer must make prefill faster by this share.
_PREFILL_GAIN = 0.02


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the fastest prefill among those whose decode is nearly the fastest.

    Of candidates alike the one with the smallest buffers, and without streaming.
    """
    decode = max(one.decode_tokens_per_second for one in candidates)
    good = [one for one in candidates if one.decode_tokens_per_second >= decode * (1 - DECODE_TOLERANCE)]
    prefill = max(one.prefill_tokens_per_second for one in good)
    fast = [one for one in good if one.prefill_tokens_per_second >= prefill * (1 - _PREFILL_GAIN)]
    return min(fast, key=lambda one: (one.ubatch, one.op_offload))
