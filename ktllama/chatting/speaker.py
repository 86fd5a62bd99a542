"""Who answers: what a session asks of an engine or of a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ktllama.errors import KtllamaError


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A piece of an answer. It is any number of tokens; only the end counts them."""

    kind: Literal["reasoning", "content"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An answer's end: why, and its tokens, None where nobody counted them."""

    reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Messages as the API takes them, and the request's other fields."""

    messages: Sequence[Mapping[str, str]]
    fields: Mapping[str, Any] = field(default_factory=dict)


class SpeakerError(KtllamaError):
    """No answer, and why; the session goes on."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason


class Speaker(Protocol):
    """Answers questions, one at a time."""

    @property
    def name(self) -> str:
        """The model's."""

    def plan(self) -> tuple[str, ...]:
        """Where the model is, in lines. Raises SpeakerError."""

    def answer(self, question: Question, hear: Callable[[Said], None]) -> Ended:
        """Tell ``hear`` the answer as it comes. KeyboardInterrupt gives the generation up. Raises SpeakerError."""

    def close(self) -> None:
        """Leave; safe to call twice."""
