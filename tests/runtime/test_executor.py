"""llama.cpp as the engine's executor, on small random models: sequences, cells, samplers, errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from ktllama.engine.executor import (
    ExecutorFactory,
    GrammarError,
    LoadError,
    OutOfCellsError,
    Row,
    Sampled,
    SamplingError,
)
from ktllama.engine.messages import Sampling, Segment
from ktllama.errors import DeviceError, LlamaCppError
from ktllama.runtime import executor as executor_module
from ktllama.runtime.embedder import Embedder
from ktllama.runtime.executor import LlamaExecutor, open_executor, open_in_own_process, parking_bytes
from ktllama.runtime.sampler_chain import SamplerChain

#: for the type checker: both are what the engine process asks for
_FACTORIES: tuple[ExecutorFactory, ...] = (open_executor, open_in_own_process)

_GREEDY = Sampling(temperature=0)
_PROMPT = list(b"a prompt of a few tokens")


def _open(model: Path, **options: object) -> LlamaExecutor:
    given: dict[str, object] = {"model": str(model), "ctx": 256, "ubatch": 64, "threads": 1, "kv_type": "f32"}
    return open_executor({**given, "flash_attn": "off", **options}, lambda _fraction: None)


@pytest.fixture(scope="module", params=["llama", "deepseek"])
def executor(request: pytest.FixtureRequest) -> Iterator[LlamaExecutor]:
    opened = _open(request.getfixturevalue(request.param))
    yield opened
    opened.shut()


@pytest.fixture(autouse=True)
def _empty_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "executor" in request.fixturenames:
        shared: LlamaExecutor = request.getfixturevalue("executor")
        for sequence in range(shared.n_sequences):
            shared.close(sequence)
            shared.remove(sequence, 0)
        assert shared.used_cells() == 0


def _rows(sequence: int, tokens: Sequence[int], start: int = 0, *, sample: bool = True) -> list[Row]:
    last = len(tokens) - 1
    return [Row(sequence, token, start + index, sample and index == last) for index, token in enumerate(tokens)]


def _prefill(executor: LlamaExecutor, sequence: int, sampling: Sampling = _GREEDY, n_top: int | None = None) -> Sampled:
    executor.open(sequence, sampling, _PROMPT, n_top, True)
    return executor.run(_rows(sequence, _PROMPT))[0]


def _continue(executor: LlamaExecutor, sequence: int, first: Sampled, start: int, count: int) -> list[int]:
    tokens = [first.token]
    while len(tokens) < count:
        tokens.append(executor.run([Row(sequence, tokens[-1], start + len(tokens) - 1, True)])[0].token)
    return tokens


def _alike(first: Sampled, second: Sampled) -> bool:
    """The same tokens with nearly the same probabilities: sums depend on where in the context the cells lie."""
    assert first.logprob is not None
    assert second.logprob is not None
    values = {token: value for token, _, value in first.logprob.top}
    return first.token == second.token and values == pytest.approx(
        {token: value for token, _, value in second.logprob.top}, abs=5e-3
    )


def _alone(executor: LlamaExecutor, sampling: Sampling, count: int = 12) -> list[int]:
    tokens = _continue(executor, 0, _prefill(executor, 0, sampling), len(_PROMPT), count)
    executor.close(0)
    executor.remove(0, 0)
    return tokens


def test_the_model_is_described(deepseek: Path) -> None:
    fractions: list[float] = []
    executor = open_executor(
        {"model": str(deepseek), "ctx": 256, "ubatch": 64, "threads": 1, "parallel": 3, "cached_sequences": 2},
        fractions.append,
    )
    model = executor.model
    executor.shut()
    assert (model.name, model.architecture, model.vocab_size) == ("deepseek", "deepseek2", 260)
    assert (model.n_ctx, model.n_ctx_train, model.n_ubatch, model.n_parallel) == (256, 1024, 64, 3)
    assert executor.n_sequences == 5
    assert (model.bos, model.eos, model.add_bos, model.chat_template) == ("<bos>", "<eos>", True, "")
    assert executor.end_tokens == {256}
    assert sorted(model.special_tokens) == ["<assistant>", "<bos>", "<eos>", "<user>"]
    assert (model.can_share_prefix, model.can_embed, model.pooling) == (True, True, "mean")
    assert model.metadata["deepseek2.expert_count"] == "8"
    assert not [key for key in model.metadata if key.startswith("tokenizer.ggml.tokens")]
    assert [line.partition(" of weights, ")[0].partition(" ")[0] for line in model.plan] == ["CPU:"]
    assert model.plan[0].endswith("of compute buffers")
    assert model.build.startswith("llama-cpp-python 0.3.36; CPU : ")
    assert fractions[-1] == 1.0
    assert fractions == sorted(fractions)


def test_sequences_run_together_as_they_run_alone(executor: LlamaExecutor) -> None:
    """Prompts and single tokens of several sequences in one batch; greedy, so only a real mix-up would show."""
    alone = _alone(executor, _GREEDY)
    for sequence in range(3):
        executor.open(sequence, _GREEDY, (), None, True)
    first = executor.run(_rows(0, _PROMPT))[0]
    mixed = executor.run([Row(0, first.token, len(_PROMPT), True), *_rows(1, _PROMPT)])
    assert [sampled.token for sampled in mixed] == [alone[1], alone[0]]
    mixed = executor.run(
        [*_rows(2, _PROMPT), Row(1, alone[0], len(_PROMPT), True), Row(0, alone[1], len(_PROMPT) + 1, True)]
    )
    assert [sampled.token for sampled in mixed] == [alone[0], alone[1], alone[2]]
    assert executor.used_cells() == 3 * len(_PROMPT) + 3
    assert [executor.length(sequence) for sequence in range(3)] == [len(_PROMPT) + extra for extra in (2, 1, 0)]


def test_a_prompt_in_chunks_is_the_same_prompt(executor: LlamaExecutor) -> None:
    alone = _alone(executor, _GREEDY, 3)
    executor.open(0, _GREEDY, (), None, True)
    assert executor.run(_rows(0, _PROMPT[:10], sample=False)) == []
    first = executor.run(_rows(0, _PROMPT[10:], 10))[0]
    assert _continue(executor, 0, first, len(_PROMPT), 3) == alone


def test_a_copied_prefix_gives_the_logits_of_a_computed_one(executor: LlamaExecutor) -> None:
    """Cells are shared, not computed again; the tokens after them lie elsewhere in the context."""
    executor.open(0, _GREEDY, (), 3, True)
    executor.run(_rows(0, _PROMPT[:15], sample=False))
    executor.copy(0, 1, 15)
    executor.copy(0, 2, 8)
    assert executor.used_cells() == 15
    assert [executor.length(sequence) for sequence in (0, 1, 2)] == [15, 15, 8]
    first = executor.run(_rows(0, _PROMPT[15:], 15))[0]
    executor.open(1, _GREEDY, (), 3, True)
    second = executor.run(_rows(1, _PROMPT[15:], 15))[0]
    assert _alike(first, second)
    executor.open(2, _GREEDY, (), 3, True)
    third = executor.run(_rows(2, _PROMPT[8:], 8))[0]
    assert third.logprob is not None
    assert first.logprob is not None
    assert third.logprob.logprob == pytest.approx(first.logprob.logprob, abs=1e-4)


def test_cells_of_a_copy_outlive_the_original(executor: LlamaExecutor) -> None:
    alone = _alone(executor, _GREEDY, 4)
    executor.open(0, _GREEDY, (), None, True)
    executor.run(_rows(0, _PROMPT[:-1], sample=False))
    executor.copy(0, 1, len(_PROMPT) - 1)
    executor.remove(0, 0)
    assert executor.used_cells() == len(_PROMPT) - 1
    executor.open(1, _GREEDY, (), None, True)
    first = executor.run(_rows(1, _PROMPT[-1:], len(_PROMPT) - 1))[0]
    assert _continue(executor, 1, first, len(_PROMPT), 4) == alone


def test_a_sequence_goes_on_from_where_it_was_cut(executor: LlamaExecutor) -> None:
    first = _prefill(executor, 0)
    tokens = _continue(executor, 0, first, len(_PROMPT), 6)
    executor.remove(0, len(_PROMPT) + 2)
    assert executor.used_cells() == executor.length(0) == len(_PROMPT) + 2
    again = executor.run([Row(0, tokens[2], len(_PROMPT) + 2, True)])[0]
    assert again.token == tokens[3]


def test_saved_cells_come_back_as_they_were(executor: LlamaExecutor) -> None:
    """Whole, cut, and beside others."""
    executor.open(0, _GREEDY, _PROMPT, 2, True)
    executor.run(_rows(0, _PROMPT[:15], sample=False))
    saved = executor.save(0)
    first = executor.run(_rows(0, _PROMPT[15:], 15))[0]
    executor.remove(0, 0)
    assert (saved.n_tokens, executor.used_cells()) == (15, 0)
    for sequence, n_tokens in ((1, 15), (2, 9)):
        assert executor.restore(sequence, saved, n_tokens)
        assert executor.length(sequence) == n_tokens
    assert executor.used_cells() == 24
    executor.run(_rows(2, _PROMPT[9:15], 9, sample=False))
    for sequence in (1, 2):
        executor.open(sequence, _GREEDY, _PROMPT, 2, True)
    again = executor.run(_rows(1, _PROMPT[15:], 15))[0]
    cut = executor.run(_rows(2, _PROMPT[15:], 15))[0]
    for other in (again, cut):
        assert _alike(first, other)


def test_saved_cells_need_room_to_come_back(executor: LlamaExecutor) -> None:
    executor.run(_rows(0, _PROMPT, sample=False))
    saved = executor.save(0)
    assert saved.n_bytes == executor.saved_bytes(0)
    for sequence in range(1, 1 + 256 // len(_PROMPT) - 1):
        executor.run(_rows(sequence, _PROMPT, sample=False))
    used = executor.used_cells()
    assert not executor.restore(executor.n_sequences - 1, saved, len(_PROMPT))
    assert (executor.used_cells(), executor.length(executor.n_sequences - 1)) == (used, 0)


def test_as_much_as_the_context_is_parked_where_all_of_it_is_on_the_cpu_and_memory_is_free(
    executor: LlamaExecutor,
) -> None:
    assert executor.parking_bytes > 0
    assert [parking_bytes({"CPU": 10}, free) for free in (1000, 8)] == [10, 4]
    assert parking_bytes({"CPU": 10, "CUDA0": 1}, 1000) == parking_bytes({"CUDA0": 10}, 1000) == 0


def test_a_full_context_says_so_and_goes_on(executor: LlamaExecutor) -> None:
    n_ctx = executor.model.n_ctx
    for start in range(0, n_ctx - 32, 32):
        executor.run(_rows(0, [65] * 32, start, sample=False))
    assert executor.used_cells() == n_ctx - 32
    with pytest.raises(OutOfCellsError, match="no room for 40 tokens"):
        executor.run(_rows(1, [66] * 40, sample=False))
    assert (executor.used_cells(), executor.length(1)) == (n_ctx - 32, 0)
    executor.run(_rows(1, [66] * 32, sample=False))
    assert executor.used_cells() == n_ctx
    executor.remove(0, 10)
    executor.run(_rows(2, [67] * 40, sample=False))


def test_all_sequences_can_be_in_one_batch(executor: LlamaExecutor) -> None:
    count = executor.n_sequences
    for sequence in range(count):
        executor.open(sequence, Sampling(seed=sequence), (), None, True)
    sampled = executor.run([row for sequence in range(count) for row in _rows(sequence, [65, 66, 67])])
    assert len(sampled) == count
    assert executor.used_cells() == 3 * count
    assert len({each.token for each in sampled}) > 1  # chains of their own: other seeds, other tokens


def test_rows_that_llama_cpp_refuses_are_an_error_and_change_nothing(executor: LlamaExecutor) -> None:
    for rows in ([Row(0, 100_000, 0, False)], [Row(0, 65, 7, False), Row(0, 65, 3, False)], [Row(300, 65, 0, False)]):
        with pytest.raises(LlamaCppError, match="could not compute"):
            executor.run(rows)
        assert executor.used_cells() == 0
    with pytest.raises(ValueError, match=r"rows ask for a sample"):
        executor.run([Row(0, 65, at, True) for at in range(executor.n_sequences + 1)])
    for count in (0, executor.model.n_ubatch + 1):
        with pytest.raises(ValueError, match=f"a batch of {count} rows"):
            executor.run(_rows(0, [65] * count, sample=False))


def test_a_seed_gives_its_text_again(executor: LlamaExecutor) -> None:
    sampling = Sampling(temperature=1.0, seed=5)
    assert _alone(executor, sampling) == _alone(executor, sampling)
    assert _alone(executor, sampling) != _alone(executor, Sampling(temperature=1.0, seed=6))


def test_rows_of_the_context_are_chosen_from_as_any_logits_are(executor: LlamaExecutor) -> None:
    """A small vocabulary is sampled by one call that reads its row by itself; several rows, each its own."""
    sampling = Sampling(temperature=0.9, top_p=0.9, seed=5)
    prompts = [_PROMPT, _PROMPT[:9], _PROMPT[3:]]
    for sequence in range(3):
        executor.open(sequence, sampling, (), None, True)
    rows = [row for sequence, prompt in enumerate(prompts) for row in _rows(sequence, prompt)]
    chosen = [sampled.token for sampled in executor.run(rows)]
    for sequence in range(3):
        executor.remove(sequence, 0)
    logits = executor.compute(rows).copy()
    expected = []
    for row in logits:
        chain = SamplerChain(executor._factory, sampling, (), ignore_eos=True)
        expected.append(chain.choose(row))
        chain.close()
    assert chosen == expected
    assert len(set(chosen)) > 1


def test_logprobs_are_the_softmax_of_the_logits(executor: LlamaExecutor) -> None:
    sampled = _prefill(executor, 0, Sampling(temperature=0, logit_bias={70: 50.0}), 260)
    found = sampled.logprob
    assert found is not None
    assert (sampled.token, sampled.piece) == (70, b"F")
    assert len(found.top) == 260
    assert sum(math.exp(logprob) for _, _, logprob in found.top) == pytest.approx(1, abs=1e-5)
    assert [logprob for _, _, logprob in found.top] == sorted((each[2] for each in found.top), reverse=True)
    assert found.logprob == {token: logprob for token, _, logprob in found.top}[70]  # before the bias
    assert found.top[0][0] != 70
    none = _prefill(executor, 1, _GREEDY)
    assert none.logprob is None


def test_end_tokens_can_be_ruled_out(executor: LlamaExecutor) -> None:
    bias = Sampling(temperature=0, logit_bias={256: 100.0})
    executor.open(0, bias, (), None, False)
    executor.open(1, bias, (), None, True)
    first, second = executor.run([*_rows(0, _PROMPT), *_rows(1, _PROMPT)])
    assert first.token == 256
    assert second.token not in executor.end_tokens


def test_a_grammar_begins_where_it_is_told_to(executor: LlamaExecutor) -> None:
    checked = executor.check(Sampling(seed=3), 'root ::= "yes" | "no" [0-9]{3}', "")
    executor.open(0, Sampling(seed=3), (), None, False, checked)
    tokens = [executor.run(_rows(0, _PROMPT))[0].token]
    executor.constrain(0)
    while tokens[-1] not in executor.end_tokens:
        tokens.append(executor.run([Row(0, tokens[-1], len(_PROMPT) + len(tokens) - 1, True)])[0].token)
    text = bytes(tokens[1:-1]).decode()
    assert text == "yes" or (text[:2] == "no" and len(text) == 5 and text[2:].isdigit())


def test_forced_tokens_must_fit_the_grammar(executor: LlamaExecutor) -> None:
    executor.open(0, _GREEDY, (), None, False, executor.check(_GREEDY, 'root ::= "ab" "c"', ""))
    executor.accept(0, 65)
    executor.constrain(0)
    executor.accept(0, ord("a"))
    with pytest.raises(GrammarError, match="token 120 does not fit the grammar"):
        executor.accept(0, ord("x"))
    executor.accept(0, ord("b"))
    with pytest.raises(GrammarError):
        executor.accept(0, 256)  # llama.cpp would abort here
    assert executor.run(_rows(0, _PROMPT))[0].token == ord("c")


def test_a_grammar_that_no_token_continues_ends_the_answer(executor: LlamaExecutor) -> None:
    sampling = Sampling(temperature=0, logit_bias={ord("a"): -math.inf})
    executor.open(0, sampling, (), None, False, executor.check(sampling, 'root ::= "a"', ""))
    executor.constrain(0)
    assert executor.run(_rows(0, _PROMPT))[0].ends


def test_a_grammar_that_is_through_ends_an_answer_that_ignores_ends(executor: LlamaExecutor) -> None:
    executor.open(0, _GREEDY, (), None, True, executor.check(_GREEDY, 'root ::= "a"', ""))
    executor.constrain(0)
    (only,) = executor.run(_rows(0, _PROMPT))
    assert (only.token, only.ends) == (ord("a"), False)
    (after,) = executor.run([Row(0, only.token, len(_PROMPT), True)])
    assert (after.ends, after.piece, after.error) == (True, b"", None)


def test_a_sampler_that_fails_leaves_the_other_rows_their_tokens(
    executor: LlamaExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _prefill(executor, 0)
    executor.close(0)
    executor.remove(0, 0)
    for sequence in range(2):
        executor.open(sequence, _GREEDY, (), None, True)
    error = FloatingPointError("the highest logit is nan")
    monkeypatch.setattr(executor._chains[1], "choose", Mock(side_effect=error))
    good, bad = executor.run([*_rows(0, _PROMPT), *_rows(1, _PROMPT)])
    assert (good.token, good.error, bad.error) == (expected.token, None, error)


def test_logits_without_a_number_in_any_row_are_a_failed_step(
    executor: LlamaExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor.open(0, _GREEDY, (), None, True)
    executor.open(1, _GREEDY, (), None, True)
    logits = np.full((2, executor.model.vocab_size), math.nan, np.float32)
    monkeypatch.setattr(executor, "compute", lambda rows: logits)
    with pytest.raises(FloatingPointError, match="highest logit is nan"):
        executor.run([*_rows(0, _PROMPT), *_rows(1, _PROMPT)])


def test_what_was_checked_is_not_made_again(executor: LlamaExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many others are checked before it begins: the check's thread makes what takes long."""
    breakers = [tuple(f"{letter}{place}" for letter in "abc") for place in range(12)]
    samplings = [Sampling(temperature=0, dry_multiplier=1, dry_sequence_breakers=each) for each in breakers]
    checked = [executor.check(each, f'root ::= "{place}"', "") for place, each in enumerate(samplings)]
    checked += [executor.check(_GREEDY, f'root ::= "x{place}"', "") for place in range(40)]
    monkeypatch.setattr(executor_module, "gbnf_of", Mock(side_effect=AssertionError))
    monkeypatch.setattr(executor._api, "llama_sampler_init_dry", Mock(side_effect=AssertionError))
    for _ in range(2):  # a prototype outlives the chains that were made of it
        executor.open(0, samplings[0], _PROMPT, None, True, checked[0])
        executor.constrain(0)
        assert executor.run(_rows(0, _PROMPT))[0].token == ord("0")
        executor.remove(0, 0)


