"""One tool call, read character by character behind its opener, in each format."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Protocol

from ktllama.r1.delta import BLANKS
from ktllama.r1.json_reader import JsonReader
from ktllama.r1.surrogates import well_formed
from ktllama.r1.tool_formats import SEPARATOR

_MAX_NAME_CHARACTERS = 256
_FENCE = "```"


@dataclass(frozen=True, slots=True)
class Step:
    """What one character added: the name once it is known, and text of the arguments. ``ok`` is False where the
    character cannot stand here; it was not taken then."""

    ok: bool = True
    name: str | None = None
    arguments: str = ""


_TAKEN, _REFUSED = Step(), Step(ok=False)


class CallReader(Protocol):
    """Reads a call up to the end of its JSON."""

    complete: bool

    def feed(self, character: str) -> Step:
        """Take a character."""


class DeepSeekReader:
    """``TYPE<sep>NAME``, a fenced JSON object (R1, V3); or ``NAME<sep>`` and the object (V3.1).

    Which of them shows behind the separator: an object or a fence means that the name came before it.
    """

    def __init__(self) -> None:
        self._head = ""
        self._name: str | None = None
        self._line = ""
        self._fence = ""
        self._json: JsonReader | None = None
        self.complete = False

    def feed(self, character: str) -> Step:
        """Take a character."""
        if self._json is not None:
            return self._argument(self._json, character)
        if not self._head.endswith(SEPARATOR):
            self._head += character
            too_long = len(self._head) > _MAX_NAME_CHARACTERS
            return _REFUSED if too_long or character in "\n{" else _TAKEN
        if self._name is None:
            return self._name_character(character)
        return self._before_object(character)

    def _name_character(self, character: str) -> Step:
        if not self._line.strip(BLANKS) and character in "{`":
            self._name = self._head.removesuffix(SEPARATOR).strip(BLANKS)
            return self._before_object(character)
        if character in "\n{`" and self._line.strip(BLANKS):
            self._name = self._line.strip(BLANKS)
            return self._before_object(character)
        self._line += character
        return _REFUSED if len(self._line) > _MAX_NAME_CHARACTERS or character == "<" else _TAKEN

    def _before_object(self, character: str) -> Step:
        """The fence, ``json`` behind it, and blanks."""
        if character == "{" and self._name:
            self._json = JsonReader()
            self._json.feed(character)
            return Step(name=self._name, arguments=character)
        if character in BLANKS:
            return _TAKEN
        self._fence += character
        return _TAKEN if f"{_FENCE}json".startswith(self._fence) else _REFUSED

    def _argument(self, reader: JsonReader, character: str) -> Step:
        text = reader.feed(character)
        self.complete = reader.complete
        return _REFUSED if text is None else Step(arguments=text)


class HermesReader:
    """``{"name": NAME, "arguments": OBJECT}``. The arguments stream where the name comes first, as it does."""

    _NAME_FIRST = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"(?:arguments|parameters)"\s*:\s*\{')

    def __init__(self) -> None:
        self._json = JsonReader()
        self._text = ""
        self._streams = False
        self._streamed = False
        self.complete = False

    def feed(self, character: str) -> Step:
        """Take a character."""
        depth = self._json.depth
        text = self._json.feed(character)
        if text is None:
            return _REFUSED
        if self._streams:
            self._streams = self._json.depth > 1
            return Step(arguments=text)
        self._text += text
        if character == "{" and depth == 1 and not self._streamed:
            return self._begun()
        if not self._json.complete:
            return _TAKEN
        self.complete = True
        return _TAKEN if self._streamed else self._whole()

    def _begun(self) -> Step:
        match = self._NAME_FIRST.fullmatch(self._text)
        if match is None:
            return _TAKEN
        self._streams = self._streamed = True
        return Step(name=well_formed(json.loads(match[1])), arguments="{")

    def _whole(self) -> Step:
        try:
            call = json.loads(self._text)
            arguments = call.get("arguments", call.get("parameters", {}))
            if isinstance(arguments, str):  # some models write the object as a string
                arguments = json.loads(arguments)
        except (ValueError, RecursionError):  # ValueError also of a number of more digits than Python reads
            return _REFUSED
        name = call.get("name")
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return _REFUSED
        text = json.dumps(arguments, ensure_ascii=False)
        # Half of a surrogate pair stays the escape that it was, as in arguments that stream.
        return Step(name=well_formed(name), arguments=text if well_formed(text) == text else json.dumps(arguments))
