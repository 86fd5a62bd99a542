"""An executor that does arithmetic: what it answers is a function of every token that its own cells hold.

A cell remembers a hash of the cell before it in its sequence, its token and its position, so a sequence that was
copied from the wrong one, cut at the wrong place or fed out of order answers something else, or raises at once.
The vocabulary is the 256 bytes and R1's control tokens, so any text can be said. `FakeOptions` are its scripts.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from ktllama.engine.executor import GrammarError, LoadError, OutOfCellsError, Row, Sampled, SamplingError, SavedCells
from ktllama.engine.messages import ModelInfo, Sampling, Segment, TokenLogprob

CONTROL = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<think>",
    "</think>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
)
ID = {text: 256 + index for index, text in enumerate(CONTROL)}
BOS, EOS, THINK, END_THINK = (ID[text] for text in CONTROL[:4])
VOCAB_SIZE = 256 + len(CONTROL)
PIECES = tuple([bytes([byte]) for byte in range(256)] + [text.encode() for text in CONTROL])
LETTERS = b"abcdefghijklmnopqrstuvwxyz     .,\n"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}{% endif %}"
    "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% endif %}"
    "{% if m.role == 'assistant' %}<｜Assistant｜>{{ m.content }}<｜end▁of▁sentence｜>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)


class FakeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the fake behaves; every field has a quiet default."""

    n_ctx: int = 4096
    n_ctx_train: int = 0  # 0: as n_ctx
    n_ubatch: int = 64
    n_parallel: int = 8
    n_sequences: int = 16
    parking_bytes: int = 0  # a token takes one
    name: str = "fake"
    chat_template: str = TEMPLATE
    metadata: dict[str, str] = {}
    can_embed: bool = True
    can_share_prefix: bool = True
    add_bos: bool = True
    end_chance: int = 48  # one token in so many ends the answer (or the thinking) by itself; 0: never
    #: text in the prompt → the answer, control tokens included; then it ends. "$request" in an answer becomes JSON of
    #: the sampling, logprobs and ignore_eos that the chain was opened with. The match nearest the end of the prompt wins.
    say: dict[str, str] = {}
    constrained: str = '{"answer": 42}'  # said once a grammar or schema has begun
    #: text in a sequence → "raise", "abort", "kill" or "exit" at the step that computes its last token, or "sampler":
    #: then only the choice of what follows fails
    crash_on: dict[str, str] = {}
    seconds_per_step: float = 0.0
    seconds_per_row: float = 0.0
    seconds_per_copy: float = 0.0  # of a sequence's cells, out of the context
    seconds_per_text: float = 0.0  # that is tokenized
    load_seconds: float = 0.0
    fail_load: str = ""
    die_while_loading: bool = False
    noise: str = ""  # written to stdout and stderr at load and every step, as a C library would


class _Cell:
    __slots__ = ("owners", "state", "token")

    def __init__(self, token: int, state: int) -> None:
        self.token = token
        self.state = state
        self.owners = 1


class SavedFakes:
    """Tokens and states of a sequence's cells; a token takes a byte."""

    def __init__(self, cells: list[tuple[int, int]]) -> None:
        self.cells = cells
        self.n_tokens = self.n_bytes = len(cells)


class _Chain:
    """What a sequence's sampler knows."""

    def __init__(self, sampling: Sampling, logprobs: int | None, ignore_eos: bool, script: list[int] | None) -> None:
        self.sampling = sampling
        self.logprobs = logprobs
        self.ignore_eos = ignore_eos
        self.script = script
        self.may_constrain = False
        self.constrained = False
        self.said = 0
        self.seed = 0 if sampling.temperature == 0 else (sampling.seed or 0) & 0xFFFFFFFF