def test_checks_name_what_is_wrong(executor: LlamaExecutor) -> None:
    executor.check(Sampling(), "", "")
    executor.check(Sampling(), 'root ::= "a"', "")
    executor.check(Sampling(), "", '{"type": "object"}')
    with pytest.raises(SamplingError, match=r"^top_p: is 2\.0; it must be from 0 to 1$"):
        executor.check(Sampling(top_p=2.0), "", "")
    with pytest.raises(GrammarError, match="exclude each other"):
        executor.check(Sampling(), 'root ::= "a"', "{}")
    with pytest.raises(GrammarError, match="must be one token of the model"):
        executor.check(Sampling(), "root ::= <two tokens>", "")
    with pytest.raises(GrammarError, match="uses not"):
        executor.check(Sampling(), "", '{"not": {}}')


def _embedded(executor: LlamaExecutor, prompt: list[int], part: int) -> list[float]:
    """The vector of a prompt that is computed in parts of so many tokens."""
    vectors = [executor.embed(prompt, start, min(start + part, len(prompt))) for start in range(0, len(prompt), part)]
    assert vectors[:-1] == [None] * (len(vectors) - 1)
    assert vectors[-1] is not None
    return vectors[-1]


def test_embeddings_have_length_one_and_leave_the_cells_alone(executor: LlamaExecutor) -> None:
    _prefill(executor, 0)
    used = executor.used_cells()
    long = list(range(32, 232))  # four chunks
    first, second, again = np.array([_embedded(executor, prompt, 256) for prompt in (_PROMPT, long, _PROMPT)])
    assert executor.used_cells() == used
    assert [float(each @ each) for each in (first, second)] == pytest.approx([1, 1])
    assert first @ again == pytest.approx(1)
    assert abs(first @ second) < 0.99
    assert np.array(_embedded(executor, long, 100)) == pytest.approx(second, abs=1e-5)
    for prompt in ([], [65] * 257):
        with pytest.raises(ValueError, match="tokens; 1 to 256 can be embedded"):
            executor.embed(prompt, 0, len(prompt))
    executor.embed(long, 0, 100)
    for start, end in ((99, 200), (100, 201), (100, 100)):
        with pytest.raises(ValueError, match="do not go on from 100 of 200"):
            executor.embed(long, start, end)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_prompt_that_is_embedded_in_parts_is_pooled_as_a_whole(executor: LlamaExecutor, pooling: str) -> None:
    embedder = Embedder(executor._loaded, pooling=pooling, n_ctx=256)
    prompt = list(range(32, 232))
    try:
        whole = embedder.embed(prompt, 0, 200)
        parts = [embedder.embed(prompt, start, end) for start, end in ((0, 64), (64, 150), (150, 200))]
    finally:
        embedder.close()
    assert whole is not None
    assert parts == [None, None, pytest.approx(whole, abs=1e-5)]


