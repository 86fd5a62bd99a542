"""Sums, differences and products, worked out column by column on numbers of a fixed number of digits.

A column ends in two digits: what is carried, and what is written. The lines of a sum are the same wherever one is
needed, so that what a product's sum teaches, sums know too.
"""

from __future__ import annotations

from random import Random

from ktllama.reference.tiny_r1.comparison import columns, near, number, verdict
from ktllama.reference.tiny_r1.problem import Problem

DIGITS = 4

_SUMS = (
    "What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} =", "{a}+{b}=?", "Add {a} and {b}.", "Add {b} to {a}.",
    "What is the sum of {a} and {b}?", "How much is {a} plus {b}?", "What is {a} plus {b}?", "Calculate {a} + {b}.",
    "Compute {a}+{b}", "what is {a}+{b}", "Please add {a} and {b}", "What's {a} + {b}?", "{a} plus {b}",
    "I have {a} apples and get {b} more. How many do I have?", "Can you add {a} and {b}?", "Sum {a} and {b}",
)  # fmt: skip
_DIFFERENCES = (
    "What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} =", "{a}-{b}=?", "Subtract {b} from {a}.",
    "What is the difference of {a} and {b}?", "How much is {a} minus {b}?", "What is {a} minus {b}?",
    "Calculate {a} - {b}.", "Compute {a}-{b}", "what is {a}-{b}", "Take {b} away from {a}.", "What's {a} - {b}?",
    "{a} minus {b}", "Please subtract {b} from {a}", "Can you subtract {b} from {a}?",
)  # fmt: skip
_PRODUCTS = (
    "What is {a} * {b}?", "{a} * {b}", "{a}*{b}", "{a} * {b} =", "{a}*{b}=?", "Multiply {a} by {b}.",
    "What is {a} times {b}?", "How much is {a} times {b}?", "{a} x {b}", "What is {a} x {b}?", "Calculate {a} * {b}.",
    "Compute {a}*{b}", "what is {a}*{b}", "What is the product of {a} and {b}?", "Multiply {a} and {b}",
    "What's {a} * {b}?", "{a} times {b}", "{a} × {b}", "Can you multiply {a} by {b}?",
)  # fmt: skip


def addition(random: Random, _ease: float) -> Problem:
    """Two numbers of up to four digits."""
    a, b = number(random, DIGITS), number(random, DIGITS)
    return Problem(
        task="addition",
        key=f"{a} {b}",
        question=random.choice(_SUMS).format(a=a, b=b),
        thought="add\n" + "\n".join(sum_lines(a, b)),
        answer=f"{a} + {b} = {a + b}",
    )


def subtraction(random: Random, _ease: float) -> Problem:
    """Two numbers of up to four digits, often near each other; the result may be negative."""
    a, b = near(random, DIGITS) if random.random() < 0.35 else (number(random, DIGITS), number(random, DIGITS))
    if a < b and random.random() < 0.4:
        a, b = b, a
    return Problem(
        task="subtraction",
        key=f"{a} {b}",
        question=random.choice(_DIFFERENCES).format(a=a, b=b),
        thought="subtract\n" + "\n".join(difference_lines(a, b)),
        answer=f"{a} - {b} = {a - b}",
    )


def multiplication(random: Random, ease: float) -> Problem:
    """Two numbers of up to two digits."""
    easier = 0.3 * max(0.0, ease)
    a = random.randrange(10) if random.random() < 0.2 + easier else random.randrange(10, 100)
    b = random.randrange(10) if random.random() < 0.25 + easier else random.randrange(10, 100)
    return Problem(
        task="multiplication",
        key=f"{a} {b}",
        question=random.choice(_PRODUCTS).format(a=a, b=b),
        thought="multiply\n" + "\n".join(product_lines(a, b)),
        answer=f"{a} * {b} = {a * b}",
    )


def sum_lines(a: int, b: int) -> list[str]:
    """``0123+4567``, a line ``3+7+0=10`` for each column from the right, and ``=04690``."""
    lines = [f"{a:0{DIGITS}}+{b:0{DIGITS}}"]
    carry = 0
    for x, y in _columns_from_right(a, b):
        made = x + y + carry
        lines.append(f"{x}+{y}+{carry}={made:02}")
        carry = made // 10
    return [*lines, f"={a + b:0{DIGITS + 1}}"]


def difference_lines(a: int, b: int) -> list[str]:
    """Which is larger, digit by digit from the left; then the smaller from the larger, with the sign found."""
    compared = columns(f"{a:0{DIGITS}}", f"{b:0{DIGITS}}")
    sign = "-" if verdict(compared) == "<" else "+"
    large, small = max(a, b), min(a, b)
    lines = [f"{a:0{DIGITS}}?{b:0{DIGITS}}", compared, f"{sign}:{large:0{DIGITS}}-{small:0{DIGITS}}"]
    borrow = 0
    for x, y in _columns_from_right(large, small):
        made = x - y - borrow
        lines.append(f"{x}-{y}-{borrow}={int(made < 0)}{made % 10}")
        borrow = int(made < 0)
    return [*lines, f"={sign}{large - small:0{DIGITS}}"]


def product_lines(a: int, b: int) -> list[str]:
    """A partial product for each digit of ``b``, and their sum where there are two."""
    lines = [f"{a:02}*{b:02}", *_partial_product_lines(a, b % 10, shift=0)]
    if b < 10:
        return lines
    return [*lines, *_partial_product_lines(a, b // 10, shift=1), *sum_lines(a * (b % 10), a * (b // 10) * 10)]


def _partial_product_lines(a: int, digit: int, *, shift: int) -> list[str]:
    lines = []
    carry = 0
    for x in (a % 10, a // 10):
        made = x * digit + carry
        lines.append(f"{x}*{digit}+{carry}={made:02}")
        carry = made // 10
    return [*lines, f"={a * digit * 10**shift:0{DIGITS}}"]


def _columns_from_right(a: int, b: int) -> list[tuple[int, int]]:
    return [(a // 10**k % 10, b // 10**k % 10) for k in range(DIGITS)]
