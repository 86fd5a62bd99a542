"""A profile's sampling defaults as the engine takes them."""

from __future__ import annotations

from ktllama.engine.messages import Sampling
from ktllama.r1.profile import Profile


def defaults(profile: Profile) -> Sampling:
    """What is sampled with where a request sets nothing."""
    chosen = profile.sampling
    return Sampling(
        temperature=chosen.temperature,
        top_p=chosen.top_p,
        top_k=chosen.top_k,
        min_p=chosen.min_p,
        repeat_penalty=chosen.repeat_penalty,
    )
