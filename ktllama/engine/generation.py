"""A `Generate` request while the engine works on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from ktllama.engine.executor import Row
from ktllama.engine.lifecycle import ENDED, Phase, Turn, after
from ktllama.engine.messages import Generate, Kind, TokenLogprob, Usage
from ktllama.r1.delta import Delta
from ktllama.r1.transcript import Transcript

NO_SEQUENCE = -1


class Generation:
    """What is known of one request: its tokens, how many of them are in cells, and what it has said.

    `tokens` holds the prompt and then all that was sampled or forced; it only grows, and position equals index.
    The first `n_computed` are in the cells of `sequence`.
    """

    __slots__ = (
        "admitted_at",
        "arrival",
        "checked",
        "constrained",
        "deltas",
        "first_token_at",
        "forced_closed",
        "has_spoken",
        "held_logprobs",
        "is_open",
        "leader",
        "limit",
        "logprob_kinds",
        "logprobs",
        "n_cached",
        "n_computed",
        "n_follow",
        "n_passed",
        "n_prompt",
        "n_unsent",
        "phase",
        "received_at",
        "request",
        "sequence",
        "tokens",
        "transcript",
    )

    def __init__(
        self,
        request: Generate,
        tokens: list[int],
        transcript: Transcript,
        limit: int,
        received_at: float,
        checked: object = None,
    ) -> None:
        """`limit` is the most that `tokens` may grow to; times are seconds of the engine's monotonic clock.

        `checked` is what the executor's `check` returned.
        """
        self.request = request
        self.tokens = tokens
        self.checked = checked
        self.transcript = transcript
        self.limit = limit
        self.phase = Phase.QUEUED
        self.n_prompt = len(tokens)
        self.n_computed = 0
        self.n_cached: int | None = None  # prompt tokens that were in the cache when it was first admitted
        self.arrival = 0
        self.n_passed = 0  # times that a younger one was admitted before it
        self.sequence = NO_SEQUENCE
        self.leader: Generation | None = None  # computes the first n_follow tokens for this one too
        self.n_follow = 0
        self.is_open = False  # whether its sampler chain exists
        self.constrained = not (request.grammar or request.json_schema)
        self.forced_closed = False
        self.has_spoken = False
        # said, and not sent yet
        self.deltas: list[Delta] = []
        self.logprobs: list[TokenLogprob] = []
        self.logprob_kinds: list[Kind] = []
        # of tokens whose text may become a stop string, with where it begins
        self.held_logprobs: deque[tuple[int, TokenLogprob, Kind]] = deque()
        self.n_unsent = 0
        self.received_at = received_at
        self.admitted_at: float | None = None
        self.first_token_at: float | None = None

    def turn(self, turn: Turn) -> None:
        """Move on in the life cycle."""
        self.phase = after(self.phase, turn)

    @property
    def n_pending(self) -> int:
        """Tokens that are known and not computed."""
        return len(self.tokens) - self.n_computed

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.phase in ENDED

    @property
    def may_share(self) -> bool:
        """Whether it may use what others computed. A deterministic one may not: they computed it in other batches."""
        return self.request.cache_prompt and not self.request.deterministic

    def usage(self) -> Usage:
        """The counts as they stand."""
        return Usage(
            prompt_tokens=self.n_prompt,
            cached_tokens=self.n_cached or 0,
            completion_tokens=len(self.tokens) - self.n_prompt,
            reasoning_tokens=self.transcript.reasoning_tokens,
        )


def rows_of(plan: Mapping[Generation, int]) -> list[Row]:
    """The rows of the next tokens of each, as many as the plan says; the last asks for a sample if no other follows."""
    rows = []
    for generation, n_rows in plan.items():
        tokens, sequence, first = generation.tokens, generation.sequence, generation.n_computed
        if n_rows == 1:
            rows.append(Row(sequence, tokens[first], first, first + 1 == len(tokens)))
            continue
        end = first + n_rows
        rows += [Row(sequence, tokens[position], position, False) for position in range(first, end)]
        rows[-1].sample = end == len(tokens)
    return rows
