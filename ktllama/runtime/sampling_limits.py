"""What may be asked of the samplers. llama.cpp takes any number; some make it loop, overflow or choose nothing."""

from __future__ import annotations

import math

from ktllama.engine.executor import SamplingError
from ktllama.engine.messages import Sampling

_MAX_BREAKERS = 16
_MAX_BREAKER_BYTES = 40  # llama.cpp cuts longer ones
_MAX_BIASES = 4096
_INT32 = 2**31 - 1

#: field → (least, most), both allowed
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 1e3),
    "top_p": (0, 1),
    "top_k": (-1, _INT32),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_penalty": (1e-3, 1e3),
    "repeat_last_n": (-1, _INT32),
    "frequency_penalty": (-100, 100),
    "presence_penalty": (-100, 100),
    "dry_multiplier": (0, 1e3),
    "dry_base": (0, 1e3),
    "dry_allowed_length": (0, _INT32),
    "dry_penalty_last_n": (-1, _INT32),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "mirostat": (0, 2),
    "mirostat_tau": (0, 1e3),
    "mirostat_eta": (0, 1e3),
}


def check_sampling(sampling: Sampling, n_vocab: int) -> None:
    """Hold every field against its range.

    Raises:
        SamplingError: for the first that is out of it.
    """
    for field, (least, most) in _RANGES.items():
        value = getattr(sampling, field)
        if not least <= value <= most:  # also refuses NaN
            raise SamplingError(field, f"is {value}; it must be from {least:g} to {most:g}")
    if sampling.seed is not None and not -(2**63) <= sampling.seed < 2**64:
        raise SamplingError("seed", "does not fit 64 bits")
    _check_bias(sampling, n_vocab)
    _check_breakers(sampling)


def _check_bias(sampling: Sampling, n_vocab: int) -> None:
    if len(sampling.logit_bias) > _MAX_BIASES:
        raise SamplingError("logit_bias", f"names {len(sampling.logit_bias)} tokens; at most {_MAX_BIASES}")
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < n_vocab:
            raise SamplingError("logit_bias", f"names token {token}; the vocabulary has {n_vocab}")
        if math.isnan(bias) or bias == math.inf:
            raise SamplingError("logit_bias", f"adds {bias} to token {token}")


def _check_breakers(sampling: Sampling) -> None:
    breakers = sampling.dry_sequence_breakers
    if len(breakers) > _MAX_BREAKERS:
        raise SamplingError("dry_sequence_breakers", f"has {len(breakers)} strings; at most {_MAX_BREAKERS}")
    for breaker in breakers:
        size = len(breaker.encode(errors="replace"))
        if not 1 <= size <= _MAX_BREAKER_BYTES or "\0" in breaker:
            raise SamplingError(
                "dry_sequence_breakers", f"may hold strings of 1 to {_MAX_BREAKER_BYTES} bytes without NUL"
            )