def test_text_becomes_tokens(executor: LlamaExecutor) -> None:
    assert executor.tokenize([Segment("hi", False)], add_bos=True) == [257, *b"hi"]
    assert executor.piece(258) == b"<user>"
    assert executor.piece(258, special=False) == b""
    assert executor.token_id("<assistant>") == 259
    assert executor.token_id("assistant") is None


def test_shutting_twice_is_once(llama: Path) -> None:
    executor = _open(llama)
    _prefill(executor, 0)
    executor.embed(_PROMPT, 0, len(_PROMPT))
    executor.shut()
    executor.shut()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contex": 5}, "unknown field `contex`"),
        ({"ctx": "many"}, "Expected `int`"),
        ({"ubatch": 1}, "ubatch is 1; it must be from 2 to 65536"),
        ({"parallel": 0}, "parallel is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"flash_attn": "perhaps"}, "Invalid enum value 'perhaps'"),
    ],
)
def test_wrong_options_are_named(llama: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError) as caught:
        _open(llama, **options)
    assert message in str(caught.value)


def test_a_model_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LlamaCppError, match="no such file"):
        _open(tmp_path / "none.gguf")
    with pytest.raises(LoadError, match="download it first"):
        open_executor({"model": "hf:owner/name"}, lambda _fraction: None)
    (tmp_path / "none.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(LlamaCppError, match="refused to load"):
        _open(tmp_path / "none.gguf")


def test_rules_place_the_model(llama: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "- match:\n    name: ^model\\.layers\\.\n  replace:\n    class: default\n    kwargs:\n      generate_device: cpu\n"
    )
    executor = _open(llama, rules=str(rules), default_device="cpu")
    assert _continue(executor, 0, _prefill(executor, 0), len(_PROMPT), 3)
    executor.shut()
    with pytest.raises(DeviceError, match=r"llama\.cpp has no device CUDA0 here"):
        _open(llama, rules=str(rules))
