"""How long a loaded model takes: tokens read and tokens decoded with so many already in the KV cache.

One sequence of random tokens, so that a router spreads them over its experts; nothing is sampled. Reading ``n`` tokens
ends when their last logits are there, decoding a token when its logits are.
"""

from __future__ import annotations

import ctypes
import random
import time
from dataclasses import dataclass
from typing import Any

from ktllama.errors import LlamaCppError
from ktllama.runtime.load import LoadedModel

#: Tokens that are decoded first and not counted: threads start, buffers are touched, graphs are built.
_WARM_UP_TOKENS = 2
_SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One measurement at ``depth`` tokens of context; 0 seconds where nothing was asked."""

    depth: int
    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float


class Timer:
    """Measures one loaded model. The KV cache is what it was before after each measurement."""

    def __init__(self, loaded: LoadedModel) -> None:
        api = loaded.library.api
        self._loaded = loaded
        self._api = api
        self._memory = api.llama_get_memory(loaded.context)
        self._n_batch = int(api.llama_n_batch(loaded.context))
        self._n_vocab = int(api.llama_vocab_n_tokens(loaded.vocab))
        self._random = random.Random(_SEED)
        self._filled = 0
        self._kept = b""
        self._kept_depth = 0
        self.n_ctx = int(api.llama_n_ctx_seq(loaded.context))

    def measure(self, depth: int, prefill_tokens: int, decode_tokens: int) -> Timed:
        """Read ``prefill_tokens`` after ``depth`` others, then decode ``decode_tokens`` after ``depth``.

        Raises:
            LlamaCppError: when llama.cpp cannot, or the context is too small.
        """
        self._fill(depth)
        prefill_seconds = self._timed_prefill(prefill_tokens) if prefill_tokens else 0.0
        if prefill_tokens:
            self._fill(depth)
        decode_seconds = 0.0
        if decode_tokens:
            for _ in range(_WARM_UP_TOKENS):
                self._decode(1)
            self._fill(depth)
            decode_seconds = self._timed_decode(decode_tokens)
            self._fill(depth)
        return Timed(
            depth=depth,
            prefill_tokens=prefill_tokens,
            prefill_seconds=prefill_seconds,
            decode_tokens=decode_tokens,
            decode_seconds=decode_seconds,
        )

    def warm_up(self) -> None:
        """Touch the weights once, so that the first measurement does not read them from the disk."""
        self._decode(min(32, self.n_ctx - 1))
        self._decode(1)
        self._fill(0)

    def _timed_prefill(self, n_tokens: int) -> float:
        started = time.perf_counter()
        self._decode(n_tokens)
        return time.perf_counter() - started

    def _timed_decode(self, n_tokens: int) -> float:
        started = time.perf_counter()
        for _ in range(n_tokens):
            self._decode(1)
        return time.perf_counter() - started

    def _fill(self, depth: int) -> None:
        """Have exactly ``depth`` tokens in the cache: cut, take back what was kept, or read more."""
        if depth < self._filled and not self._cut(depth):
            self._api.llama_memory_clear(self._memory, True)
            self._filled = 0
        if self._filled < depth <= self._kept_depth:
            self._restore(depth)
        if self._filled < depth:
            self._decode(depth - self._filled)
            self._keep()

    def _cut(self, depth: int) -> bool:
        """Whether the cache could be cut back; a recurrent state cannot."""
        if not self._api.llama_memory_seq_rm(self._memory, 0, depth, -1):
            return False
        self._filled = depth
        return True

    def _keep(self) -> None:
        """Keep a copy of the cache at its deepest, so that later rounds need not read all those tokens again."""
        size = int(self._api.llama_state_seq_get_size(self._loaded.context, 0))
        kept = (ctypes.c_uint8 * size)()
        written = int(self._api.llama_state_seq_get_data(self._loaded.context, kept, size, 0))
        self._kept, self._kept_depth = (bytes(kept[:written]), self._filled) if written else (b"", 0)

    def _restore(self, depth: int) -> None:
        self._api.llama_memory_clear(self._memory, True)
        kept = (ctypes.c_uint8 * len(self._kept)).from_buffer_copy(self._kept)
        self._filled = 0
        if not self._api.llama_state_seq_set_data(self._loaded.context, kept, len(self._kept), 0):
            self._api.llama_memory_clear(self._memory, True)
            self._kept, self._kept_depth = b"", 0
            return
        self._filled = self._kept_depth
        if depth < self._filled and not self._cut(depth):
            self._api.llama_memory_clear(self._memory, True)
            self._filled = 0

    def _decode(self, n_tokens: int) -> None:
        """Read random tokens, a batch at a time, and wait for the logits of each batch's last."""
        if self._filled + n_tokens > self.n_ctx:
            raise LlamaCppError(f"{self._filled + n_tokens} tokens do not fit a context of {self.n_ctx}")
        for start in range(0, n_tokens, self._n_batch):
            size = min(self._n_batch, n_tokens - start)
            tokens: Any = (ctypes.c_int32 * size)(*[self._random.randrange(self._n_vocab) for _ in range(size)])
            status = self._api.llama_decode(self._loaded.context, self._api.llama_batch_get_one(tokens, size))
            if status != 0:
                said = tuple(line.text for line in self._loaded.recent)
                raise LlamaCppError(f"llama.cpp could not process {size} tokens (status {status})", log=said)
            self._api.llama_synchronize(self._loaded.context)
            self._filled += size
