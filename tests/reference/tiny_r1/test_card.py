"""What the evaluation prints, and the card that is made of it."""

from __future__ import annotations

from ktllama.reference.tiny_r1.card import Making, card
from ktllama.reference.tiny_r1.evaluation import MODES, Evaluation, Score, held_out, report
from ktllama.reference.tiny_r1.mix import TASKS

SCORES = Evaluation(
    by_mode={
        "greedy": {
            "addition": Score(right=49, asked=50, n_tokens=4000),
            "chat": Score(right=30, asked=30, n_tokens=900),
        },
        "sampled": {"addition": Score(right=48, asked=50), "chat": Score(right=27, asked=30)},
        "no thinking": {"addition": Score(right=5, asked=50), "chat": Score(right=15, asked=30)},
    },
    conversations=Score(right=19, asked=20),
)


def test_the_table() -> None:
    assert list(report(SCORES)) == [
        "| task | problems | greedy | temperature 0.6, top-p 0.95 | thinking closed at once | tokens an answer |",
        "|---|---|---|---|---|---|",
        "| addition | 50 | 98.0% | 96.0% | 10.0% | 80 |",
        "| chat | 30 | 100.0% | 90.0% | 50.0% | 30 |",
        "| all | 80 | 98.8% | 93.8% | 25.0% | 61 |",
    ]


def test_the_card_says_what_the_evaluation_printed() -> None:
    making = Making(
        n_parameters=7_400_000, n_layers=4, n_dense=1, n_experts=8, n_experts_used=2, n_groups=4, held_out_one_in=16,
        n_steps=2200, n_tokens=23_654_400, batch_tokens=10_752, minutes=71.6, file_bytes=8_300_000,
    )  # fmt: skip
    text = card(making, SCORES)
    assert "\n".join(report(SCORES)) in text
    assert "7.4 million parameters" in text
    assert "2,200 of 10,752 tokens, 23,654,400 tokens in all" in text
    assert "72 minutes on two CPU cores" in text
    assert "3 layers of 8 routed experts in 4 groups (2 a token)" in text
    assert "the last answer was right 95% of the time" in text
    assert "{" not in text


def test_problems_to_evaluate_are_held_out_and_differ() -> None:
    problems = held_out(500)
    assert list(problems) == list(TASKS)
    assert sum(map(len, problems.values())) == 500
    for asked in problems.values():
        assert len(asked) in (55, 56)
        assert all(problem.held_out for problem in asked)
        assert len({problem.key for problem in asked}) == len(asked)
    assert held_out(500) == problems
    assert MODES == ("greedy", "sampled", "no thinking")
