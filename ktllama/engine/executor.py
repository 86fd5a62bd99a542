"""What the engine asks of the thing that computes: llama.cpp in ktllama.runtime, arithmetic in tests."""

from collections.abc import Sequence
from typing import Protocol

from ktllama.engine.messages import ModelInfo, Sampling, Segment, TokenLogprob


class Row:
    """See below; a plain slotted class because one is made for every token of every step."""

    __slots__ = ("position", "sample", "sequence", "token")

    def __init__(self, sequence: int, token: int, position: int, sample: bool) -> None:
        """A token to compute for `sequence` at `position`; `sample` asks for the token that follows it."""
        self.sequence = sequence
        self.token = token
        self.position = position
        self.sample = sample


class Sampled:
    """The token chosen after a row with `sample`."""

    __slots__ = ("logprob", "piece", "token")

    def __init__(self, token: int, piece: bytes, logprob: TokenLogprob | None) -> None:
        """`piece` is the token's text as bytes, control tokens rendered."""
        self.token = token
        self.piece = piece
        self.logprob = logprob


class GrammarError(Exception):
    """The GBNF text or JSON schema cannot be compiled."""


class OutOfCellsError(Exception):
    """The context has no room for a batch; the scheduler's accounting was wrong or memory is fragmented."""


class Executor(Protocol):
    """One context with `model.n_ctx` cells shared by sequences 0 … n_sequences - 1.

    `tokenize`, `detokenize`, `token_id` and `compile_grammar` may be called from another thread than the rest.
    """

    model: ModelInfo
    n_sequences: int
    end_tokens: frozenset[int]  # end of generation, control tokens that end an answer

    # vocabulary
    def tokenize(self, segments: Sequence[Segment], *, add_bos: bool) -> list[int]: ...
    def piece(self, token: int, *, special: bool = True) -> bytes: ...
    def token_id(self, text: str) -> int | None: ...  # the single control token that `text` is, or None

    # sampler chains, one a sequence
    def check(self, sampling: Sampling, grammar: str, json_schema: str) -> None: ...  # raises GrammarError, ValueError
    def open(
        self, sequence: int, sampling: Sampling, history: Sequence[int], logprobs: int | None, ignore_eos: bool
    ) -> None: ...
    def constrain(self, sequence: int, grammar: str, json_schema: str) -> None: ...  # from the next sample on
    def accept(self, sequence: int, token: int) -> None: ...  # a forced token, shown to the chain
    def close(self, sequence: int) -> None: ...

    # memory
    def copy(self, source: int, target: int, n_tokens: int) -> None: ...  # the first n_tokens positions, cells shared
    def remove(self, sequence: int, start: int) -> None: ...  # positions from `start` on
    def used_cells(self) -> int: ...

    # compute
    def run(self, rows: Sequence[Row]) -> list[Sampled]: ...  # one llama_decode; one Sampled a row with `sample`
    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]: ...
    def shut(self) -> None: ...
