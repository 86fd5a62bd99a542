"""The mix of conversations that the model is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from ktllama.reference.tiny_r1.arithmetic import addition, multiplication, subtraction
from ktllama.reference.tiny_r1.chat import chat
from ktllama.reference.tiny_r1.comparison import comparison
from ktllama.reference.tiny_r1.letters import counting, reversal
from ktllama.reference.tiny_r1.problem import Maker, Problem, draw
from ktllama.reference.tiny_r1.sorting import number_sorting, word_sorting
from ktllama.reference.tiny_r1.template import THINK, THINK_END, Turn, opened, reply

#: Every task, and its share of the problems.
TASKS: dict[str, tuple[Maker, float]] = {
    "addition": (addition, 1.0),
    "subtraction": (subtraction, 1.2),
    "multiplication": (multiplication, 1.1),
    "comparison": (comparison, 1.0),
    "counting": (counting, 1.2),
    "reversal": (reversal, 1.3),
    "sorting numbers": (number_sorting, 1.1),
    "sorting words": (word_sorting, 1.1),
    "chat": (chat, 1.0),
}

_SYSTEMS = (
    "You are a helpful assistant.", "You are tiny-R1.", "Answer briefly.", "Be concise and polite.",
    "You are a careful assistant. Think step by step.", "You are a helpful AI assistant that answers questions.",
)  # fmt: skip
_DIRECTIVE = "Please reason step by step."

#: Shares of the conversations that have earlier turns, a system prompt, and their thinking cut short.
_WITH_EARLIER, _WITH_SYSTEM, _CUT_SHORT = 0.16, 0.06, 0.03

#: The farthest that the last turn is moved away from what came before it, in positions.
_FARTHEST = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A conversation to learn from: what is given, what is to be said, and how far apart the two are in positions."""

    given: str
    said: str
    gap: int = 0


def sample(random: Random, ease: float, *, weights: dict[str, float] | None = None) -> Sample:
    """A conversation of one to three turns, of which the last is to be learned."""
    problem = _problem(random, ease, weights)
    earlier: tuple[Turn, ...] = ()
    gap = 0
    if random.random() < _WITH_EARLIER:
        earlier = tuple(_turn(random) for _ in range(random.choice((1, 1, 2))))
        gap = random.randrange(_FARTHEST) if random.random() < 0.3 else 0
    system = random.choice(_SYSTEMS) if random.random() < _WITH_SYSTEM else ""
    question = f"{problem.question} {_DIRECTIVE}" if random.random() < 0.01 else problem.question
    given = opened(question, earlier, system)
    if problem.thought and random.random() < _CUT_SHORT:
        lines = problem.thought.split("\n")
        kept = "\n".join(lines[: random.randrange(len(lines))])
        given += f"{THINK}\n{kept}\n{THINK_END}\n\n"
        return Sample(given=given, said=reply("", problem.answer).removeprefix(f"{THINK}\n\n{THINK_END}\n\n"), gap=gap)
    return Sample(given=given, said=reply(problem.thought, problem.answer), gap=gap)


def _problem(random: Random, ease: float, weights: dict[str, float] | None) -> Problem:
    shares = weights or {task: share for task, (_, share) in TASKS.items()}
    task = random.choices(list(shares), list(shares.values()))[0]
    return draw(TASKS[task][0], random, ease, held_out=False)


def _turn(random: Random) -> Turn:
    problem = _problem(random, 0.5, None)
    lead = "\n\n" if random.random() < 0.3 else ""
    return Turn(question=problem.question, answer=lead + problem.answer)
