"""Every error that ktllama raises on purpose, under one base class.

An error carries its facts as fields; the sentence is made once, in ``__str__``. ``exit_status`` is what
the command line returns for it: 1 when the input was understood and found wrong, 2 when it could not be used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ktllama.diagnostics import Diagnostic


class KtllamaError(Exception):
    """Base class of all errors raised by ktllama."""

    exit_status: ClassVar[int] = 2


class RulesetError(KtllamaError):
    """A rule file that cannot be compiled. ``diagnostics`` holds every finding, errors first reported as such."""

    exit_status = 1

    def __init__(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        self.diagnostics = diagnostics
        super().__init__(diagnostics)

    def __str__(self) -> str:
        errors = [found for found in self.diagnostics if found.severity == "error"]
        return "\n".join(str(found) for found in errors)


class PathError(KtllamaError):
    """A file that cannot be used, and why; ``path`` is as the user gave it."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(path, reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class RuleFileError(PathError):
    """A rule file that cannot be read at all: missing, a directory, not UTF-8, no permission."""


class ModelFileError(KtllamaError):
    """A GGUF file that cannot be read or is not what it says. ``offset`` is in bytes from the file's start."""

    def __init__(self, path: str, reason: str, *, offset: int | None = None) -> None:
        self.path = path
        self.reason = reason
        self.offset = offset
        super().__init__(path, reason, offset)

    def __str__(self) -> str:
        where = "" if self.offset is None else f" (at byte {self.offset})"
        return f"{self.path}: {self.reason}{where}"


class TextFileError(PathError):
    """A text that cannot be read: a file that is missing or not UTF-8, or one without words."""


class UnsupportedModelError(KtllamaError):
    """A model whose architecture has no module names here."""

    def __init__(self, path: str, architecture: str, known: tuple[str, ...]) -> None:
        self.path = path
        self.architecture = architecture
        self.known = known
        super().__init__(path, architecture, known)

    def __str__(self) -> str:
        return (
            f"{self.path}: architecture '{self.architecture}' has no module names in ktllama yet; "
            f"known architectures: {', '.join(self.known)}"
        )


class UnknownPresetError(KtllamaError):
    """A preset name that does not exist, or no preset could be told from the rules."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason


class DeviceError(KtllamaError):
    """A device that does not exist, or a device map that cannot be understood."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason


class LlamaCppError(KtllamaError):
    """llama.cpp is missing, lacks a backend, refused a model or died. ``log`` holds its last lines."""

    def __init__(self, reason: str, *, log: tuple[str, ...] = ()) -> None:
        self.reason = reason
        self.log = log
        super().__init__(reason, log)

    def __str__(self) -> str:
        return "\n".join([self.reason, *(f"  llama.cpp: {line}" for line in self.log)])


class ReferenceModelError(PathError):
    """A model that the PyTorch reference cannot compute: its architecture or its tensors."""


class WeightError(ReferenceModelError):
    """A tensor that is missing, has another shape or type than the reference needs, or holds what is no number."""

    def __init__(self, path: str, tensor: str, reason: str) -> None:
        super().__init__(path, reason)
        self.tensor = tensor
        self.args = (path, tensor, reason)

    def __str__(self) -> str:
        return f"{self.path}: tensor '{self.tensor}' {self.reason}"


class TokensError(KtllamaError):
    """Token ids that the reference cannot compute: of a wrong shape, outside the vocabulary, past the context."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason


class MissingExtraError(KtllamaError):
    """A package that only some commands need is not installed; ``extra`` of ktllama brings it."""

    def __init__(self, package: str, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(package, extra)

    def __str__(self) -> str:
        return f"this needs {self.package}, which is not installed: pip install 'ktllama[{self.extra}]'"
