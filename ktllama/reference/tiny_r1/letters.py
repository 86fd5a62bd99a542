"""Counting the letters of a word, and turning it round.

A word is first copied into a row of fixed length, then looked at letter by letter, each with its index. So every letter
is found by a fixed distance or by an index that occurs once, also where letters repeat.
"""

from __future__ import annotations

from random import Random

from ktllama.reference.tiny_r1.problem import Problem
from ktllama.reference.tiny_r1.words import INDEX, MOST_LETTERS, quoted, word

_HOW_MANY = (
    "How many {x}'s are in {w}?", "How many {x}'s are there in {w}?", "How many {x}s are in {w}?",
    "How many times does the letter {x} appear in {w}?", "Count the letter {x} in {w}.", "how many {x}'s in {w}",
    'How many "{x}" are in {w}?', "How often does {x} occur in {w}?", "How many {x} are in the word {w}?",
    "How many times does {x} occur in the word {w}?", "Count the {x}'s in {w}", "how many {x} in {w}?",
    'How many letters "{x}" are in {w}?', "How many letter {x}'s does {w} have?", "number of {x}'s in {w}",
)  # fmt: skip
_HOW_LONG = (
    "How many letters are in {w}?", "How many letters does {w} have?", "How long is the word {w}?",
    "Count the letters in {w}.", "How many letters are there in the word {w}?", "count the letters of {w}",
    "What is the length of {w}?", "how many letters in {w}",
)  # fmt: skip
_TURN = (
    "Reverse {w}.", "Reverse the word {w}.", "Spell {w} backwards.", "What is {w} backwards?", "reverse {w}",
    "What is {w} spelled backwards?", "Write {w} in reverse.", "Turn the word {w} around.", "Write {w} backwards",
    "How do you spell {w} backwards?", "Can you reverse {w}?", "Please reverse the word {w}", "{w} backwards",
    "What is the reverse of {w}?", "Spell the word {w} in reverse order.",
)  # fmt: skip


def counting(random: Random, ease: float) -> Problem:
    """How often a letter is in a word, or how many letters a word has."""
    text = word(random, ease)
    if random.random() < 0.2:
        return Problem(
            task="counting",
            key=f"letters {text}",
            question=random.choice(_HOW_LONG).format(w=quoted(random, text)),
            thought=f"length\n{row(text)}\n{indexed(text)}\n={len(text)}",
            answer=f"It has {len(text)} letters.",
        )
    letter = _letter(random, text)
    times = text.count(letter)
    return Problem(
        task="counting",
        key=f"{letter} {text}",
        question=random.choice(_HOW_MANY).format(x=letter, w=quoted(random, text)),
        thought="\n".join((f"count {letter}", row(text), *counted_lines(text, letter), f"={times}")),
        answer=f"The letter {letter} appears {times} time{'' if times == 1 else 's'}.",
    )


def reversal(random: Random, ease: float) -> Problem:
    """A word backwards."""
    text = word(random, ease)
    places = INDEX[: len(text)][::-1]
    return Problem(
        task="reversal",
        key=text,
        question=random.choice(_TURN).format(w=quoted(random, text)),
        thought="\n".join(("reverse", row(text), indexed(text), row(places), row(text[::-1]))),
        answer=text[::-1],
    )


def row(text: str) -> str:
    """``text``, filled up to the longest word's length: ``reward______``."""
    return text.ljust(MOST_LETTERS, "_")


def indexed(text: str) -> str:
    """Every letter after its index: ``1r2e3w4a5r6d``; 10, 11 and 12 are ``0``, ``*`` and ``#``."""
    return "".join(index + letter for index, letter in zip(INDEX, text, strict=False))


def counted_lines(text: str, letter: str) -> list[str]:
    """For each letter its index, itself beside the one sought, whether they are the same, and how many were so far."""
    lines = []
    so_far = 0
    for index, found in zip(INDEX, text, strict=False):
        so_far += found == letter
        lines.append(f"{index}{found}{letter}{'+' if found == letter else '-'}{so_far}")
    return lines


def _letter(random: Random, text: str) -> str:
    kind = random.random()
    if kind < 0.45:
        most = max(text.count(x) for x in text)
        return random.choice([x for x in text if text.count(x) == most])
    if kind < 0.85:
        return random.choice(text)
    return random.choice("abcdefghijklmnopqrstuvwxyz")
