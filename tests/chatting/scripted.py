"""A speaker that says what a test wrote, and a display that remembers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ktllama.chatting.speaker import Ended, Question, Said, SpeakerError

Piece = Said | type[KeyboardInterrupt] | str


def thought(text: str) -> Said:
    return Said(kind="reasoning", text=text)


def spoken(text: str) -> Said:
    return Said(kind="content", text=text)


class ScriptedSpeaker:
    """Each answer is a list of pieces; KeyboardInterrupt among them is Ctrl-C, a string is a failure."""

    name = "scripted"

    def __init__(self, *answers: Sequence[Piece]) -> None:
        self.answers = list(answers)
        self.asked: list[Question] = []

    def plan(self) -> tuple[str, ...]:
        return ("CPU: everything",)

    def answer(self, question: Question, hear: Callable[[Said], None]) -> Ended:
        self.asked.append(question)
        for piece in self.answers.pop(0):
            if isinstance(piece, str):
                raise SpeakerError(piece)
            if isinstance(piece, Said):
                hear(piece)
            else:
                raise piece
        return Ended(reason="stop", prompt_tokens=3, completion_tokens=2, reasoning_tokens=1)

    def close(self) -> None:
        """Nothing."""


class Remembering:
    """A display."""

    def __init__(self) -> None:
        self.folds = True
        self.told: list[str] = []
        self.ends: list[Ended | None] = []
        self.broken_off = 0

    def begin(self) -> None:
        """Nothing."""

    def hear(self, said: Said) -> None:
        """Nothing."""

    def end(self, ended: Ended | None) -> None:
        self.ends.append(ended)

    def break_off(self) -> None:
        self.broken_off += 1

    def tell(self, text: str) -> None:
        self.told.append(text)


def reading(*lines: str) -> Callable[[str], str]:
    """A reader of these lines; "^C" is Ctrl-C."""
    waiting = list(lines)

    def read(prompt: str) -> str:
        if not waiting:
            raise EOFError
        line = waiting.pop(0)
        if line == "^C":
            raise KeyboardInterrupt
        return line

    return read
