"""Why a command line could not be imported."""

from __future__ import annotations

from ktllama.errors import KtllamaError


class CommandLineError(KtllamaError):
    """A llama.cpp command line that cannot be understood, or that llama.cpp itself would refuse.

    ``flag`` is the flag as written, empty where no single one is to blame.
    """

    def __init__(self, flag: str, reason: str) -> None:
        self.flag = flag
        self.reason = reason
        super().__init__(flag, reason)

    def __str__(self) -> str:
        return f"{self.flag}: {self.reason}" if self.flag else self.reason


class RoundTripError(KtllamaError):
    """Rules that would not place what the command line places: a bug here, reported instead of written."""

    def __init__(self, what: tuple[str, ...]) -> None:
        self.what = what
        super().__init__(what)

    def __str__(self) -> str:
        shown = "; ".join(self.what[:3]) + (f"; and {len(self.what) - 3} more" if len(self.what) > 3 else "")
        return f"the rules made from this command line do not place what it places ({shown}); please report it"
