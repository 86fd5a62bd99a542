"""How much work and text one rendering of a chat template may come to.

A template out of a model file is a program by a stranger. Counting what it does, rather than watching the clock,
makes the same template end in the same way on every machine.
"""

from __future__ import annotations

from typing import Any

from ktllama.r1.errors import TemplateError

MAX_SOURCE_CHARACTERS = 256 * 1024
MAX_TEXT_CHARACTERS = 16 * 1024 * 1024
MAX_ITEMS = 1024 * 1024
MAX_DEPTH = 64

#: One unit is an operation, or 64 characters gone through. Templates of real models spend some dozens a message.
BASE_WORK = 500_000
CHARACTERS_PER_UNIT = 64


class Limits:
    """The account of one rendering. ``input_characters`` buy work: a long conversation takes longer."""

    def __init__(self, input_characters: int) -> None:
        self._work = BASE_WORK + input_characters
        self._output = MAX_TEXT_CHARACTERS

    def charge(self, units: int) -> None:
        """Pay for work."""
        self._work -= units
        if self._work < 0:
            raise TemplateError("it does more work than a prompt takes; a loop or recursion in it may not end")

    def charge_value(self, value: object) -> None:
        """Pay for an operation that goes over the characters of a text or the items of a list once."""
        if isinstance(value, str):
            self.charge(1 + len(value) // CHARACTERS_PER_UNIT)
        elif isinstance(value, (list, tuple, dict)):
            self.charge(1 + len(value) // 8)
        else:
            self.charge(1)

    def charge_deep(self, value: object, depth: int = 0) -> int:
        """Pay for an operation that goes over everything in ``value``; how many characters that is at least.

        Lists that hold one list many times are small in memory and endless on paper, so this counts the paper.
        """
        if isinstance(value, str):
            self.charge_value(value)
            return len(value)
        self.charge(1)
        if depth > MAX_DEPTH:
            raise TemplateError("it nests values too deeply")
        if isinstance(value, dict):
            return sum(self.charge_deep(key) + self.charge_deep(item, depth + 1) for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return sum(self.charge_deep(item, depth + 1) + 1 for item in value)
        if type(value).__name__ == "Namespace":
            raise TemplateError("it uses a namespace as a value")
        return 1

    def output(self, n_characters: int) -> None:
        """Account for text written, captured text included."""
        self.charge(n_characters // CHARACTERS_PER_UNIT)
        self._output -= n_characters
        if self._output < 0:
            raise TemplateError(f"it writes more than {MAX_TEXT_CHARACTERS} characters")


def check_length(n_characters: int) -> None:
    """Refuse a text before it is made. Raises TemplateError."""
    if n_characters > MAX_TEXT_CHARACTERS:
        raise TemplateError(f"it makes a text of more than {MAX_TEXT_CHARACTERS} characters")


def check_items(n_items: int) -> None:
    """Refuse a list before it is made. Raises TemplateError."""
    if n_items > MAX_ITEMS:
        raise TemplateError(f"it makes a list of more than {MAX_ITEMS} items")


def checked(value: Any) -> Any:
    """``value``, which an operation made, unless it is too large."""
    if isinstance(value, str):
        check_length(len(value))
    elif isinstance(value, (list, tuple, dict)):
        check_items(len(value))
    elif isinstance(value, int) and value.bit_length() > 4096:
        raise TemplateError("it makes a number of more than 4096 bits")
    return value
