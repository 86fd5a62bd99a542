"""llama.cpp as the engine's executor: one context with a unified KV cache that many sequences share.

Everything here goes through llama-cpp-python's ctypes functions; ``llama_cpp.Llama`` takes no part. The contract is
:class:`ktllama.engine.executor.Executor`. A failed assertion in llama.cpp ends the process, which is why the engine
has one of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ktllama.engine.executor import OutOfCellsError, Row, Sampled, SavedCells
from ktllama.engine.messages import ModelInfo, Sampling, Segment
from ktllama.errors import LlamaCppError
from ktllama.runtime import library as llama_library
from ktllama.runtime import saved_cells
from ktllama.runtime.batch import Batch, OutputRows
from ktllama.runtime.cells import Cells
from ktllama.runtime.device_binding import CPU
from ktllama.runtime.dry import DryPrototype
from ktllama.runtime.embedder import EMBEDDING_BATCH, Embedder
from ktllama.runtime.executor_options import parse_options
from ktllama.runtime.grammar import Constraint, gbnf_of
from ktllama.runtime.load import free_memory_bytes
from ktllama.runtime.logprobs import token_logprob
from ktllama.runtime.sampler_chain import SamplerChain, SamplerFactory
from ktllama.runtime.saved_cells import SavedSequence
from ktllama.runtime.served_model import Opened, open_model
from ktllama.runtime.shortlist import Logits

_NO_SLOT = 1  # llama_decode: no room in the KV cache, which is as it was
_NO_TOKEN = -1  # LLAMA_TOKEN_NULL
_KEPT_GRAMMARS = 32


@dataclass(frozen=True, slots=True)
class Checked:
    """What takes long to make of a request: the text of its grammar, checked, and its DRY sampler."""

    gbnf: str
    dry: DryPrototype | None


def open_executor(options: Mapping[str, object], progress: Callable[[float], None]) -> LlamaExecutor:
    """Load a model and make its executor; ``options`` are those of ``ExecutorOptions``, ``progress`` gets 0 … 1.

    Raises:
        LoadError, KtllamaError: when the options, the rules, the model or the machine do not allow it.
    """
    parsed = parse_options(options)
    return LlamaExecutor(open_model(parsed, progress), parsed.n_sequences)


def open_in_own_process(options: Mapping[str, object], progress: Callable[[float], None]) -> LlamaExecutor:
    """Like :func:`open_executor`, for a process that never uses ``llama_cpp.Llama``: saves its imports' memory."""
    llama_library.load_low_level_only()
    return open_executor(options, progress)


