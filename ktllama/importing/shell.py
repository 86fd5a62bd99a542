"""A command as people keep it: one string with quotes and continued lines, or a list of words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ktllama.importing.errors import CommandLineError

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_PROGRAM = re.compile(r"(?:llama[^/\\]*|server|main)", re.IGNORECASE)
_CONTINUED = re.compile(r"[\\^`][ \t]*\r?\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command in parts. ``program`` is empty where the words begin with an option."""

    program: str
    options: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def read_command(words: Sequence[str]) -> Command:
    """The parts of a command, given as words or as one word that holds all of it.

    What stands before the program is skipped if it is a wrapper such as ``numactl`` or ``sudo``; variables that are
    set there are kept.

    Raises:
        CommandLineError: for an empty command, unbalanced quotes, or a command of no llama.cpp program.
    """
    split = split_words(words[0]) if len(words) == 1 and not words[0].startswith("-") else list(words)
    if not split:
        raise CommandLineError("", "the command is empty; expected something like: llama-server -m model.gguf -ngl 99")
    environment: dict[str, str] = {}
    for index, word in enumerate(split):
        assigned = _ASSIGNMENT.fullmatch(word)
        if word.startswith("-") and index == 0:
            return Command(program="", options=tuple(split))
        if assigned:
            environment[assigned.group(1)] = assigned.group(2)
        elif _PROGRAM.fullmatch(re.split(r"[/\\]", word)[-1]):
            return Command(program=word, options=tuple(split[index + 1 :]), environment=environment)
    raise CommandLineError(
        "", f"no llama.cpp program in {shlex.join(split)[:80]!r}; expected llama-server, llama-cli or the like"
    )


def split_words(text: str) -> list[str]:
    """The words of a shell command; lines may be continued as in a POSIX shell, cmd.exe or PowerShell.

    Raises:
        CommandLineError: for unbalanced quotes.
    """
    lexer = shlex.shlex(_CONTINUED.sub(" ", text), posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    if re.search(r"\.exe\b", text, re.IGNORECASE):
        lexer.escape = ""  # a backslash is a letter of a path there
    try:
        return list(lexer)
    except ValueError as fault:
        raise CommandLineError("", f"the command's quotes do not balance ({fault})") from fault
