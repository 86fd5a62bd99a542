"""The fields that chat and completions share: how tokens are chosen, and where the text ends."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from ktllama.engine.messages import Sampling
from ktllama.server.protocol.base import TOKEN_LIMIT, Body, Stop, items

# llama.cpp takes an unsigned 32-bit seed and reads the last value as "choose one" (LLAMA_DEFAULT_SEED, llama.h)
_SEEDS = 2**32 - 1
_PENALTY = Field(default=None, ge=-2, le=2)
_MAX_BIASED = 1024
_SHARE = Field(default=None, ge=0, le=1)
#: what llama.cpp's mirostat leaves out, and the values with which it does nothing anyway
_LEFT_OUT = {
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
    "repeat_penalty": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
}


def _few(bias: Any) -> Any:
    """Before its values are looked at: each wrong one is a fault."""
    if isinstance(bias, dict) and len(bias) > _MAX_BIASED:
        raise PydanticCustomError("too_many_biased", "may have at most {limit} items", {"limit": _MAX_BIASED})
    return bias


def _token_keys(bias: dict[str, float]) -> dict[str, float]:
    for key in bias:
        # As `str` writes them: "1" and "01" would be one token twice.
        if not (re.fullmatch("0|[1-9][0-9]{0,9}", key) and int(key) < TOKEN_LIMIT):
            raise PydanticCustomError("token_key", "its keys must be token ids, found '{key}'", {"key": key[:40]})
    return bias


class SamplingFields(Body):
    """Each wins over the model's profile where it is set; null is not set."""

    temperature: float | None = Field(default=None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = _SHARE
    top_k: int | None = Field(default=None, ge=-1, lt=TOKEN_LIMIT, description="0 or -1: all tokens.")
    min_p: float | None = _SHARE
    typical_p: float | None = _SHARE
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    repeat_last_n: int | None = Field(default=None, ge=-1, lt=TOKEN_LIMIT, description="-1: the whole context.")
    frequency_penalty: float | None = _PENALTY
    presence_penalty: float | None = _PENALTY
    dry_multiplier: float | None = Field(default=None, ge=0, le=100)
    dry_base: float | None = Field(default=None, ge=1, le=100)
    dry_allowed_length: int | None = Field(default=None, ge=0, lt=TOKEN_LIMIT)
    dry_penalty_last_n: int | None = Field(default=None, ge=-1, lt=TOKEN_LIMIT)
    dry_sequence_breakers: Annotated[list[str], items(max_length=64)] | None = None
    xtc_probability: float | None = _SHARE
    xtc_threshold: float | None = _SHARE
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: float | None = Field(default=None, ge=0, le=1000)
    mirostat_eta: float | None = _SHARE
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_few), AfterValidator(_token_keys)
        ]
        | None
    ) = Field(default=None, description="Token id to a number that is added to its logit; -100 forbids it.")
    seed: int | None = Field(
        default=None,
        ge=-(2**63),
        lt=2**63,
        description="The same seed gives the same text when nothing else runs; with `deterministic`, always. "
        "-1 chooses one. Choice i of n uses seed + i.",
    )
    stop: Stop | None = Field(default=None, description="Up to 16 texts that end the answer; not inside the thinking.")
    ignore_eos: bool | None = Field(default=None, description="Go on to max_tokens.")
    deterministic: bool | None = Field(
        default=None, description="Compute in batches of its own, so that other requests cannot change the result."
    )
    cache_prompt: bool | None = Field(default=None, description="false: compute the whole prompt anew.")
    grammar: str | None = Field(default=None, min_length=1, max_length=1_000_000, description="GBNF; after thinking.")

    @model_validator(mode="after")
    def _mirostat_alone(self) -> SamplingFields:
        """Only what the request sets itself: a profile's defaults are for requests without mirostat."""
        set_so = [name for name, idle in _LEFT_OUT.items() if getattr(self, name) not in (None, *idle)]
        if self.mirostat and set_so:
            raise PydanticCustomError(
                "disagreement",
                "cannot be combined with {names}: it chooses without them",
                {"field": "mirostat", "names": ", ".join(set_so)},
            )
        return self

    def stops(self) -> tuple[str, ...]:
        """The stop texts, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, defaults: Sampling, choice: int) -> Sampling:
        """`defaults` with every field that was set in its place."""
        changes = {
            name: value
            for name in Sampling.__struct_fields__
            if name not in ("logit_bias", "seed") and (value := getattr(self, name)) is not None
        }
        if "dry_sequence_breakers" in changes:
            changes["dry_sequence_breakers"] = tuple(changes["dry_sequence_breakers"])
        if changes.get("top_k") == -1:
            changes["top_k"] = 0
        if self.logit_bias is not None:
            changes["logit_bias"] = {int(key): value for key, value in self.logit_bias.items()}
        if self.seed is not None:
            changes["seed"] = None if self.seed == -1 else (self.seed + choice) % _SEEDS
        return msgspec.structs.replace(defaults, **changes)
