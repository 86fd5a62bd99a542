"""The short way through the samplers chooses what llama.cpp's plain chain chooses, token by token."""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ktllama.engine.executor import SamplingError
from ktllama.engine.messages import Sampling
from ktllama.runtime import library, shortlist
from ktllama.runtime.sampler_chain import SamplerChain, SamplerFactory, seed_of
from ktllama.runtime.shortlist import Logits, Scratch

_N_VOCAB = 3000
_N_ROWS = 60


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    name: str
    sampling: Sampling


_CASES = [
    _Case(name="r1", sampling=Sampling(temperature=0.6, top_p=0.95)),
    _Case(name="top_p_low", sampling=Sampling(top_p=0.3)),
    _Case(name="top_p_high", sampling=Sampling(temperature=1.3, top_p=0.999)),
    _Case(name="top_p_zero", sampling=Sampling(top_p=0.0)),
    _Case(name="min_p", sampling=Sampling(temperature=0.8, min_p=0.05)),
    _Case(name="top_p_min_p", sampling=Sampling(temperature=0.8, top_p=0.9, min_p=0.02)),
    _Case(name="top_k", sampling=Sampling(temperature=0.8, top_k=40)),
    _Case(name="top_k_one", sampling=Sampling(temperature=0.8, top_k=1)),
    _Case(name="top_k_large", sampling=Sampling(top_k=2999)),
    _Case(name="llama_server", sampling=Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)),
    _Case(name="typical", sampling=Sampling(typical_p=0.7)),
    _Case(name="typical_top_k", sampling=Sampling(typical_p=0.7, top_k=50, top_p=0.9)),
    _Case(name="plain", sampling=Sampling()),
    _Case(name="hot", sampling=Sampling(temperature=2.0)),
    _Case(name="xtc", sampling=Sampling(top_p=0.98, xtc_probability=0.5, xtc_threshold=0.05)),
    _Case(name="bias", sampling=Sampling(top_p=0.9, logit_bias={3: 5.0, 17: -math.inf, 999: 0.25})),
    _Case(
        name="penalties",
        sampling=Sampling(temperature=0.7, top_p=0.9, repeat_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1),
    ),
    _Case(name="window", sampling=Sampling(top_k=20, repeat_penalty=1.5, repeat_last_n=5)),
    _Case(
        name="dry",
        sampling=Sampling(top_p=0.9, dry_multiplier=0.8, dry_allowed_length=1, dry_sequence_breakers=()),
    ),
    _Case(name="mirostat", sampling=Sampling(mirostat=1)),
    _Case(name="mirostat_v2", sampling=Sampling(temperature=0.8, mirostat=2, mirostat_tau=3.0)),
]


def _factory(n_vocab: int) -> SamplerFactory:
    """A factory without a model: only DRY's breakers and grammars need one."""
    vocabulary: Any = SimpleNamespace(size=n_vocab, eos=0, end_tokens=frozenset({0}), suppressed=())
    return SamplerFactory(library.load().api, None, vocabulary, n_ctx=256)


