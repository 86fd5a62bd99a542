"""How a sequence's next token is chosen: llama.cpp's samplers in the order of its common sampler.

One :class:`SamplerChain` a sequence holds two chains of C samplers. ``adjust`` changes the logits of tokens that were
seen (penalties, DRY), so it is shown only those. ``cut`` and ``pick`` drop candidates and choose one; they are
shown a :mod:`~ktllama.runtime.shortlist` where one can be proven and the whole vocabulary otherwise, and the outcome is
the same token, for the same seed. Order and meaning: ``common/sampling.cpp`` of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ktllama.engine.messages import Sampling
from ktllama.runtime import shortlist
from ktllama.runtime.dry import DryPrototype, DryPrototypes
from ktllama.runtime.grammar import Constraint
from ktllama.runtime.sampling_limits import check_sampling
from ktllama.runtime.shortlist import Logits, Scratch, Shortlist
from ktllama.runtime.vocabulary import Vocabulary

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
_MIN_KEEP = 1
_MIROSTAT_M = 100  # common/sampling.cpp
_GREEDY_TRIES = 64
#: Up to so many tokens llama.cpp's samplers take less time than finding a short list (bench.serve.sampling).
_SMALL_VOCABULARY = 2048
_FEW_BIASES = 16
_CLOCK_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp takes another one


class Candidates:
    """``llama_token_data_array`` over one buffer, for one thread."""

    def __init__(self, api: Any, n_vocab: int) -> None:
        self.rows = np.zeros(n_vocab, _CANDIDATE)
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._address = self.rows.ctypes.data
        self._data = ctypes.cast(self._address, api.llama_token_data_p)
        self._array = api.llama_token_data_array()
        self._pointer = ctypes.byref(self._array)
        self._selected_id = ctypes.c_int32.from_address
        self._apply = api.llama_sampler_apply

    def load(self, ids: Any, logits: Logits, *, descending: bool) -> None:
        """Take ``ids`` (None: all) with their logits."""
        size = len(logits)
        rows = self.rows[:size]
        rows["id"] = self._ids if ids is None else ids
        rows["logit"] = logits
        array = self._array
        array.data, array.size, array.selected, array.sorted = self._data, size, -1, descending

    def apply(self, sampler: Any) -> None:
        """Run one sampler or chain over the candidates."""
        self._apply(sampler, self._pointer)

    def logits(self, size: int) -> Logits:
        """The first ``size`` logits; only where no sampler has moved candidates."""
        return self.rows["logit"][:size]

    def selected(self) -> int:
        """The id of the chosen candidate. XTC moves the array's beginning, so that is asked for."""
        array = self._array
        assert 0 <= array.selected < array.size, "no sampler chose a token"
        beginning = ctypes.cast(array.data, ctypes.c_void_p).value
        assert beginning is not None
        return self._selected_id(beginning + _CANDIDATE.itemsize * array.selected).value


