"""Embeddings from a second context of the same weights, so that the cells of running requests are never touched.

The context gives the final hidden state of every token (``pooling_type`` none); they are pooled here, as the model
file says: their mean, the first or the last. It is made when the first embedding is asked for, and again when a prompt
is longer than what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ktllama.errors import LlamaCppError
from ktllama.runtime.batch import Batch, output_rows
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.load import LoadedModel
from ktllama.runtime.params import context_params

EMBEDDING_BATCH = 64  # tokens; every one is an output here, and an output costs a row of logits
_LEAST_CELLS = 512


class Embedder:
    """Makes vectors of length 1 and dimension ``n_embd``; ``n_ctx`` is the longest prompt in tokens."""

    def __init__(self, loaded: LoadedModel, *, pooling: str, n_ctx: int) -> None:
        self._loaded = loaded
        self._api = loaded.library.api
        self._pooling = pooling
        self._n_ctx = n_ctx
        self._n_embd: int = self._api.llama_model_n_embd(loaded.model)
        self._batch = Batch(self._api, EMBEDDING_BATCH)
        self._context: Any = None
        self._n_cells = 0
        self._total: npt.NDArray[np.float64] = np.zeros(self._n_embd)  # what is pooled so far, of the prompt's
        self._n_computed = 0  # first tokens; 0 between prompts

    def embed(self, prompt: Sequence[int], start: int, end: int) -> list[float] | None:
        """Compute tokens ``start`` to ``end`` of a prompt; its vector once that is all of it.

        Raises:
            ValueError: for an empty prompt, one that is too long, or a part that does not go on from the last one.
            LlamaCppError: when llama.cpp fails.
        """
        if not 0 < len(prompt) <= self._n_ctx:
            raise ValueError(f"the prompt has {len(prompt)} tokens; 1 to {self._n_ctx} can be embedded")
        if start not in (0, self._n_computed) or not start < end <= len(prompt):
            raise ValueError(f"tokens {start} to {end} do not go on from {self._n_computed} of {len(prompt)}")
        if start == 0:
            self._begin(len(prompt))
        for first in range(start, end, EMBEDDING_BATCH):
            last = min(first + EMBEDDING_BATCH, end)
            self._pool(self._states(prompt[first:last], first), first)
            self._n_computed = last
        return self._vector() if end == len(prompt) else None

    def _begin(self, n_tokens: int) -> None:
        self._make_room(n_tokens)
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        self._total, self._n_computed = np.zeros(self._n_embd), 0

    def _pool(self, states: npt.NDArray[np.float32], start: int) -> None:
        """Take in the hidden states of a chunk."""
        if self._pooling == "mean":
            self._total += states.sum(axis=0, dtype=np.float64)
        elif self._pooling == "last" or start == 0:
            self._total = states[-1 if self._pooling == "last" else 0].astype(np.float64)

    def _vector(self) -> list[float]:
        self._n_computed = 0
        length = math.sqrt(float(self._total @ self._total))
        vector: list[float] = (self._total / length if length else self._total).tolist()
        return vector

    def close(self) -> None:
        """Free the context. Safe to call twice."""
        if self._context:
            self._api.llama_free(self._context)
            self._context, self._n_cells, self._n_computed = None, 0, 0

    def _states(self, tokens: Sequence[int], start: int) -> npt.NDArray[np.float32]:
        """The hidden states (tokens, n_embd) of a chunk."""
        self._batch.fill_prompt(tokens, start)
        status = self._api.llama_decode(self._context, self._batch.value)
        if status != 0:
            raise LlamaCppError(f"llama.cpp could not embed {len(tokens)} tokens (status {status})")
        states = self._api.llama_get_embeddings(self._context)
        if not states:
            raise LlamaCppError("llama.cpp gives no embeddings for this model")
        return output_rows(states, len(tokens), self._n_embd)

    def _make_room(self, n_tokens: int) -> None:
        if n_tokens <= self._n_cells:
            return
        self.close()
        n_cells = min(self._n_ctx, max(_LEAST_CELLS, 1 << (n_tokens - 1).bit_length()))
        main = self._loaded.options
        options = ContextOptions(
            n_ctx=n_cells,
            n_batch=EMBEDDING_BATCH,
            n_ubatch=EMBEDDING_BATCH,
            type_k=main.type_k,
            type_v=main.type_v,
            flash_attn=main.flash_attn,
            n_threads=main.n_threads,
        )
        params = context_params(self._loaded.library, self._loaded.settings, options)
        params.embeddings = True
        params.pooling_type = self._api.LLAMA_POOLING_TYPE_NONE
        self._context = self._api.llama_init_from_model(self._loaded.model, params)
        if not self._context:
            raise LlamaCppError(f"llama.cpp refused to make a context of {n_cells} tokens for embeddings")
        self._n_cells = n_cells
