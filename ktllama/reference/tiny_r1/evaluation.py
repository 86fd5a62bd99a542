"""How well the exported model does, asked through llama.cpp as users ask it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, TypeAlias

from ktllama.reference.tiny_r1.mix import TASKS
from ktllama.reference.tiny_r1.problem import Problem, draw
from ktllama.reference.tiny_r1.template import THINK_END, Turn, prompt
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.generate import Sampling, TextStream, generate_tokens, tokenize
from ktllama.runtime.load import LoadedModel, load
from ktllama.translation import translate

#: R1's own sampling, greedy decoding, and the thinking closed before it begins.
Mode: TypeAlias = Literal["greedy", "sampled", "no thinking"]
MODES: tuple[Mode, ...] = ("greedy", "sampled", "no thinking")

TEMPERATURE, TOP_P = 0.6, 0.95
_MOST_TOKENS = 1000
_CPU_RULES = "tiny-r1/cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Right answers among ``asked``, and the tokens that all answers took."""

    right: int
    asked: int
    n_tokens: int = 0

    @property
    def share(self) -> float:
        """Right answers to one asked."""
        return self.right / self.asked

    def __add__(self, other: Score) -> Score:
        return Score(
            right=self.right + other.right, asked=self.asked + other.asked, n_tokens=self.n_tokens + other.n_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores by mode and task, and those of conversations of three turns."""

    by_mode: dict[Mode, dict[str, Score]]
    conversations: Score

    def total(self, mode: Mode) -> Score:
        """All tasks of a mode together."""
        return sum(self.by_mode[mode].values(), Score(right=0, asked=0))


def evaluate(model: Path, *, n_problems: int = 500, n_conversations: int = 100, n_threads: int = 1) -> Evaluation:
    """Ask the model at ``model`` held-out problems of all tasks, in every mode, and conversations."""
    settings = translate(_CPU_RULES, model).settings
    with load(model, settings, ContextOptions(n_ctx=4096, n_threads=n_threads, flash_attn="off")) as loaded:
        problems = held_out(n_problems)
        by_mode = {mode: _scores(loaded, problems, mode) for mode in MODES}
        return Evaluation(by_mode=by_mode, conversations=_conversations(loaded, n_conversations))


def held_out(n_problems: int) -> dict[str, list[Problem]]:
    """So many problems that training never sees, of all tasks in equal parts; no two have one key."""
    share, rest = divmod(n_problems, len(TASKS))
    return {task: list(_different(task, share + (place < rest))) for place, task in enumerate(TASKS)}


def answer(loaded: LoadedModel, text: str, sampling: Sampling) -> tuple[str, int]:
    """What the model says after the thinking, without spaces around it, and how many tokens it generated."""
    tokens = generate_tokens(
        loaded, tokenize(loaded, text, parse_special=True)[1:], max_tokens=_MOST_TOKENS, sampling=sampling
    )
    said = "".join(TextStream(loaded, tokens))
    thought = text.rstrip().endswith(THINK_END)
    if not thought and THINK_END not in said:
        return "", tokens.timings.decode_tokens
    return said.split(THINK_END)[-1].strip(), tokens.timings.decode_tokens


def _scores(loaded: LoadedModel, problems: dict[str, list[Problem]], mode: Mode) -> dict[str, Score]:
    return {
        task: sum((_ask(loaded, one, mode) for one in asked), Score(right=0, asked=0))
        for task, asked in problems.items()
    }


def _ask(loaded: LoadedModel, problem: Problem, mode: Mode) -> Score:
    sampling = Sampling(temperature=TEMPERATURE, top_p=TOP_P, seed=1) if mode == "sampled" else Sampling()
    text = prompt(problem.question)
    if mode == "no thinking":
        text += f"\n{THINK_END}\n\n"
    said, n_tokens = answer(loaded, text, sampling)
    return Score(right=int(said == problem.answer), asked=1, n_tokens=n_tokens)


def _conversations(loaded: LoadedModel, n: int) -> Score:
    """Three questions in a row, greedily; the last answer counts, and earlier thinking is stripped."""
    total = Score(right=0, asked=0)
    random = Random("conversations")
    for _ in range(n):
        problems = [draw(TASKS[random.choice(list(TASKS))][0], random, 0.0, held_out=True) for _ in range(3)]
        earlier: tuple[Turn, ...] = ()
        said, n_tokens = "", 0
        for problem in problems:
            said, n_tokens = answer(loaded, prompt(problem.question, earlier), Sampling())
            earlier = (*earlier, Turn(question=problem.question, answer=said))
        total += Score(right=int(said == problems[-1].answer), asked=1, n_tokens=n_tokens)
    return total


def _different(task: str, n: int) -> Iterator[Problem]:
    random = Random(f"evaluation {task}")
    seen: set[str] = set()
    while len(seen) < n:
        problem = draw(TASKS[task][0], random, 0.0, held_out=True)
        if problem.key not in seen:
            seen.add(problem.key)
            yield problem


def report(evaluation: Evaluation) -> Iterator[str]:
    """The lines of a Markdown table: a row for each task."""
    yield "| task | problems | greedy | temperature 0.6, top-p 0.95 | thinking closed at once | tokens an answer |"
    yield "|---|---|---|---|---|---|"
    for task, score in evaluation.by_mode["greedy"].items():
        shares = [evaluation.by_mode[mode][task].share for mode in MODES]
        yield _row(task, score, shares)
    yield _row("all", evaluation.total("greedy"), [evaluation.total(mode).share for mode in MODES])


def _row(name: str, score: Score, shares: list[float]) -> str:
    said = " | ".join(f"{100 * share:.1f}%" for share in shares)
    return f"| {name} | {score.asked} | {said} | {score.n_tokens / score.asked:.0f} |"