class SamplerFactory:
    """Makes the chains of one model; ``n_ctx`` is what a window of -1 tokens means.

    ``context`` is llama.cpp's, if rows of it are chosen from.
    """

    def __init__(self, api: Any, vocab: Any, vocabulary: Vocabulary, n_ctx: int, context: Any = None) -> None:
        self.api = api
        self.context = context
        self.vocab = vocab
        self.vocabulary = vocabulary
        self.n_ctx = n_ctx
        self.candidates = Candidates(api, vocabulary.size)
        self.scratch = Scratch(vocabulary.size)
        self._dry = DryPrototypes(api, vocab)

    def check(self, sampling: Sampling) -> None:
        """Refuse what llama.cpp would misread.

        Raises:
            SamplingError: naming the field.
        """
        check_sampling(sampling, self.vocabulary.size)

    def window(self, last_n: int) -> int:
        """A number of recent tokens; -1 is the whole context."""
        return self.n_ctx if last_n < 0 else min(last_n, self.n_ctx)

    def chain(self, samplers: Sequence[Any]) -> Any:
        """A C chain that owns ``samplers``; None for none."""
        if not samplers:
            return None
        parameters = self.api.llama_sampler_chain_default_params()
        parameters.no_perf = True
        chain = self.api.llama_sampler_chain_init(parameters)
        for sampler in samplers:
            self.api.llama_sampler_chain_add(chain, sampler)
        return chain

    def dry(self, sampling: Sampling) -> DryPrototype | None:
        """The prototype of its DRY sampler, which may take seconds. For one thread, which need not be the chains'."""
        return self._dry.get(sampling, self.window(sampling.dry_penalty_last_n))

    def penalties(self, sampling: Sampling, dry: DryPrototype | None) -> list[Any]:
        """Repetition penalties and DRY, those that do something."""
        made = []
        last_n = self.window(sampling.repeat_last_n)
        given = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        if last_n and given != (1.0, 0.0, 0.0):
            made.append(self.api.llama_sampler_init_penalties(self.vocabulary.size, last_n, *given))
        return made if dry is None else [*made, dry.clone()]

    def whole_chain(self, sampling: Sampling) -> Any:
        """Cutting and picking as one chain that reads a row of the context by itself, where that is the short way."""
        if self.context is None or self.vocabulary.size > _SMALL_VOCABULARY or sampling.mirostat:
            return None
        return self.chain([*_cutting(self.api, sampling), *_picking(self, sampling)])

    def close(self) -> None:
        """Free what is kept between chains."""
        self._dry.close()


