"""Embedding requests, computed in parts between the steps of the others."""

from __future__ import annotations

from dataclasses import dataclass

from ktllama.engine.messages import Embedded


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """An Embed request whose prompts are token ids."""

    request_id: str
    prompts: tuple[tuple[int, ...], ...]


class EmbeddingJob:
    """An embedding request and the vectors that it has so far."""

    def __init__(self, request: Embedding) -> None:
        self.request = request
        self.vectors: list[tuple[float, ...]] = []

    def next_prompts(self, n_tokens: int) -> list[tuple[int, ...]]:
        """The next prompts that fit `n_tokens`, at least one."""
        prompts: list[tuple[int, ...]] = []
        for prompt in self.request.prompts[len(self.vectors) :]:
            n_tokens -= len(prompt)
            if prompts and n_tokens < 0:
                break
            prompts.append(prompt)
        return prompts

    def answer(self) -> Embedded:
        """The event, once all vectors are there."""
        n_tokens = sum(len(prompt) for prompt in self.request.prompts)
        return Embedded(request_id=self.request.request_id, vectors=tuple(self.vectors), prompt_tokens=n_tokens)
