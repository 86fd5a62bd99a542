"""Embedding requests, computed in parts between the steps of the others."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

from ktllama.engine.executor import Executor
from ktllama.engine.messages import Embedded, Failed

_log = logging.getLogger("ktllama.engine")


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


class EmbeddingQueue:
    """Embedding requests in order of arrival; the first is being computed."""

    def __init__(self) -> None:
        self._jobs: deque[EmbeddingJob] = deque()

    def __len__(self) -> int:
        """Requests that are not answered yet."""
        return len(self._jobs)

    def add(self, request: Embedding) -> None:
        """Queue a request."""
        self._jobs.append(EmbeddingJob(request))

    def remove(self, request_id: str) -> bool:
        """Take a request out; whether it was there."""
        job = next((job for job in self._jobs if job.request.request_id == request_id), None)
        if job is None:
            return False
        self._jobs.remove(job)
        return True

    def compute(self, executor: Executor) -> Embedded | Failed | None:
        """One batch of the first request, so that nobody waits longer for it; the request's end, if that was it."""
        job = self._jobs[0]
        try:
            job.compute(executor, executor.embedding_batch)
        except Exception as error:
            _log.exception("embeddings failed: %s", error)
            self._jobs.popleft()
            message = f"the embeddings failed: {error}"
            return Failed(request_id=job.request.request_id, code="engine_error", message=message)
        if not job.is_done:
            return None
        self._jobs.popleft()
        return job.answer()
