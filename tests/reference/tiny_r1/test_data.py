"""The problems: their answers are right, their working leads there, and none that is held out is trained on."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

from ktllama.reference.tiny_r1 import arithmetic, comparison, letters, mix, sorting, words
from ktllama.reference.tiny_r1.problem import HELD_OUT_ONE_IN, Problem, draw
from ktllama.reference.tiny_r1.template import ASSISTANT, END, THINK, THINK_END, USER


def problems(task: str, n: int = 400, ease: float = 0.0) -> list[Problem]:
    random = Random(f"test {task}")
    return [mix.TASKS[task][0](random, ease) for _ in range(n)]


@pytest.mark.parametrize("task", ["addition", "subtraction", "multiplication"])
def test_arithmetic_is_right(task: str) -> None:
    for problem in problems(task):
        a, sign, b, result = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (-?\d+)", problem.answer).groups()  # type: ignore[union-attr]
        expected = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        assert int(result) == expected
        assert int(problem.thought.rsplit("=", 1)[1]) == expected
        assert problem.key == f"{a} {b}"
        assert a in problem.question
        assert b in problem.question


def test_every_line_of_a_column_is_a_true_equation() -> None:
    for task in ("addition", "subtraction", "multiplication"):
        for problem in problems(task, 100):
            for line in problem.thought.split("\n"):
                if found := re.fullmatch(r"(\d)([-+*])(\d)([-+])(\d)=(\d)(\d)", line):
                    x, first, y, second, z, carried, written = found.groups()
                    made = {"+": int(x) + int(y), "-": int(x) - int(y), "*": int(x) * int(y)}[first]
                    made += int(z) if second == "+" else -int(z)
                    assert made == (int(written) + (-10 if first == "-" else 10) * int(carried))


def test_the_working_of_a_sum_a_difference_and_a_product() -> None:
    assert arithmetic.sum_lines(87, 4915) == ["0087+4915", "7+5+0=12", "8+1+1=10", "0+9+1=10", "0+4+1=05", "=05002"]
    assert arithmetic.difference_lines(12, 105) == [
        "0012?0105", "00=01<", "-:0105-0012", "5-2-0=03", "0-1-0=19", "1-0-1=00", "0-0-0=00", "=-0093",
    ]  # fmt: skip
    assert arithmetic.product_lines(47, 36) == [
        "47*36", "7*6+0=42", "4*6+4=28", "=0282", "7*3+0=21", "4*3+2=14", "=1410",
        "0282+1410", "2+0+0=02", "8+1+0=09", "2+4+0=06", "0+1+0=01", "=01692",
    ]  # fmt: skip
    assert arithmetic.product_lines(5, 8) == ["05*08", "5*8+0=40", "0*8+4=04", "=0040"]


def test_comparisons_are_right() -> None:
    for problem in problems("comparison"):
        a, b = map(int, problem.key.split())
        if found := re.fullmatch(r"(\d+) is (larger|smaller)\.", problem.answer):
            assert int(found.group(1)) == (max(a, b) if found.group(2) == "larger" else min(a, b))
            assert a != b
        elif problem.answer == "They are equal.":
            assert a == b
        else:
            said, x, sign, y = re.fullmatch(r"(Yes|No), (\d+) ([<=>]) (\d+)\.", problem.answer).groups()  # type: ignore[union-attr]
            assert (int(x), int(y)) == (a, b)
            assert sign == ("<" if a < b else "=" if a == b else ">")
            asked = problem.thought.split("\n")[0].removeprefix("is ")
            assert said == ("Yes" if asked == sign else "No")


def test_columns_end_where_two_texts_differ() -> None:
    assert comparison.columns("0456", "0123") == "00=41>"
    assert comparison.columns("77", "77") == "77=77="


def test_letters_are_counted_and_turned_round() -> None:
    for problem in problems("counting"):
        letter, word = problem.key.split()
        if letter == "letters":
            assert problem.answer == f"It has {len(word)} letters."
        else:
            assert int(re.findall(r"\d+", problem.answer)[0]) == word.count(letter)
            assert problem.thought.endswith(f"={word.count(letter)}")
        assert word in problem.question
    for problem in problems("reversal"):
        assert problem.answer == problem.key[::-1]
        assert problem.thought.split("\n")[-1] == letters.row(problem.answer)


def test_the_working_of_a_count_and_a_reversal() -> None:
    assert letters.counted_lines("deed", "e") == ["1de-0", "2ee+1", "3ee+2", "4de-2"]
    assert letters.indexed("twelveletter") == "1t2w3e4l5v6e7l8e9t0t*e#r"
    assert letters.row("cat") == "cat_________"


def test_lists_are_sorted() -> None:
    for task, kind in (("sorting numbers", int), ("sorting words", str)):
        for problem in problems(task):
            given = [kind(item) for item in problem.key.split(" ")]
            falling = problem.thought.startswith("sort >")
            assert [kind(item) for item in problem.answer.split(", ")] == sorted(given, reverse=falling)
            assert re.findall(r"[a-z]+|\d+", problem.thought.split("\n")[-1]) == [
                item if kind is str else f"{int(item):03}" for item in problem.answer.split(", ")
            ]


def test_the_working_of_a_list() -> None:
    assert sorting.sorting_lines(["045", "007", "310"], "<") == [
        "|A045B007C310", "<AB00=40>B", "<BC03<B", "B007|A045C310", "<AC03<A", "B007A045|C310", "B007A045C310|",
    ]  # fmt: skip
    assert sorting.sorting_lines(["pea", "pear"], ">") == [
        "|ApeaBpear", ">ABpp=ee=aa=_r<B", "Bpear|Apea", "BpearApea|",
    ]  # fmt: skip


def test_nothing_held_out_is_drawn_for_training() -> None:
    random = Random(1)
    for maker, _ in mix.TASKS.values():
        assert not any(draw(maker, random, 0.0, held_out=False).held_out for _ in range(100))
        assert all(draw(maker, random, 0.0, held_out=True).held_out for _ in range(10))


def test_about_one_problem_in_sixteen_is_held_out_whatever_its_wording() -> None:
    made = problems("addition", 4000)
    assert sum(p.held_out for p in made) / len(made) == pytest.approx(1 / HELD_OUT_ONE_IN, rel=0.25)
    by_key: dict[str, set[bool]] = {}
    for problem in problems("multiplication", 4000):
        by_key.setdefault(problem.key, set()).add(problem.held_out)
    assert all(len(decisions) == 1 for decisions in by_key.values())


def test_every_task_has_a_fair_part_of_the_mix() -> None:
    total = sum(share for _, share in mix.TASKS.values())
    assert all(share / total >= 0.08 for _, share in mix.TASKS.values())


def test_samples_are_conversations_of_the_template() -> None:
    random = Random(2)
    made = [mix.sample(random, 0.0) for _ in range(2000)]
    for one in made:
        assert one.said.endswith(END)
        assert one.given.endswith((ASSISTANT, f"{THINK_END}\n\n"))
        assert one.said.startswith(f"{THINK}\n") == one.given.endswith(ASSISTANT)
        assert not one.given.endswith(ASSISTANT) or f"\n{THINK_END}\n\n" in one.said
    n_turns = Counter(one.given.count(USER) for one in made)
    assert set(n_turns) == {1, 2, 3}
    assert n_turns[1] / len(made) == pytest.approx(0.84, abs=0.05)


def test_the_data_depends_on_the_seed_alone() -> None:
    first = [mix.sample(Random(3), 0.5) for _ in range(3)]
    assert first == [mix.sample(Random(3), 0.5) for _ in range(3)]
    assert mix.sample(Random(4), 0.5) != first[0]


def test_a_third_to_a_half_of_chat_needs_no_thought() -> None:
    made = problems("chat", 3000)
    assert 0.3 <= sum(not p.thought for p in made) / len(made) <= 0.5


def test_words_grow_with_training_and_are_longest_at_its_end() -> None:
    def mean_length(ease: float) -> float:
        random = Random(7)
        return sum(len(words.word(random, ease)) for _ in range(2000)) / 2000

    assert mean_length(1.0) < 5 < mean_length(0.0) < 6.5 < mean_length(-1.0) < 8


def test_words_fit_their_row() -> None:
    random = Random(8)
    made = [words.word(random, ease, most) for ease in (1.0, 0.0, -1.0) for most in (4, 8, 12) for _ in range(200)]
    assert all(2 <= len(text) <= 12 and text.isalpha() and text.islower() for text in made)
    assert all(len(words.word(random, ease, 4)) <= 4 for ease in (1.0, 0.0, -1.0) for _ in range(200))
    assert all(2 <= len(text) <= words.MOST_LETTERS for text in words.COMMON)
