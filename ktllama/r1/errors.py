"""What can be wrong with a chat template and with a conversation."""

from __future__ import annotations

from ktllama.errors import KtllamaError


class TemplateError(KtllamaError):
    """A chat template that cannot be used: its syntax, what it asks for, or more work than a prompt takes.

    ``line`` counts from 1 in the template, None where no line is to blame.
    """

    def __init__(self, reason: str, *, line: int | None = None) -> None:
        self.reason = reason
        self.line = line
        super().__init__(reason, line)

    def __str__(self) -> str:
        where = "" if self.line is None else f", line {self.line}"
        return f"the model's chat template{where}: {self.reason}"


class TemplateRefusalError(TemplateError):
    """The template itself refuses the messages (``raise_exception``); ``reason`` is what it says."""

    exit_status = 1

    def __str__(self) -> str:
        return f"the model's chat template refuses these messages: {self.reason}"


class MessagesError(KtllamaError):
    """Messages that make no prompt. ``at`` is the path of the field to blame, such as ``messages[2].content``."""

    exit_status = 1

    def __init__(self, at: str, reason: str) -> None:
        self.at = at
        self.reason = reason
        super().__init__(at, reason)

    def __str__(self) -> str:
        return f"{self.at}: {self.reason}"


class MetadataError(KtllamaError):
    """A value in a model file's metadata that cannot be what its key says."""

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        self.reason = reason
        super().__init__(key, reason)

    def __str__(self) -> str:
        return f"the model file's {self.key}: {self.reason}"