class _PlainChain:
    """All samplers in one C chain over the whole vocabulary, in the order of llama.cpp's common sampler."""

    def __init__(self, sampling: Sampling, n_vocab: int) -> None:
        self.api = api = library.load().api
        self.chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        for sampler in self._samplers(sampling, n_vocab):
            api.llama_sampler_chain_add(self.chain, sampler)
        self.rows = (api.llama_token_data * n_vocab)()

    def _samplers(self, sampling: Sampling, n_vocab: int) -> Iterator[Any]:
        api, seed = self.api, seed_of(sampling)
        bias = (api.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias.items())
        yield api.llama_sampler_init_logit_bias(n_vocab, len(bias), bias)
        if sampling.mirostat:
            yield api.llama_sampler_init_temp(sampling.temperature)
            tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
            if sampling.mirostat == 1:
                yield api.llama_sampler_init_mirostat(n_vocab, seed, tau, eta, 100)
            else:
                yield api.llama_sampler_init_mirostat_v2(seed, tau, eta)
            return
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        yield api.llama_sampler_init_penalties(n_vocab, sampling.repeat_last_n, *penalties)
        dry = (sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length, 256)
        yield api.llama_sampler_init_dry(None, *dry, None, 0)
        yield api.llama_sampler_init_top_k(sampling.top_k)
        yield api.llama_sampler_init_typical(sampling.typical_p, 1)
        yield api.llama_sampler_init_top_p(sampling.top_p, 1)
        yield api.llama_sampler_init_min_p(sampling.min_p, 1)
        yield api.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 1, seed)
        yield api.llama_sampler_init_temp_ext(sampling.temperature, 0.0, 1.0)
        yield api.llama_sampler_init_dist(seed)

    def choose(self, logits: Logits) -> int:
        view = np.frombuffer(memoryview(self.rows).cast("B"), np.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")]))
        view["id"], view["logit"] = np.arange(len(logits)), logits
        array = self.api.llama_token_data_array(data=self.rows, size=len(logits), selected=-1, sorted=False)
        self.api.llama_sampler_apply(self.chain, ctypes.byref(array))
        token: int = array.data[array.selected].id
        self.api.llama_sampler_accept(self.chain, token)
        return token

    def close(self) -> None:
        self.api.llama_sampler_free(self.chain)


def _logits(random: np.random.Generator, index: int, n_vocab: int) -> Logits:
    """Rows of every shape: as language models give them, flat, peaked, with ties, with tokens ruled out."""
    row = random.standard_normal(n_vocab) * random.choice([0.1, 1.0, 2.5, 6.0]) + random.choice([-12.0, 0.0, 9.0])
    if index % 3 == 0:
        row[random.integers(n_vocab, size=4)] += random.uniform(4, 20)
    if index % 4 == 1:
        row = np.round(row * 4) / 4  # many equal logits
    if index % 7 == 2:
        row[random.random(n_vocab) < 0.5] = -np.inf
    logits: Logits = row.astype(np.float32)
    return logits


@pytest.mark.parametrize("n_vocab", [_N_VOCAB, 1000])
@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_the_short_way_chooses_what_the_plain_chain_chooses(case: _Case, n_vocab: int) -> None:
    sampling = Sampling(**{**{f: getattr(case.sampling, f) for f in Sampling.__struct_fields__}, "seed": 11})
    factory = _factory(n_vocab)
    chain, plain = SamplerChain(factory, sampling, ()), _PlainChain(sampling, n_vocab)
    random = np.random.default_rng(5)
    try:
        rows = [_logits(random, index, n_vocab) for index in range(_N_ROWS)]
        expected = [plain.choose(row) for row in rows]
        assert [chain.choose(row.copy()) for row in rows] == expected
    finally:
        chain.close()
        plain.close()
        factory.close()


def test_the_short_way_is_taken() -> None:
    """Or the test above would compare the plain chain with itself."""
    scratch, random = Scratch(_N_VOCAB), np.random.default_rng(6)
    taken = 0
    for _ in range(40):
        row = (random.standard_normal(_N_VOCAB) * 3).astype(np.float32)
        short = shortlist.top_p(scratch, row, 0.95, float(row.max()), 0.0)
        taken += short is not None
        assert shortlist.top_k(scratch, row, 40, float(row.max())) is not None
    assert taken == 40


def test_equal_logits_take_the_long_way() -> None:
    row = np.zeros(_N_VOCAB, np.float32)
    row[:2] = 8.0
    scratch = Scratch(_N_VOCAB)
    assert shortlist.top_k(scratch, row, 1, 8.0) is None
    assert shortlist.top_p(scratch, row, 0.5, 8.0, 0.0) is None


def test_shares_at_the_very_border_are_cut_as_llama_cpp_cuts_them() -> None:
    """Shares that add up to top_p, but for float32's rounding; every draw that the cut decides is made often."""
    factory = _factory(_N_VOCAB)
    for top_p, shares in ((0.8, (0.5, 0.3, 0.2)), (0.9, (0.3, 0.3, 0.3, 0.1)), (0.95, (0.15,) * 6 + (0.05, 0.05))):
        row = np.full(_N_VOCAB, -60.0, np.float32)
        row[: len(shares)] = np.log(np.array(shares) + np.arange(len(shares)) * 1e-7)
        sampling = Sampling(top_p=top_p, temperature=3.0, seed=2)
        chain, plain = SamplerChain(factory, sampling, ()), _PlainChain(sampling, _N_VOCAB)
        assert [chain.choose(row) for _ in range(200)] == [plain.choose(row) for _ in range(200)]
        chain.close()
        plain.close()


def test_greedy_takes_the_first_of_the_highest() -> None:
    factory = _factory(_N_VOCAB)
    chain = SamplerChain(factory, Sampling(temperature=0, top_p=0.5, xtc_probability=1.0), ())
    row = np.zeros(_N_VOCAB, np.float32)
    row[[700, 900]] = 3.0
    assert chain.choose(row) == 700
    chain.close()


def test_logits_are_as_before() -> None:
    factory = _factory(_N_VOCAB)
    chain = SamplerChain(factory, Sampling(repeat_penalty=2.0, logit_bias={1: 3.0}, seed=1), [1, 2, 3, 3])
    row = np.random.default_rng(1).standard_normal(_N_VOCAB).astype(np.float32)
    before = row.copy()
    chain.choose(row)
    assert np.array_equal(row, before)
    chain.close()


def test_history_counts_for_penalties() -> None:
    factory = _factory(_N_VOCAB)
    row = np.zeros(_N_VOCAB, np.float32)
    row[5], row[6] = 2.0, 1.5
    fresh = SamplerChain(factory, Sampling(temperature=0, repeat_penalty=2.0), ())
    seen = SamplerChain(factory, Sampling(temperature=0, repeat_penalty=2.0), [5])
    assert (fresh.choose(row), seen.choose(row)) == (5, 6)
    fresh.close()
    seen.close()


def test_chains_do_not_disturb_each_other() -> None:
    factory, random = _factory(_N_VOCAB), np.random.default_rng(3)
    rows = [random.standard_normal(_N_VOCAB).astype(np.float32) * 2 for _ in range(20)]
    sampling = Sampling(temperature=0.9, top_p=0.97, seed=4)

    def alone() -> list[int | None]:
        chain = SamplerChain(factory, sampling, ())
        chosen = [chain.choose(row) for row in rows]
        chain.close()
        return chosen

    chain, other = SamplerChain(factory, sampling, ()), SamplerChain(factory, Sampling(seed=9), ())
    beside = []
    for row in rows:
        beside.append(chain.choose(row))
        other.choose(row)
    chain.close()
    other.close()
    assert beside == alone() == alone()


def test_where_bias_leaves_nothing_the_answer_ends() -> None:
    factory = _factory(4)
    chain = SamplerChain(factory, Sampling(logit_bias=dict.fromkeys(range(4), -math.inf)), ())
    assert chain.choose(np.zeros(4, np.float32)) is None
    chain.close()


def test_end_tokens_can_be_ruled_out() -> None:
    factory = _factory(4)
    chain = SamplerChain(factory, Sampling(temperature=0), (), ignore_eos=True)
    assert chain.choose(np.array([9, 1, 2, 1], np.float32)) == 2
    chain.close()


def test_logits_that_are_no_numbers_are_an_error() -> None:
    factory = _factory(4)
    chain = SamplerChain(factory, Sampling(), ())
    with pytest.raises(FloatingPointError, match="highest logit is nan"):
        chain.choose(np.array([0, math.nan, 0, 0], np.float32))
    chain.close()


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(temperature=-1), "temperature"),
        (Sampling(temperature=math.nan), "temperature"),
        (Sampling(top_p=1.5), "top_p"),
        (Sampling(repeat_penalty=0), "repeat_penalty"),
        (Sampling(logit_bias={_N_VOCAB: 1.0}), "logit_bias"),
        (Sampling(logit_bias={1: math.inf}), "logit_bias"),
        (Sampling(dry_sequence_breakers=("",)), "dry_sequence_breakers"),
        (Sampling(dry_sequence_breakers=("x" * 41,)), "dry_sequence_breakers"),
        (Sampling(seed=2**64), "seed"),
    ],
)
def test_what_cannot_be_honoured_is_named(sampling: Sampling, field: str) -> None:
    with pytest.raises(SamplingError) as caught:
        _factory(_N_VOCAB).check(sampling)
    assert caught.value.field == field