class FakeExecutor:
    """An `Executor` over a table of cells held as Python objects."""

    def __init__(self, options: FakeOptions) -> None:
        self.options = options
        self.n_sequences = options.n_sequences
        self.parking_bytes = options.parking_bytes
        self.max_embedding_tokens = min(options.n_ctx, options.n_ctx_train or options.n_ctx)
        self.embedding_batch = 16
        self._n_embedded = 0
        self.end_tokens = frozenset({EOS})
        self.model = ModelInfo(
            name=options.name,
            architecture="fake",
            n_ctx_train=options.n_ctx_train or options.n_ctx,
            n_ctx=options.n_ctx,
            n_ubatch=options.n_ubatch,
            n_parallel=options.n_parallel,
            vocab_size=VOCAB_SIZE,
            bos=CONTROL[0],
            eos=CONTROL[1],
            add_bos=options.add_bos,
            chat_template=options.chat_template,
            metadata=options.metadata,
            can_embed=options.can_embed,
            can_share_prefix=options.can_share_prefix,
            pooling="mean" if options.can_embed else "none",
            devices=("CPU",),
            plan=("CPU: everything",),
            build="fake",
            load_seconds=options.load_seconds,
            special_tokens=CONTROL,
        )
        self.held: list[list[_Cell]] = [[] for _ in range(options.n_sequences)]
        self.chains: dict[int, _Chain] = {}
        self.batches: list[list[tuple[int, int]]] = []  # (sequence, rows) of every run, for tests of schedules
        self.record_batches = False
        self.n_tokenized = 0  # calls of `tokenize`
        self.fail_next: Literal["no room", "in the middle", "no restore", "no save"] | None = (
            None  # what the next one does, once
        )
        self._used = 0

    # vocabulary

    def tokenize(self, segments: Sequence[Segment], *, add_bos: bool) -> list[int]:
        """Bytes, and control tokens where a segment is special."""
        time.sleep(self.options.seconds_per_text)
        self.n_tokenized += 1
        tokens = [BOS] if add_bos and self.options.add_bos else []
        for segment in segments:
            tokens += tokenize(segment.text, special=segment.special)
        return tokens

    def least_tokens(self, text: str) -> int:
        """As if all of it were the longest control token."""
        return -(-len(text.encode()) // max(map(len, PIECES)))

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """The token's bytes."""
        return PIECES[token] if special or token < 256 else b""

    def token_id(self, text: str) -> int | None:
        """The control token that `text` is."""
        return ID.get(text)

    # sampler chains

    def check(self, sampling: Sampling, grammar: str, json_schema: str) -> object:
        """A grammar needs a root rule, a schema must be JSON; temperature must not be negative."""
        if not sampling.temperature >= 0:
            raise SamplingError("temperature", f"must not be negative, got {sampling.temperature}")
        for token in sampling.logit_bias:
            if not 0 <= token < VOCAB_SIZE:
                raise SamplingError("logit_bias", f"token {token} is not in the vocabulary")
        if grammar and "root ::=" not in grammar:
            raise GrammarError("no rule 'root'")
        if json_schema:
            try:
                json.loads(json_schema)
            except ValueError as error:
                raise GrammarError(str(error)) from error
        return (sampling, grammar or json_schema)

    def open(
        self,
        sequence: int,
        sampling: Sampling,
        history: Sequence[int],
        logprobs: int | None,
        ignore_eos: bool,
        checked: object = None,
    ) -> None:
        """Find the script that the prompt asks for."""
        assert sequence not in self.chains, "a chain is opened twice"
        assert isinstance(checked, tuple)
        assert checked[0] == sampling, "not what was checked"
        self.chains[sequence] = _Chain(sampling, logprobs, ignore_eos, None)
        self.chains[sequence].may_constrain = bool(checked[1])
        script = self._script(history, self.chains[sequence])
        self.chains[sequence].script = script

    def _script(self, history: Sequence[int], chain: _Chain) -> list[int] | None:
        if not self.options.say:
            return None
        text = text_of(history)
        places = {key: text.rfind(key) for key in self.options.say}
        key = max(places, key=lambda key: places[key])
        if places[key] < 0:
            return None
        request = {
            "sampling": msgspec.to_builtins(chain.sampling, str_keys=True),
            "logprobs": chain.logprobs,
            "ignore_eos": chain.ignore_eos,
        }
        answer = self.options.say[key].replace("$request", json.dumps(request, sort_keys=True))
        return [*tokenize(answer, special=True), EOS]

    def constrain(self, sequence: int) -> None:
        """From here on the option `constrained` is said."""
        chain = self.chains[sequence]
        assert chain.may_constrain
        chain.script = [*tokenize(self.options.constrained, special=False), EOS]
        chain.constrained = True
        chain.said = 0

    def accept(self, sequence: int, token: int) -> None:
        """A forced end of thinking moves a script behind its own."""
        chain = self.chains[sequence]
        if token == END_THINK and chain.script is not None and END_THINK in chain.script[chain.said :]:
            chain.said = chain.script.index(END_THINK, chain.said) + 1

    def close(self, sequence: int) -> None:
        """Forget the chain."""
        self.chains.pop(sequence, None)

    # memory

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Share cells; the target must be empty."""
        assert source != target
        assert not self.held[target], "the target of a copy holds cells"
        assert n_tokens <= len(self.held[source]), "a copy of positions that are not there"
        shared = self.held[source][:n_tokens]
        for cell in shared:
            cell.owners += 1
        self.held[target] = shared

    def remove(self, sequence: int, start: int) -> None:
        """Drop positions from `start` on."""
        held = self.held[sequence]
        for cell in held[start:]:
            cell.owners -= 1
            self._used -= cell.owners == 0
        del held[start:]

    def used_cells(self) -> int:
        """Cells with an owner."""
        return self._used

    def saved_bytes(self, sequence: int) -> int:
        """A byte a token."""
        return len(self.held[sequence])

    def save(self, sequence: int) -> SavedFakes:
        """What the cells remember."""
        if self.fail_next == "no save":
            self.fail_next = None
            raise MemoryError("the fake was told to fail")
        time.sleep(self.options.seconds_per_copy)
        return SavedFakes([(cell.token, cell.state) for cell in self.held[sequence]])

    def restore(self, sequence: int, saved: SavedCells, n_tokens: int) -> bool:
        """New cells that remember it."""
        assert isinstance(saved, SavedFakes)
        assert not self.held[sequence], "the target of a restore holds cells"
        assert 0 < n_tokens <= saved.n_tokens
        if self.fail_next == "no restore" or self._used + saved.n_tokens > self.options.n_ctx:
            self.fail_next = None
            return False
        self.held[sequence] = [_Cell(token, state) for token, state in saved.cells[:n_tokens]]
        self._used += n_tokens
        return True

    def tokens_of(self, sequence: int) -> list[int]:
        """The tokens that a sequence holds, for checks."""
        return [cell.token for cell in self.held[sequence]]

    # compute

    def run(self, rows: Sequence[Row]) -> list[Sampled]:
        """Hash forward."""
        options = self.options
        assert 0 < len(rows) <= options.n_ubatch, f"{len(rows)} rows in a batch of {options.n_ubatch}"
        self._make_noise()
        fail, self.fail_next = self.fail_next, None
        if fail == "no room" or self._used + len(rows) > options.n_ctx:
            raise OutOfCellsError
        if options.seconds_per_step or options.seconds_per_row:
            time.sleep(options.seconds_per_step + options.seconds_per_row * len(rows))
        if self.record_batches:
            self._record(rows)
        sampled = []
        for index, row in enumerate(rows):
            if fail == "in the middle" and index >= len(rows) // 2:
                raise RuntimeError("the fake was told to fail")
            held = self.held[row.sequence]
            assert row.position == len(held), f"position {row.position} after {len(held)} in sequence {row.sequence}"
            state = hash((held[-1].state if held else 0, row.token, row.position))
            held.append(_Cell(row.token, state))
            self._used += 1
            if row.sample:
                # in the middle: the rows before it are in their cells
                error = self._crash(row) if options.crash_on else None
                sampled.append(Sampled(-1, b"", None, error=error) if error else self._sample(row.sequence, state))
        return sampled

    def _record(self, rows: Sequence[Row]) -> None:
        counts: dict[int, int] = {}
        for row in rows:
            counts[row.sequence] = counts.get(row.sequence, 0) + 1
        self.batches.append(list(counts.items()))

    def _sample(self, sequence: int, state: int) -> Sampled:
        chain = self.chains[sequence]
        if chain.constrained and chain.ignore_eos and chain.script is not None and chain.script[chain.said] == EOS:
            return Sampled(-1, b"", None, ends=True)
        token = self._biased(chain)
        if token is None:
            token = self._scripted(chain)
        if token is None:
            token = self._natural(sequence, hash((state, chain.seed)), chain)
        logprob = None
        if chain.logprobs is not None:
            logprob = self._logprob(token, chain.logprobs)
        return Sampled(token, PIECES[token], logprob)

    @staticmethod
    def _biased(chain: _Chain) -> int | None:
        for token, bias in chain.sampling.logit_bias.items():
            if bias >= 100:
                return token
        return None

    @staticmethod
    def _scripted(chain: _Chain) -> int | None:
        if chain.script is None or chain.said >= len(chain.script):
            return None
        token = chain.script[chain.said]
        if token == EOS and chain.ignore_eos:
            return None
        chain.said += 1
        return token

    def _natural(self, sequence: int, draw: int, chain: _Chain) -> int:
        chance = self.options.end_chance
        if chance and draw % chance == 0:
            if self._is_thinking(sequence):
                return END_THINK
            if not chain.ignore_eos:
                return EOS
        token = LETTERS[(draw // 997) % len(LETTERS)]
        if chain.sampling.logit_bias.get(token, 0.0) <= -100:
            return b"_"[0]
        return token

    def _is_thinking(self, sequence: int) -> bool:
        for cell in reversed(self.held[sequence]):
            if cell.token in (THINK, END_THINK):
                return cell.token == THINK
        return False

    @staticmethod
    def _logprob(token: int, n_top: int) -> TokenLogprob:
        others = [token, *(other for other in range(97, 97 + n_top) if other != token)][:n_top]
        top = tuple((other, PIECES[other], -0.5 - rank) for rank, other in enumerate(others))
        return TokenLogprob(token=token, piece=PIECES[token], logprob=-0.5, top=top)

    def _crash(self, row: Row) -> Exception | None:
        text = text_of(self.tokens_of(row.sequence))
        for word, how in self.options.crash_on.items():
            if word in text:
                if how == "abort":
                    os.write(2, b"fake.c:1: GGML_ASSERT(n > 0) failed\n")
                    os.abort()
                elif how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif how == "exit":
                    os._exit(3)
                elif how == "sampler":
                    return FloatingPointError(f"the fake was told to fail on {word!r}")
                raise RuntimeError(f"the fake was told to fail on {word!r}")
        return None

    def _make_noise(self) -> None:
        if self.options.noise:
            os.write(1, self.options.noise.encode())
            os.write(2, self.options.noise.encode())

    def embed(self, prompt: Sequence[int], start: int, end: int) -> list[float] | None:
        """Eight numbers a prompt, of unit length."""
        assert start in (0, self._n_embedded)
        assert start < end <= min(len(prompt), self.max_embedding_tokens)
        self._n_embedded = end
        return vector_of(prompt) if end == len(prompt) else None

    def shut(self) -> None:
        """Nothing to free."""


def vector_of(prompt: Sequence[int]) -> list[float]:
    """The embedding of a prompt."""
    digest = hashlib.sha256(repr(list(prompt)).encode()).digest()[:8]
    norm = math.sqrt(sum(byte * byte for byte in digest)) or 1.0
    return [byte / norm for byte in digest]


def tokenize(text: str, *, special: bool = True) -> list[int]:
    """Bytes; with `special`, control tokens by their text."""
    if not special:
        return list(text.encode())
    tokens: list[int] = []
    rest = text
    while rest:
        found = [(place, control) for control in CONTROL if (place := rest.find(control)) >= 0]
        if not found:
            return tokens + list(rest.encode())
        place, control = min(found)
        tokens += [*rest[:place].encode(), ID[control]]
        rest = rest[place + len(control) :]
    return tokens


def text_of(tokens: Sequence[int]) -> str:
    """The tokens' text, control tokens rendered."""
    return b"".join(PIECES[token] for token in tokens).decode(errors="replace")


def open_fake(options: dict[str, object], progress: Callable[[float], None]) -> FakeExecutor:
    """An executor factory; `options` are the fields of FakeOptions."""
    read = msgspec.convert(options, FakeOptions)
    for step in range(1, 5):
        time.sleep(read.load_seconds / 4)
        progress(step / 4)
    if read.die_while_loading:
        sys.stderr.write("fake: dies while it loads\n")
        sys.stderr.flush()
        os.abort()
    if read.fail_load:
        raise LoadError(read.fail_load)
    executor = FakeExecutor(read)
    executor._make_noise()
    return executor
