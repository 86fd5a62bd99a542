"""Sorting a few numbers or words: find the first of what remains, move it, and write the list again.

Everything in the list has a letter, by which it is found: ``|A045B007C310`` becomes ``B007|A045C310`` after the
comparisons ``<AB00=40>B`` and ``<BC03<B``: what is sought, the best so far, the next one, the characters of both side
by side until they differ, and which is better.
"""

from __future__ import annotations

from random import Random

from ktllama.reference.tiny_r1.comparison import columns, number, verdict
from ktllama.reference.tiny_r1.problem import Problem
from ktllama.reference.tiny_r1.words import quoted, word

DIGITS = 3
MOST_NUMBERS = 5
MOST_WORDS = 4
LONGEST_WORD = 8

_NUMBERS_UP = (
    "Sort {l}.", "Sort these numbers: {l}", "Sort the numbers {l}.", "sort {l}", "Sort {l} in ascending order.",
    "Put these numbers in order: {l}", "Sort from smallest to largest: {l}", "Order these numbers: {l}.",
    "Arrange {l} from smallest to largest.", "Please sort {l}", "Can you sort {l}?", "Sort the list {l}",
)  # fmt: skip
_NUMBERS_DOWN = (
    "Sort {l} in descending order.", "Sort from largest to smallest: {l}",
    "Sort these numbers in descending order: {l}",
    "Arrange {l} from largest to smallest.", "Order from largest to smallest: {l}", "sort {l} descending",
)  # fmt: skip
_WORDS_UP = (
    "Sort {l}.", "Sort these words: {l}", "Sort the words {l}.", "Sort {l} alphabetically.", "Alphabetize {l}.",
    "Put these words in alphabetical order: {l}", "sort alphabetically: {l}", "Sort these words alphabetically: {l}.",
    "Arrange in alphabetical order: {l}", "Put {l} in alphabetical order.", "Please sort the words {l}",
)  # fmt: skip
_WORDS_DOWN = ("Sort {l} in reverse alphabetical order.", "Sort these words from z to a: {l}")


def number_sorting(random: Random, ease: float) -> Problem:
    """Two to five numbers of up to three digits, upwards or downwards."""
    numbers = _numbers(random, _how_many(random, ease, MOST_NUMBERS))
    goal = ">" if random.random() < 0.25 else "<"
    return Problem(
        task="sorting numbers",
        key=" ".join(map(str, numbers)),
        question=random.choice(_NUMBERS_DOWN if goal == ">" else _NUMBERS_UP).format(
            l=_listed(random, [str(n) for n in numbers])
        ),
        thought="\n".join((f"sort {goal}", *sorting_lines([f"{n:0{DIGITS}}" for n in numbers], goal))),
        answer=", ".join(map(str, sorted(numbers, reverse=goal == ">"))),
    )


def word_sorting(random: Random, ease: float) -> Problem:
    """Two to four words, alphabetically or the other way round."""
    words = _words(random, _how_many(random, ease, MOST_WORDS), ease)
    goal = ">" if random.random() < 0.12 else "<"
    shown = [quoted(random, w) for w in words] if random.random() < 0.1 else words
    return Problem(
        task="sorting words",
        key=" ".join(words),
        question=random.choice(_WORDS_DOWN if goal == ">" else _WORDS_UP).format(l=_listed(random, shown)),
        thought="\n".join((f"sort {goal}", *sorting_lines(words, goal))),
        answer=", ".join(sorted(words, reverse=goal == ">")),
    )


def sorting_lines(texts: list[str], goal: str) -> list[str]:
    """The list after every move, and the comparisons between."""
    done: list[tuple[str, str]] = []
    left = [(chr(ord("A") + place), text) for place, text in enumerate(texts)]
    lines = [_state(done, left)]
    while left:
        best = left[0]
        for other in left[1:]:
            compared = _compared(best[1], other[1])
            winner = best if verdict(compared) in (goal, "=") else other
            lines.append(f"{goal}{best[0]}{other[0]}{compared}{winner[0]}")
            best = winner
        left.remove(best)
        done.append(best)
        lines.append(_state(done, left))
    return lines


def _state(done: list[tuple[str, str]], left: list[tuple[str, str]]) -> str:
    return "".join(label + text for label, text in done) + "|" + "".join(label + text for label, text in left)


def _compared(a: str, b: str) -> str:
    """Columns of two texts; the end of a word counts as ``_``, which comes before every letter."""
    length = max(len(a), len(b)) + (len(a) != len(b) or a.isalpha())
    return columns(a.ljust(length, "_"), b.ljust(length, "_"))


def _how_many(random: Random, ease: float, most: int) -> int:
    if random.random() < 0.5 * ease:
        return int(random.choice((2, 2, 3)))
    return int(random.choice((2, 3, 3, 4, 4, *range(3, most + 1))))


def _numbers(random: Random, n: int) -> list[int]:
    digits = random.choice((1, 2, 2, 3, 3, 3))
    made: list[int] = []
    while len(made) < n:
        if made and random.random() < 0.25:
            made.append(near_one(random, random.choice(made), digits))
        else:
            made.append(number(random, digits))
    return made


def near_one(random: Random, other: int, digits: int) -> int:
    """A number that differs little from ``other``, or is the same now and then."""
    highest: int = 10**digits - 1
    return min(highest, max(0, other + random.randint(-9, 9)))


def _words(random: Random, n: int, ease: float) -> list[str]:
    longest = random.choice((4, 6, LONGEST_WORD, LONGEST_WORD))
    made: list[str] = []
    while len(made) < n:
        text = word(random, ease * 0.5, longest)
        if made and random.random() < 0.2:
            other = random.choice(made)
            kept = random.randint(1, min(3, len(other)))
            text = (other[:kept] + text)[:longest]
        if text not in made:
            made.append(text)
    return made


def _listed(random: Random, items: list[str]) -> str:
    kind = random.random()
    if kind < 0.5:
        return ", ".join(items)
    if kind < 0.75:
        return ", ".join(items[:-1]) + " and " + items[-1]
    return " ".join(items) if kind < 0.9 else ",".join(items)
