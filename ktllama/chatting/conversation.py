"""What was said so far, and how it is kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question and its answer. ``thinking`` is kept for the reader; the model never sees it again."""

    question: str
    thinking: str
    answer: str


class Conversation:
    """The system prompt and the turns; a question without an answer is remembered, to be asked again."""

    def __init__(self, system: str = "") -> None:
        self.system = system
        self.turns: list[Turn] = []
        self.unanswered = ""

    def asked(self, question: str) -> list[dict[str, str]]:
        """The messages of a request that ends with ``question``."""
        self.unanswered = question
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return [*messages, {"role": "user", "content": question}]

    def answered(self, thinking: str, answer: str) -> None:
        """Keep the answer to the last question; thinking alone is no answer, so the question stays open."""
        if answer.strip():
            self.turns.append(Turn(question=self.unanswered, thinking=thinking, answer=answer))
            self.unanswered = ""

    def again(self) -> str:
        """The last question, whose answer, if any, is forgotten; empty if nothing was asked."""
        if not self.unanswered and self.turns:
            self.unanswered = self.turns.pop().question
        return self.unanswered

    def reset(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns.clear()
        self.unanswered = ""

    def as_json(self) -> str:
        """The messages as the API takes them, with the thinking beside the answers."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            thinking = {"reasoning_content": turn.thinking} if turn.thinking else {}
            messages.append({"role": "assistant", **thinking, "content": turn.answer})
        return json.dumps({"messages": messages}, indent=1, ensure_ascii=False) + "\n"

    def as_markdown(self) -> str:
        """For people: a heading a part, the thinking as a quotation."""
        parts = [f"## System\n\n{self.system}"] if self.system else []
        for turn in self.turns:
            parts.append(f"## User\n\n{turn.question}")
            quoted = "\n".join(f"> {line}".rstrip() for line in turn.thinking.strip().splitlines())
            parts.append("## Assistant\n\n" + (f"{quoted}\n\n" if quoted else "") + turn.answer.strip())
        return "\n\n".join(parts) + "\n"
