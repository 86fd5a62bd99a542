"""What the engine asks of the thing that computes: llama.cpp in ktllama.runtime, arithmetic in tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """The token chosen after a row with `sample`, or why there is none."""

    __slots__ = ("ends", "error", "logprob", "piece", "token")

    def __init__(
        self,
        token: int,
        piece: bytes,
        logprob: TokenLogprob | None,
        *,
        ends: bool = False,
        error: Exception | None = None,
    ) -> None:
        """`piece` is the token's text as bytes, control tokens rendered.

        The token means nothing where nothing may come, and so the answer `ends`, also one that ignores end tokens; and
        where the row's sampler failed with `error`.
        """
        self.token = token
        self.piece = piece
        self.logprob = logprob
        self.ends = ends
        self.error = error


class LoadError(Exception):
    """The model cannot be loaded, and starting again would not help; its text is the reason, in one line."""


class GrammarError(Exception):
    """The GBNF text or JSON schema cannot be compiled."""


class SamplingError(ValueError):
    """A sampling field that cannot be honoured, by its name in `messages.Sampling`."""

    def __init__(self, field: str, reason: str) -> None:
        """`reason` is the sentence, without the field's name."""
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class OutOfCellsError(Exception):
    """The context has no room for a batch, and memory is as it was before `run`."""


class SavedCells(Protocol):
    """What the cells of a sequence held, outside the context; only its executor can read it."""

    n_tokens: int
    n_bytes: int


class CellTable(Protocol):
    """The memory of a context, as far as the prefix cache moves it: who holds which positions."""

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Let `target`, which is empty, hold the first `n_tokens` positions of `source` too; the cells are shared."""

    def remove(self, sequence: int, start: int) -> None:
        """Drop the positions of `sequence` from `start` on; cells that nobody holds any more are free."""

    def used_cells(self) -> int:
        """Cells that at least one sequence holds."""

    def saved_bytes(self, sequence: int) -> int:
        """What a copy of the cells of `sequence` takes."""

    def save(self, sequence: int) -> SavedCells:
        """A copy of what the cells of `sequence` hold."""

    def restore(self, sequence: int, saved: SavedCells, n_tokens: int) -> bool:
        """Let `sequence`, which is empty, hold the first `n_tokens` positions of what was saved, in cells of its own.

        Meanwhile it takes as many cells as were saved. False, and nothing has changed, where there is no room.
        """


class Executor(CellTable, Protocol):
    """One context with `model.n_ctx` cells shared by sequences 0 … n_sequences - 1.

    `tokenize`, `least_tokens`, `piece`, `token_id` and `check` may be called from another thread than the rest.
    """

    model: ModelInfo
    n_sequences: int
    max_embedding_tokens: int  # of a prompt that `embed` takes
    embedding_batch: int  # tokens that `embed` computes at once
    parking_bytes: int  # main memory for saved cells; 0: sequences that nobody runs stay in the context
    end_tokens: frozenset[int]  # end of generation, control tokens that end an answer

    # vocabulary
    def tokenize(self, segments: Sequence[Segment], *, add_bos: bool) -> list[int]:
        """Ids of the segments' text; `add_bos` puts the token of the beginning first, where the model has one."""

    def least_tokens(self, text: str) -> int:
        """A number of tokens that `text` cannot be less than, found without tokenizing it."""

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """The token's bytes; a control token's text only if `special`, otherwise nothing."""

    def token_id(self, text: str) -> int | None:
        """The single control token that `text` is, or None."""

    # sampler chains, one a sequence
    def check(self, sampling: Sampling, grammar: str, json_schema: str) -> object:
        """Raise GrammarError or SamplingError if these could not be honoured.

        What is returned goes to `open`: it holds what takes long to make, so that the steps do not wait for it.
        """

    def open(
        self,
        sequence: int,
        sampling: Sampling,
        history: Sequence[int],
        logprobs: int | None,
        ignore_eos: bool,
        checked: object = None,
    ) -> None:
        """Make the chain of `sequence`; penalties have seen `history`. `ignore_eos` never samples an end token."""

    def constrain(self, sequence: int) -> None:
        """From the next sample on, only what the grammar or schema allows that `open` was given as `checked`."""

    def accept(self, sequence: int, token: int) -> None:
        """Show the chain a token that was forced, not sampled."""

    def close(self, sequence: int) -> None:
        """Drop the chain of `sequence`; nothing if there is none."""

    # compute
    def run(self, rows: Sequence[Row]) -> list[Sampled]:
        """Compute at most `model.n_ubatch` rows in one llama_decode; one Sampled a row with `sample`, in their order.

        A sequence's rows stand together in the order of their positions. The sampled token is shown to the chain.
        Where one row's sampler fails, its Sampled has the error and the others have their tokens. Raises
        OutOfCellsError when memory is unchanged; after any other exception the engine removes the sequences of the
        batch.
        """

    def embed(self, prompt: Sequence[int], start: int, end: int) -> list[float] | None:
        """Compute tokens `start` to `end` of a prompt; its pooled, unit-length vector once that is all of it.

        `start` is 0, or the `end` of the last call, which was for the same prompt. The cells of sequences are as
        before.
        """

    def shut(self) -> None:
        """Free everything."""


#: what makes an executor in the engine process: options as the launch gave them, and whom to tell of load progress
ExecutorFactory = Callable[[dict[str, object], Callable[[float], None]], Executor]
