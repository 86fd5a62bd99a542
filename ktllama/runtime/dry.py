"""DRY, llama.cpp's penalty of sequences that come again: slow to make, and quick to copy."""

from __future__ import annotations

import ctypes
import weakref
from collections import OrderedDict
from typing import Any

from ktllama.engine.messages import Sampling

_KEPT = 8


class DryPrototype:
    """A C sampler to be cloned; it goes when nobody holds it any more."""

    def __init__(self, api: Any, sampler: Any) -> None:
        self._api = api
        self._sampler = sampler
        weakref.finalize(self, api.llama_sampler_free, sampler)

    def clone(self) -> Any:
        """A C sampler of its own."""
        return self._api.llama_sampler_clone(self._sampler)


class DryPrototypes:
    """Makes prototypes, which takes seconds for many breakers in a large vocabulary: each is looked up in all tokens.

    A few are kept, because many requests have the same. For one thread.
    """

    def __init__(self, api: Any, vocab: Any) -> None:
        self._api = api
        self._vocab = vocab
        self._kept: OrderedDict[tuple[object, ...], DryPrototype] = OrderedDict()

    def get(self, sampling: Sampling, window: int) -> DryPrototype | None:
        """The prototype for a ``window`` of tokens; None where DRY does nothing."""
        if not sampling.dry_multiplier or sampling.dry_base < 1 or not window or sampling.mirostat:
            return None
        breakers = sampling.dry_sequence_breakers
        key = (sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length, window, breakers)
        if key not in self._kept:
            listed = (ctypes.c_char_p * len(breakers))(*[breaker.encode(errors="replace") for breaker in breakers])
            made = self._api.llama_sampler_init_dry(self._vocab, *key[:4], listed, len(breakers))
            self._kept[key] = DryPrototype(self._api, made)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def close(self) -> None:
        """Let go of what is kept."""
        self._kept.clear()