def test_no_seed_is_the_clock() -> None:
    assert seed_of(Sampling(seed=0xFFFFFFFF)) == 0xFFFFFFFE
    assert seed_of(Sampling(seed=-1)) == 0xFFFFFFFE
    assert seed_of(Sampling()) != seed_of(Sampling())


def test_rough_weights_are_never_too_small_and_hardly_too_large() -> None:
    scratch = Scratch(_N_VOCAB)
    logits = np.linspace(-80.0, 3.0, _N_VOCAB).astype(np.float32)
    scratch.roughen(logits, 3.0)
    ratios = scratch.rough / np.exp(logits.astype(np.float64) - 3.0)
    assert 1 - 1e-4 < ratios.min() < 1.001
    assert 1.061 < ratios.max() < 1.0615 * (1 + 1e-4)
    logits[:] = -np.inf
    scratch.roughen(logits, 3.0)
    assert float(scratch.rough.max()) < 1e-37


def test_bounds_decide_as_the_exact_sum_does() -> None:
    """And often they do decide."""
    scratch, random = Scratch(20_000), np.random.default_rng(8)
    decided = 0
    for index in range(60):
        row = (random.standard_normal(20_000) * random.uniform(1.5, 3)).astype(np.float32)
        row[random.integers(20_000, size=30)] += random.uniform(4, 16)
        target = (0.5, 0.9, 0.95, 0.99)[index % 4]
        highest = float(row.max())
        short = shortlist._bounded_top_p(scratch, row, float(np.float32(target)), highest)
        if short is None:
            continue
        decided += 1
        shares = np.sort(np.exp(row.astype(np.float64) - highest))[::-1]
        shares /= shares.sum()
        assert len(short.ids) == int(np.searchsorted(np.cumsum(shares), target)) + 1
        assert short.ids.tolist() == np.argsort(-row, kind="stable")[: len(short.ids)].tolist()
    assert decided > 15