class SamplerChain:
    """Chooses the tokens of one sequence. ``history`` is what came before, for the penalties; ``dry`` is the factory's.

    Temperature 0 is greedy: the highest logit after bias, penalties and grammar, the lowest id among equals, whatever
    else is set.
    """

    def __init__(
        self,
        factory: SamplerFactory,
        sampling: Sampling,
        history: Sequence[int],
        *,
        ignore_eos: bool = False,
        dry: DryPrototype | None = None,
    ) -> None:
        self._factory = factory
        self._api = factory.api
        self._sampling = sampling
        self._scratch = factory.scratch
        self._candidates = factory.candidates
        self._greedy = sampling.temperature <= 0
        # the place of the highest logit: of few, numpy finds it sooner than the logit alone
        self._finds_best = self._greedy or factory.vocabulary.size <= _SMALL_VOCABULARY
        self._bias_ids, self._bias = _bias(sampling, factory.vocabulary, ignore_eos=ignore_eos)
        self._adjust = factory.chain([] if sampling.mirostat else factory.penalties(sampling, dry))
        self._seen = SeenTokens()
        self._few = (
            {} if self._bias_ids is None else dict(zip(self._bias_ids.tolist(), self._bias.tolist(), strict=True))
        )
        self._light = self._adjust is None and len(self._few) <= _FEW_BIASES
        cut, pick = _cutting(factory.api, sampling), _picking(factory, sampling)
        self._cut, self._pick = factory.chain(cut), factory.chain(pick)
        self._whole = factory.whole_chain(sampling)
        self.constraint: Constraint | None = None
        if self._adjust is not None:
            self._show_history(history)

    def choose(self, logits: Logits, place: int | None = None) -> int | None:
        """The next token after ``logits``, which are changed meanwhile and restored; it is accepted too.

        ``place`` says which row of the factory's context they are, counted from -1, the last; None: none of them.
        None where no token is allowed at all: the answer has to end.
        """
        choose = self._choose_lightly if self._light else self._choose_adjusted
        token = choose(logits, place)
        if token is not None:
            self._see(token)
            if self.constraint is not None:
                self.constraint.accept(token)
        return token

    def _choose_adjusted(self, logits: Logits, place: int | None) -> int | None:
        touched = self._touched()
        kept = logits[touched] if touched is not None else None
        try:
            self._adjust_logits(logits)
            return self._choose_fitting(logits, place)
        finally:
            if kept is not None:
                logits[touched] = kept

    def _choose_lightly(self, logits: Logits, place: int | None) -> int | None:
        """The same where only a few biases adjust the logits: one by one they cost less than numpy's indexing."""
        kept = [(token, logits.item(token)) for token in self._few]
        try:
            for token, value in kept:
                logits[token] = value + self._few[token]
            return self._choose_fitting(logits, place)
        finally:
            for token, value in kept:
                logits[token] = value

    def accept(self, token: int) -> None:
        """Show a token that was not chosen here.

        Raises:
            GrammarError: when it does not fit the sequence's grammar.
        """
        if self.constraint is not None:
            self.constraint.require(token)
            self.constraint.accept(token)
        self._see(token)

    def close(self) -> None:
        """Free the C samplers. Safe to call twice."""
        for chain in (self._adjust, self._cut, self._pick, self._whole):
            if chain is not None:
                self._api.llama_sampler_free(chain)
        self._adjust = self._cut = self._pick = self._whole = None
        if self.constraint is not None:
            self.constraint.close()
            self.constraint = None

    def _show_history(self, history: Sequence[int]) -> None:
        sampling, window = self._sampling, self._factory.window
        longest = max(window(sampling.repeat_last_n), window(sampling.dry_penalty_last_n))
        for token in history[-longest:] if longest else ():
            self._see(token)

    def _see(self, token: int) -> None:
        if self._adjust is not None:
            self._api.llama_sampler_accept(self._adjust, token)
            self._seen.add(token)

    def _touched(self) -> Any:
        """The ids whose logits bias and penalties may change; None for none."""
        if self._adjust is None:
            return self._bias_ids
        seen = self._seen.ids()
        return seen if self._bias_ids is None else np.concatenate((self._bias_ids, seen))

    def _adjust_logits(self, logits: Logits) -> None:
        if self._bias_ids is not None:
            logits[self._bias_ids] += self._bias
        if self._adjust is not None:
            seen = self._seen.ids()
            if len(seen):
                self._candidates.load(seen, logits[seen], descending=False)
                self._candidates.apply(self._adjust)
                logits[seen] = self._candidates.logits(len(seen))

    def _choose_fitting(self, logits: Logits, place: int | None) -> int | None:
        """A token that the grammar has. Sampled first and checked then, as llama.cpp's server does."""
        constraint = self.constraint
        token = self._choose_free(logits, None if constraint else place)
        if token is None or constraint is None or constraint.allows(token):
            return token
        if self._greedy and (found := self._next_best(logits, constraint)) is not None:
            return found
        candidates = self._candidates
        candidates.load(None, logits, descending=False)
        candidates.apply(constraint.sampler)
        return self._choose_free(candidates.logits(len(logits)).copy())

    def _next_best(self, logits: Logits, constraint: Constraint) -> int | None:
        ids = shortlist.highest_ids(self._scratch, logits, _GREEDY_TRIES, float(logits.max()))
        return None if ids is None else next((token for token in ids.tolist() if constraint.allows(token)), None)

    def _choose_free(self, logits: Logits, place: int | None = None) -> int | None:
        """A token without regard to the grammar; None where every logit is minus infinity."""
        best = int(logits.argmax()) if self._finds_best else None
        highest: float = float(logits.max()) if best is None else logits.item(best)
        if highest == -math.inf:
            return None
        if not math.isfinite(highest):
            raise FloatingPointError(f"the highest logit is {highest}, so no token can be chosen")
        if self._greedy:
            return best
        if place is not None and self._whole is not None:
            return int(self._api.llama_sampler_sample(self._whole, self._factory.context, place))
        short, cut = self._shortlist(logits, highest)
        candidates = self._candidates
        if short is None:
            candidates.load(None, logits, descending=False)
        else:
            candidates.load(short.ids, short.logits, descending=short.descending)
        if cut and self._cut is not None:
            candidates.apply(self._cut)
        candidates.apply(self._pick)
        return candidates.selected()

    def _shortlist(self, logits: Logits, highest: float) -> tuple[Shortlist | None, bool]:
        """The provable candidates (None: all), and whether the cutting samplers still have to see them."""
        sampling, scratch = self._sampling, self._scratch
        if sampling.mirostat:
            return None, False
        if scratch.n_vocab <= _SMALL_VOCABULARY:
            return None, True
        if sampling.top_k > 0:  # what follows counts the survivors' probabilities only
            return shortlist.top_k(scratch, logits, sampling.top_k, highest), True
        if sampling.typical_p < 1:
            return None, True
        if sampling.top_p < 1:
            short = shortlist.top_p(scratch, logits, sampling.top_p, highest, sampling.min_p)
            return short, short is None
        if sampling.min_p > 0:
            return shortlist.min_p(scratch, logits, sampling.min_p, highest), False
        return None, False


