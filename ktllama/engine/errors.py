"""What the engine's client raises."""

from __future__ import annotations

from collections.abc import Mapping

from ktllama.errors import KtllamaError


class EngineFailedError(KtllamaError):
    """There is no engine and none will come: the model cannot be loaded, or the client was closed."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason


class EngineRequestError(KtllamaError):
    """A request that the engine could not do. ``code`` and ``fields`` are those of ``messages.Failed``."""

    def __init__(self, code: str, message: str, fields: Mapping[str, int | float | str]) -> None:
        self.code = code
        self.message = message
        self.fields = dict(fields)
        super().__init__(code, message)

    def __str__(self) -> str:
        return self.message
