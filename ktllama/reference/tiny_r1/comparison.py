"""Which of two numbers is larger, digit by digit from the left until two differ."""

from __future__ import annotations

from random import Random

from ktllama.reference.tiny_r1.problem import Problem

DIGITS = 4

_WHICH = {
    "larger": (
        "Which is larger, {a} or {b}?", "Which number is bigger, {a} or {b}?", "Which is greater: {a} or {b}?",
        "What is larger, {a} or {b}?", "Compare {a} and {b}.", "compare {a} and {b}", "Which is more, {a} or {b}?",
        "{a} or {b}, which is larger?", "Which one is bigger, {a} or {b}?", "What is the larger of {a} and {b}?",
        "Tell me the maximum of {a} and {b}.",
    ),
    "smaller": (
        "Which is smaller, {a} or {b}?", "Which number is smaller, {a} or {b}?", "Which is less, {a} or {b}?",
        "What is smaller, {a} or {b}?", "{a} or {b}, which is smaller?", "What is the smaller of {a} and {b}?",
        "Tell me the minimum of {a} and {b}.",
    ),
}  # fmt: skip
_WHETHER = {
    ">": (
        "Is {a} larger than {b}?", "Is {a} greater than {b}?", "Is {a} bigger than {b}?", "{a} > {b}?",
        "Is {a} more than {b}?", "Is {a} > {b}?",
    ),
    "<": ("Is {a} smaller than {b}?", "Is {a} less than {b}?", "{a} < {b}?", "Is {a} < {b}?"),
    "=": ("Is {a} equal to {b}?", "Are {a} and {b} equal?", "Is {a} the same as {b}?", "{a} = {b}?"),
}  # fmt: skip


def comparison(random: Random, ease: float) -> Problem:
    """Two numbers of up to four digits: which is larger or smaller, or whether one is."""
    kind = random.random()
    a, b = near(random, DIGITS) if kind < 0.45 - 0.2 * ease else (number(random, DIGITS), number(random, DIGITS))
    if kind > 0.9:
        b = a
    compared = columns(f"{a:0{DIGITS}}", f"{b:0{DIGITS}}")
    found = verdict(compared)
    if random.random() < 0.6:
        goal = random.choice(("larger", "larger", "smaller"))
        question = random.choice(_WHICH[goal])
        better = max(a, b) if goal == "larger" else min(a, b)
        head, tail = goal, "same" if found == "=" else f"{better:0{DIGITS}}"
        answer = "They are equal." if found == "=" else f"{better} is {goal}."
    else:
        goal = random.choice("><=")
        question = random.choice(_WHETHER[goal])
        head, tail = f"is {goal}", "yes" if found == goal else "no"
        answer = f"{tail.capitalize()}, {a} {found} {b}."
    return Problem(
        task="comparison",
        key=f"{a} {b}",
        question=question.format(a=a, b=b),
        thought=f"{head}\n{a:0{DIGITS}}?{b:0{DIGITS}}\n{compared}\n{tail}",
        answer=answer,
    )


def columns(a: str, b: str) -> str:
    """The characters of two texts of one length side by side, each pair with its verdict, until two differ.

    ``0456`` and ``0123`` give ``00=41>``.
    """
    made = ""
    for x, y in zip(a, b, strict=True):
        made += x + y + ("=" if x == y else "<" if x < y else ">")
        if x != y:
            break
    return made


def verdict(compared: str) -> str:
    """``<``, ``=`` or ``>``: the last of the columns decides."""
    return compared[-1]


def number(random: Random, digits: int) -> int:
    """A number of at most so many digits; short ones are as frequent as long ones, but for the shortest."""
    length = random.choice((1, *range(2, digits + 1), *range(2, digits + 1)))
    return random.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)


def near(random: Random, digits: int) -> tuple[int, int]:
    """Two numbers that differ late: by little, or in one or two digits, or by an exchange of digits."""
    a = number(random, digits)
    kind = random.random()
    if kind < 0.3:
        return a, min(10**digits - 1, max(0, a + random.randint(-12, 12)))
    places = [int(c) for c in str(a)]
    if kind < 0.5:
        random.shuffle(places)
    else:
        for _ in range(random.choice((1, 2))):
            places[random.randrange(len(places))] = random.randrange(10)
    return a, int("".join(map(str, places)))