class SeenTokens:
    """The distinct tokens of a sequence, as an array that grows."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._ids = np.empty(64, np.int64)

    def add(self, token: int) -> None:
        """Note one token."""
        count = len(self._known)
        self._known.add(token)
        if len(self._known) == count:
            return
        if count == len(self._ids):
            self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
        self._ids[count] = token

    def ids(self) -> Any:
        """All of them, in the order in which they were first seen."""
        return self._ids[: len(self._known)]


def seed_of(sampling: Sampling) -> int:
    """The C samplers' 32-bit seed; a random one where none is asked for."""
    seed = int.from_bytes(os.urandom(4), "little") if sampling.seed is None else sampling.seed & 0xFFFFFFFF
    return seed - 1 if seed == _CLOCK_SEED else seed


def _bias(sampling: Sampling, vocabulary: Vocabulary, *, ignore_eos: bool) -> tuple[Any, Any]:
    bias = dict(sampling.logit_bias)
    for token in (*vocabulary.suppressed, *(vocabulary.end_tokens if ignore_eos else ())):
        bias[token] = -math.inf
    if not bias:
        return None, None
    return np.fromiter(bias, np.int64, len(bias)), np.fromiter(bias.values(), np.float32, len(bias))


def _cutting(api: Any, sampling: Sampling) -> list[Any]:
    """What needs the probabilities of all candidates."""
    if sampling.mirostat:
        return []
    return [
        *([api.llama_sampler_init_top_k(sampling.top_k)] if sampling.top_k > 0 else []),
        *([api.llama_sampler_init_typical(sampling.typical_p, _MIN_KEEP)] if sampling.typical_p < 1 else []),
        *([api.llama_sampler_init_top_p(sampling.top_p, _MIN_KEEP)] if sampling.top_p < 1 else []),
    ]


def _picking(factory: SamplerFactory, sampling: Sampling) -> list[Any]:
    api, seed = factory.api, seed_of(sampling)
    temperature = [] if sampling.temperature == 1 else [api.llama_sampler_init_temp(sampling.temperature)]
    tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
    if sampling.mirostat == 1:
        made = api.llama_sampler_init_mirostat(factory.vocabulary.size, seed, tau, eta, _MIROSTAT_M)
        return [*temperature, made]
    if sampling.mirostat == 2:
        return [*temperature, api.llama_sampler_init_mirostat_v2(seed, tau, eta)]
    xtc = (sampling.xtc_probability, sampling.xtc_threshold, _MIN_KEEP, seed)
    return [
        *([api.llama_sampler_init_min_p(sampling.min_p, _MIN_KEEP)] if sampling.min_p > 0 else []),
        *([api.llama_sampler_init_xtc(*xtc)] if sampling.xtc_probability > 0 else []),
        *temperature,
        api.llama_sampler_init_dist(seed),
    ]