class LlamaExecutor:
    """One loaded model and its context."""

    def __init__(self, opened: Opened, n_sequences: int) -> None:
        loaded = opened.loaded
        self.model: ModelInfo = opened.info
        self.n_sequences = n_sequences
        self.vocabulary = opened.vocabulary
        self.end_tokens = opened.vocabulary.end_tokens
        self.parking_bytes = parking_bytes(loaded.kv_bytes(), free_memory_bytes())
        self._loaded = loaded
        self._api = loaded.library.api
        self._memory = self._api.llama_get_memory(loaded.context)
        self._batch = Batch(self._api, self.model.n_ubatch)
        self._outputs = OutputRows(self._api, loaded.context, self.model.vocab_size)
        self._cells = Cells(self.model.n_ctx, n_sequences)
        self._factory = SamplerFactory(self._api, loaded.vocab, opened.vocabulary, self.model.n_ctx, loaded.context)
        self._chains: dict[int, SamplerChain] = {}
        self._logprobs: dict[int, int | None] = {}
        self._gbnfs: dict[int, str] = {}
        self._grammars: OrderedDict[tuple[str, str], str] = OrderedDict()
        self.max_embedding_tokens = min(self.model.n_ctx, self.model.n_ctx_train)
        self.embedding_batch = EMBEDDING_BATCH
        self._embedder = Embedder(loaded, pooling=self.model.pooling, n_ctx=self.max_embedding_tokens)

    # ── vocabulary ────────────────────────────────────────────────────────────────────────────────────────────────

    def tokenize(self, segments: Sequence[Segment], *, add_bos: bool) -> list[int]:
        """Ids of the segments' joined text; control tokens only in ``special`` ones."""
        return self.vocabulary.tokenize(segments, add_bos=add_bos)

    def least_tokens(self, text: str) -> int:
        """Tokens that ``text`` becomes at least, found quickly."""
        return self.vocabulary.least_tokens(text)

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """The token's bytes; a control token's text only if ``special``."""
        return self.vocabulary.piece(token, special=special)

    def token_id(self, text: str) -> int | None:
        """The control or added token that ``text`` is."""
        return self.vocabulary.token_id(text)

    # ── sampler chains ────────────────────────────────────────────────────────────────────────────────────────────

    def check(self, sampling: Sampling, grammar: str, json_schema: str) -> Checked:
        """Raise a SamplingError or a GrammarError for what :meth:`open` and :meth:`constrain` could not honour."""
        self._factory.check(sampling)
        gbnf = self._gbnf(grammar, json_schema)
        if gbnf:
            Constraint(self._api, self._loaded.vocab, gbnf).close()
        return Checked(gbnf, self._factory.dry(sampling))

    def open(
        self,
        sequence: int,
        sampling: Sampling,
        history: Sequence[int],
        logprobs: int | None,
        ignore_eos: bool,
        checked: object = None,
    ) -> None:
        """Make the chain of ``sequence``; the penalties have seen ``history``. ``checked`` is :meth:`check`'s."""
        if checked is None:
            checked = self.check(sampling, "", "")
        assert isinstance(checked, Checked)
        self.close(sequence)
        chain = SamplerChain(self._factory, sampling, history, ignore_eos=ignore_eos, dry=checked.dry)
        self._chains[sequence], self._logprobs[sequence], self._gbnfs[sequence] = chain, logprobs, checked.gbnf

    def constrain(self, sequence: int) -> None:
        """From the next sample on, only what the grammar or the schema allows that was checked for the sequence."""
        self._chains[sequence].constraint = Constraint(self._api, self._loaded.vocab, self._gbnfs[sequence])

    def accept(self, sequence: int, token: int) -> None:
        """Show the chain a token that was not sampled."""
        self._chains[sequence].accept(token)

    def close(self, sequence: int) -> None:
        """Free the chain of ``sequence``, if there is one."""
        self._gbnfs.pop(sequence, None)
        chain = self._chains.pop(sequence, None)
        if chain is not None:
            chain.close()

    def _gbnf(self, grammar: str, json_schema: str) -> str:
        """The checked grammar; a few are kept, because many requests have the same."""
        key = (grammar, json_schema)
        if key not in self._grammars:
            self._grammars[key] = gbnf_of(grammar, json_schema)
            if len(self._grammars) > _KEPT_GRAMMARS:
                self._grammars.popitem(last=False)
        self._grammars.move_to_end(key)
        return self._grammars[key]

    # ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Let ``target``, which is empty, share the first ``n_tokens`` positions of ``source``."""
        self._cells.copy(source, target, n_tokens)
        if n_tokens:
            self._api.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)

    def remove(self, sequence: int, start: int) -> None:
        """Drop the positions of ``sequence`` from ``start`` on.

        Raises:
            LlamaCppError: where the model's memory is a running state, from which no end can be taken.
        """
        if not self._api.llama_memory_seq_rm(self._memory, sequence, start, -1):
            raise LlamaCppError(f"llama.cpp cannot drop the positions of a sequence from {start} on in this model")
        self._cells.remove(sequence, start)

    def used_cells(self) -> int:
        """Cells that at least one sequence holds."""
        return self._cells.n_used

    def saved_bytes(self, sequence: int) -> int:
        """Main memory that a copy of the cells of ``sequence`` takes."""
        return saved_cells.saved_bytes(self._api, self._loaded.context, sequence)

    def save(self, sequence: int) -> SavedCells:
        """A copy in main memory of what the cells of ``sequence`` hold."""
        return saved_cells.save(self._api, self._loaded.context, sequence, self._cells.length(sequence))

    def restore(self, sequence: int, saved: SavedCells, n_tokens: int) -> bool:
        """Let ``sequence``, which is empty, hold the first ``n_tokens`` positions; False where there is no room."""
        assert isinstance(saved, SavedSequence)
        if not saved.restore(self._api, self._loaded.context, sequence):
            return False
        self._cells.extend(sequence, saved.n_tokens)
        if n_tokens < saved.n_tokens:
            self.remove(sequence, n_tokens)
        return True

    def length(self, sequence: int) -> int:
        """Positions that llama.cpp itself has of ``sequence``; what the books say is checked against it in tests."""
        return int(self._api.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    # ── compute ───────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, rows: Sequence[Row]) -> list[Sampled]:
        """Compute ``rows`` in one ``llama_decode`` and sample where they ask for it.

        Raises:
            OutOfCellsError: when the cache has no room; nothing has changed.
            LlamaCppError: when llama.cpp fails.
            FloatingPointError: when no row that asks has logits to choose from; of some, it is theirs alone.
        """
        logits = self.compute(rows)
        n_rows = len(logits)
        asking = [row.sequence for row in rows if row.sample]
        sampled = [self._sample(sequence, logits[index], index - n_rows) for index, sequence in enumerate(asking)]
        if sampled and all(isinstance(each.error, FloatingPointError) for each in sampled):
            assert sampled[0].error is not None
            raise sampled[0].error
        return sampled

    def compute(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
        """Logits (outputs, vocab_size) of the rows that ask for a sample, in llama.cpp's memory until the next call.

        Raises:
            OutOfCellsError, LlamaCppError: as :meth:`run` does.
        """
        n_outputs = sum([row.sample for row in rows])
        if n_outputs > self.n_sequences:  # llama.cpp would abort: the context has room for one row a sequence
            raise ValueError(f"{n_outputs} rows ask for a sample, of {self.n_sequences} sequences")
        self._decode(rows)
        if not n_outputs:
            return np.zeros((0, self.model.vocab_size), np.float32)
        return self._outputs.first(n_outputs)

    def embed(self, prompt: Sequence[int], start: int, end: int) -> list[float] | None:
        """Compute a part of a prompt; its pooled vector of length 1 when that was the last."""
        return self._embedder.embed(prompt, start, end)

    def shut(self) -> None:
        """Free chains, contexts and the model. Safe to call twice."""
        for sequence in list(self._chains):
            self.close(sequence)
        self._factory.close()
        self._embedder.close()
        self._loaded.close()

    def _decode(self, rows: Sequence[Row]) -> None:
        if not 0 < len(rows) <= self._batch.capacity:
            raise ValueError(f"a batch of {len(rows)} rows; 1 to {self._batch.capacity} can be computed")
        self._batch.fill(rows)
        status = self._api.llama_decode(self._loaded.context, self._batch.value)
        if status == _NO_SLOT:
            raise OutOfCellsError(f"no room for {len(rows)} tokens beside the {self._cells.n_used} in the context")
        if status != 0:
            said = tuple(line.text for line in self._loaded.recent)
            raise LlamaCppError(f"llama.cpp could not compute {len(rows)} tokens (status {status})", log=said)
        self._cells.append_each([row.sequence for row in rows])

    def _sample(self, sequence: int, logits: Logits, place: int) -> Sampled:
        piece = self.vocabulary.piece
        try:
            token = self._chains[sequence].choose(logits, place)
            if token is None:
                return Sampled(_NO_TOKEN, b"", None, ends=True)
            n_top = self._logprobs[sequence]
            logprob = None if n_top is None else token_logprob(self._factory.scratch, logits, token, n_top, piece)
            return Sampled(token, piece(token), logprob)
        except Exception as error:  # one row's sampler must not fail the others
            return Sampled(_NO_TOKEN, b"", None, error=error)


def parking_bytes(kv_bytes: Mapping[str, int], free_bytes: int) -> int:
    """As much main memory as the KV cache has, at most half of what is free once the model is loaded.

    That is where all of the KV cache is on the CPU; elsewhere nothing is parked.

    The CPU's attention kernels (``ggml/src/ggml-cpu/ops.cpp``) look at the mask of every cell up to the last used one,
    by every head; a GPU's skip what is masked, and moving cells would take its bus.
    """
    return min(sum(kv_bytes.values()), free_bytes // 2) if set(kv_bytes) == {CPU} else 0
