"""Embedding requests, computed in parts between the steps of the others."""

from __future__ import annotations

from dataclasses import dataclass

from ktllama.engine.executor import Executor
from ktllama.engine.messages import Embedded


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """An Embed request whose prompts are token ids."""

    request_id: str
    prompts: tuple[tuple[int, ...], ...]


class EmbeddingJob:
    """An embedding request, the vectors that it has so far, and how far the next one is."""

    def __init__(self, request: Embedding) -> None:
        self.request = request
        self.vectors: list[tuple[float, ...]] = []
        self._n_computed = 0  # tokens of the prompt whose vector is next

    @property
    def is_done(self) -> bool:
        """Whether all vectors are there."""
        return len(self.vectors) == len(self.request.prompts)

    def compute(self, executor: Executor, n_tokens: int) -> None:
        """Compute up to `n_tokens`. A prompt is cut where it alone is longer, so its parts depend on nothing else."""
        room = n_tokens
        while not self.is_done:
            prompt, start = self.request.prompts[len(self.vectors)], self._n_computed
            end = min(len(prompt), start + n_tokens)
            if end - start > room:
                return
            room -= end - start
            vector = executor.embed(prompt, start, end)
            self._n_computed = end
            if vector is not None:
                self.vectors.append(tuple(vector))
                self._n_computed = 0

    def answer(self) -> Embedded:
        """The event, once all vectors are there."""
        n_tokens = sum(len(prompt) for prompt in self.request.prompts)
        return Embedded(request_id=self.request.request_id, vectors=tuple(self.vectors), prompt_tokens=n_tokens)
