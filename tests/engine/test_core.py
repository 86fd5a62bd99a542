"""What one request is answered: every field of Generate, every end, and what a fault does to the others."""

from __future__ import annotations

import json
import logging

import pytest

from ktllama.engine.core import MAX_FAILED_STEPS, Engine, EngineBrokenError
from ktllama.engine.embedding import Embedding
from ktllama.engine.messages import (
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Failed,
    Generate,
    Sampling,
    Segment,
    Thinking,
    Tokenize,
    Usage,
)
from tests.engine.driver import R1_THINKING, Answer, Driver, ask
from tests.engine.fake_executor import CONTROL, EOS, FakeExecutor, FakeOptions, tokenize, vector_of

THOUGHT = "I think.\n</think>\n\nThe answer."


def answered(request: Generate, **options: object) -> Answer:
    driver = Driver(FakeOptions(**options))  # type: ignore[arg-type]
    answer = driver.submit(request)
    driver.run()
    return answer


def thinking(**fields: object) -> Thinking:
    return Thinking(start="<think>", end="</think>", begins_inside=True, **fields)  # type: ignore[arg-type]


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_thinking_and_answer_come_apart() -> None:
    answer = answered(ask("a", "q<think>\n", thinking=R1_THINKING), say={"q": THOUGHT})
    assert (answer.reasoning, answer.content) == ("I think.", "The answer.")
    end = answer.finished
    assert (end.reason, end.stop, end.repetition, end.thinking_forced_closed) == ("stop", None, False, False)
    n_said = len(tokenize(THOUGHT)) + 1
    assert end.usage == Usage(prompt_tokens=3, cached_tokens=0, completion_tokens=n_said, reasoning_tokens=9)
    assert answer.tokens <= n_said


def test_raw_is_the_whole_text_as_content() -> None:
    request = ask("a", "q<think>\n", thinking=thinking(prompt_side="<think>\n"), raw=True)
    answer = answered(request, say={"q": THOUGHT})
    assert (answer.reasoning, answer.content) == ("", "<think>\n" + THOUGHT)


def test_legacy_is_the_whole_text_as_content_and_the_thinking_beside_it() -> None:
    answer = answered(ask("a", "q<think>\n", thinking=R1_THINKING, legacy=True), say={"q": THOUGHT})
    assert (answer.reasoning, answer.content) == ("I think.", THOUGHT)


def test_partial_thinking_is_content_where_that_was_asked_for() -> None:
    say = {"q": "just text"}
    assert answered(ask("a", "q<think>\n", thinking=R1_THINKING), say=say).reasoning == "just text"
    kept = ask("a", "q<think>\n", thinking=R1_THINKING, keep_partial_thinking_as_content=True)
    assert answered(kept, say=say).content == "just text"


def test_a_tool_call_inside_the_thinking_closes_it() -> None:
    opener = "<｜tool▁calls▁begin｜>"
    request = ask("a", "q<think>\n", thinking=thinking(tool_openings=(opener,)))
    answer = answered(request, say={"q": f"hm {opener}call"})
    assert (answer.reasoning, answer.content) == ("hm", f"{opener}call")


def test_characters_are_never_split() -> None:
    text = "héllo 🙂 wörld"
    driver = Driver(FakeOptions(say={"q": text}))
    driver.submit(ask("a", "q"))
    pieces = []
    while driver.engine.is_busy:
        driver.engine.step()
        for event in driver.engine.take_events():
            pieces += [delta for _, delta in getattr(event, "deltas", ())]
    assert "".join(pieces) == text
    assert "🙂" in pieces


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_max_tokens_counts_the_thinking() -> None:
    answer = answered(ask("a", "q<think>\n", thinking=R1_THINKING, max_tokens=5), say={"q": THOUGHT})
    assert (answer.finished.reason, answer.reasoning, answer.content) == ("length", "I thi", "")
    usage = answer.finished.usage
    assert (usage.completion_tokens, usage.reasoning_tokens) == (5, 5)


def test_max_tokens_of_nothing_is_answered_at_once() -> None:
    driver = Driver()
    answer = driver.submit(ask("a", "q", max_tokens=0))
    assert (answer.finished.reason, answer.finished.usage.completion_tokens) == ("length", 0)
    assert not driver.engine.is_busy


def test_stop_strings_fire_in_the_content_only() -> None:
    say = {"q": "stop here? no\n</think>\n\nYes, stop here. More."}
    answer = answered(ask("a", "q<think>\n", thinking=R1_THINKING, stop=("stop", "never")), say=say)
    assert (answer.reasoning, answer.content) == ("stop here? no", "Yes, ")
    assert (answer.finished.reason, answer.finished.stop) == ("stop", "stop")


def test_ignore_eos_goes_on_to_the_limit() -> None:
    answer = answered(ask("a", "q", ignore_eos=True, max_tokens=40), say={"q": "short"}, end_chance=2)
    assert (answer.finished.reason, answer.finished.usage.completion_tokens) == ("length", 40)


def test_a_grammar_that_is_through_ends_the_answer_also_where_ends_are_ignored() -> None:
    """Without the fake's token for it: no text of an end token, and none that is counted."""
    request = ask("a", "q", ignore_eos=True, max_tokens=50, grammar="root ::= x")
    answer = answered(request, constrained='"yes"', end_chance=0)
    assert (answer.content, answer.finished.reason) == ('"yes"', "stop")
    assert answer.finished.usage.completion_tokens == 5


def test_endless_repetition_is_ended_and_said() -> None:
    request = ask("a", "q", sampling=Sampling(logit_bias={ord("x"): 100.0}))
    end = answered(request, n_ctx=8192).finished
    assert (end.reason, end.repetition) == ("length", True)
    assert 1024 <= end.usage.completion_tokens <= 1200


def test_a_cancelled_request_leaves_at_once_and_frees_its_cells() -> None:
    driver = Driver(FakeOptions(end_chance=0))
    answer = driver.submit(ask("a", "q" * 100, max_tokens=1000))
    waiting = [driver.submit(ask(f"w{i}", "w", max_tokens=1000)) for i in range(20)]
    for _ in range(3):
        driver.step()
    held = driver.engine.stats().cells_running
    driver.engine.cancel("a")
    driver.engine.cancel("w19")  # in the queue
    driver.engine.cancel("nobody")
    driver.collect()
    driver.check()
    assert (answer.finished.reason, waiting[19].finished.reason) == ("cancelled", "cancelled")
    assert driver.engine.stats().cells_running < held
    assert "a" not in driver.engine.generations


def test_answers_carry_their_times() -> None:
    driver = Driver(FakeOptions(n_parallel=1, end_chance=0))
    first = driver.submit(ask("a", "q", max_tokens=10))
    second = driver.submit(ask("b", "q", max_tokens=10))
    driver.run()
    assert second.finished.queue_seconds > first.finished.queue_seconds > 0
    assert second.finished.ttft_seconds > second.finished.queue_seconds
    assert first.finished.decode_seconds > 0


# ── the reasoning budget ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_spent_budget_closes_the_thinking_and_the_answer_follows() -> None:
    closing = " Enough.\n</think>\n\n"
    request = ask("a", "q<think>\n", thinking=thinking(budget=4, closing=closing))
    answer = answered(request, say={"q": THOUGHT})
    assert (answer.reasoning, answer.content) == ("I th Enough.", "The answer.")
    end = answer.finished
    assert (end.reason, end.thinking_forced_closed) == ("stop", True)
    assert end.usage.completion_tokens == 4 + len(tokenize(closing)) + len("\n\nThe answer.") + 1


def test_a_budget_of_nothing_closes_the_thinking_before_the_first_token() -> None:
    request = ask("a", "q<think>\n", thinking=thinking(budget=0, closing="</think>"))
    answer = answered(request, say={"q": THOUGHT})
    assert (answer.reasoning, answer.content) == ("", "The answer.")
    assert answer.finished.usage.reasoning_tokens == 0


def test_control_tokens_in_the_closing_words_are_text() -> None:
    closing = f" {CONTROL[1]}x\n</think>\n\n"
    request = ask("a", "q<think>\n", thinking=thinking(budget=4, closing=closing))
    answer = answered(request, say={"q": THOUGHT})
    assert (answer.reasoning, answer.content) == (f"I th {CONTROL[1]}x", "The answer.")


def test_thinking_that_ends_within_its_budget_is_left_alone() -> None:
    request = ask("a", "q<think>\n", thinking=thinking(budget=50, closing="</think>"))
    answer = answered(request, say={"q": THOUGHT})
    assert (answer.reasoning, answer.finished.thinking_forced_closed) == ("I think.", False)


def test_max_tokens_end_the_forced_closing_too() -> None:
    request = ask("a", "q<think>\n", thinking=thinking(budget=2, closing=" and so on</think>"), max_tokens=6)
    end = answered(request, say={"q": THOUGHT}).finished
    assert (end.reason, end.usage.completion_tokens, end.thinking_forced_closed) == ("length", 6, True)


# ── grammars, logprobs, sampling ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("field", [{"grammar": 'root ::= "x"'}, {"json_schema": '{"type": "object"}'}])
def test_grammars_begin_after_the_thinking(field: dict[str, str]) -> None:
    request = ask("a", "q<think>\n", thinking=R1_THINKING, **field)
    answer = answered(request, say={"q": THOUGHT}, constrained="{}")
    assert (answer.reasoning, answer.content) == ("I think.", "{}")
    without = answered(ask("a", "q", **field), say={"q": THOUGHT}, constrained="{}")
    assert (without.reasoning, without.content) == ("", "{}")


def test_a_grammar_begins_after_a_forced_end_of_thinking() -> None:
    request = ask("a", "q<think>\n", thinking=thinking(budget=3, closing="</think>"), grammar='root ::= "x"')
    answer = answered(request, say={"q": THOUGHT}, constrained="{}")
    assert (answer.reasoning, answer.content) == ("I t", "{}")


def test_logprobs_come_with_their_side_of_the_thinking() -> None:
    request = ask("a", "q<think>\n", thinking=R1_THINKING, logprobs=2)
    answer = answered(request, say={"q": "ab</think>cd"})
    assert [logprob.piece for logprob in answer.logprobs] == [b"a", b"b", b"</think>", b"c", b"d"]
    assert answer.kinds == ["reasoning"] * 3 + ["content"] * 2
    assert [len(logprob.top) for logprob in answer.logprobs] == [2] * 5
    assert answered(ask("a", "q"), say={"q": "ab"}).logprobs == []


@pytest.mark.parametrize(
    ("say", "stop", "pieces"),
    [
        ("Hello", ("lo",), "Hel"),
        ("Hello", ("Hello",), ""),
        ("Hello", ("lot",), "Hello"),  # what was held back comes at the end
        ("aéb", ("é",), "a"),
        ("é.b", (".",), "é"),
        ("ab<think>cd", ("k>c",), "ab<think>"),  # a token that is cut in the middle
        ("ab<think>cd", ("b<think>",), "a"),
    ],
)
def test_logprobs_are_those_of_the_tokens_that_show(say: str, stop: tuple[str, ...], pieces: str) -> None:
    answer = answered(ask("a", "q", stop=stop, logprobs=0), say={"q": say})
    assert b"".join(logprob.piece for logprob in answer.logprobs).decode() == pieces
    assert pieces.startswith(answer.content)


def test_logprobs_stay_on_the_side_of_their_text_with_a_stop_string_too() -> None:
    request = ask("a", "q<think>\n", thinking=R1_THINKING, logprobs=0, stop=("xyz", "stop"))
    answer = answered(request, say={"q": "xyz?</think>\n\nxy, stop."})
    assert b"".join(logprob.piece for logprob in answer.logprobs) == b"xyz?</think>\n\nxy, "
    assert answer.kinds == ["reasoning"] * 5 + ["content"] * 6
    assert (answer.reasoning, answer.content) == ("xyz?", "xy, ")


def test_logprobs_come_with_their_text() -> None:
    driver = Driver(FakeOptions(say={"q": "a stop, no stop at all"}))
    answer = driver.submit(ask("a", "q", stop=("stop at most", "all the"), logprobs=0))
    while driver.engine.is_busy:
        driver.step()
        assert b"".join(logprob.piece for logprob in answer.logprobs).decode() == answer.content
    assert answer.content == "a stop, no stop at all"


def test_sampling_reaches_the_executor_as_it_is() -> None:
    sampling = Sampling(temperature=0.25, top_p=0.5, dry_multiplier=1.5, logit_bias={5: 1.5}, seed=7)
    answer = answered(ask("a", "q", sampling=sampling, logprobs=3, ignore_eos=False), say={"q": "$request"})
    told = json.loads(answer.content)
    assert (told["logprobs"], told["ignore_eos"]) == (3, False)
    assert told["sampling"]["temperature"] == 0.25
    assert told["sampling"]["dry_multiplier"] == 1.5
    assert told["sampling"]["logit_bias"] == {"5": 1.5}
    assert told["sampling"]["seed"] == 7


def test_prompts_may_be_token_ids_and_begin_with_the_models_first_token() -> None:
    driver = Driver(FakeOptions(say={"q": "yes"}))
    driver.submit(Generate(request_id="ids", tokens=(ord("q"),)))
    driver.submit(ask("bos", "q", add_bos=True))
    driver.run()
    assert [answer.content for answer in driver.answers.values()] == ["yes", "yes"]
    assert [answer.finished.usage.prompt_tokens for answer in driver.answers.values()] == [1, 2]


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("request_", "code", "fields"),
    [
        (
            ask("a", "x" * 100, max_tokens=7),
            "context_length_exceeded",
            {"prompt_tokens": 100, "max_tokens": 7, "n_ctx": 100},
        ),
        (ask("a", ""), "empty_prompt", {}),
        (Generate(request_id="a", tokens=(1, 99999)), "invalid_token", {"token": 99999}),
        (Generate(request_id="a", tokens=(-1,)), "invalid_token", {"token": -1}),
        (ask("a", "q", grammar="nonsense"), "invalid_grammar", {"field": "grammar"}),
        (ask("a", "q", json_schema="{"), "invalid_json_schema", {"field": "json_schema"}),
        (ask("a", "q", json_schema="{}", grammar="root ::= x"), "not_supported", {"field": "grammar"}),
        (ask("a", "q", sampling=Sampling(temperature=-1.0)), "invalid_sampling", {"field": "temperature"}),
        (ask("a", "q", max_tokens=-1), "not_supported", {"field": "max_tokens"}),
        (ask("a", "q", stop=("",)), "not_supported", {"field": "stop"}),
        (
            ask("a", "q", thinking=thinking(budget=5, closing="no tag")),
            "not_supported",
            {"field": "reasoning_budget"},
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(request_: Generate, code: str, fields: dict[str, int]) -> None:
    driver = Driver(FakeOptions(n_ctx=100))
    answer = driver.submit(request_)
    assert (answer.accepted, answer.failed.code, answer.failed.fields) == (0, code, fields)
    assert not driver.engine.is_busy


def test_a_text_that_cannot_fit_is_not_tokenized() -> None:
    driver = Driver(FakeOptions(n_ctx=100))
    longest = max(len(text.encode()) for text in CONTROL)
    hopeless = driver.submit(ask("hopeless", "x" * (99 * longest + 1), max_tokens=7))
    assert hopeless.failed.message.startswith("the prompt has at least 100 tokens and the context 100")
    assert hopeless.failed.fields == {"prompt_tokens": 100, "max_tokens": 7, "n_ctx": 100, "at_least": 1}
    refused = driver.intake.embedding(Embed(request_id="e", prompts=("x" * (100 * longest + 1),)))
    assert isinstance(refused, Failed)
    assert (refused.code, refused.fields["prompt_tokens"], driver.fake.n_tokenized) == (
        "context_length_exceeded",
        101,
        0,
    )
    assert driver.submit(ask("hard", CONTROL[2] * 99)).accepted == 1
    assert driver.fake.n_tokenized == 1


def test_the_choices_of_a_request_are_tokenized_once() -> None:
    driver = Driver()
    choices = [driver.submit(ask(f"r{i}", "the same" * 20, max_tokens=5)) for i in range(8)]
    assert driver.fake.n_tokenized == 1
    driver.submit(ask("other", "the same" * 20, max_tokens=5, add_bos=True))
    assert driver.fake.n_tokenized == 2
    driver.run()
    assert {answer.finished.usage.prompt_tokens for answer in choices} == {160}


def test_the_longest_prompt_that_fits_is_answered() -> None:
    answer = answered(ask("a", "x" * 99), n_ctx=100)
    assert (answer.finished.reason, answer.finished.usage.completion_tokens) == ("length", 1)


def test_a_full_queue_says_when_to_come_back() -> None:
    driver = Driver(FakeOptions(n_parallel=1, end_chance=0), queue_limit=3)
    for i in range(4):
        driver.submit(ask(f"r{i}", "q", max_tokens=50))
        driver.step()
    refused = driver.submit(ask("one more", "q"))
    assert refused.failed.code == "queue_full"
    assert refused.failed.fields["queued"] == 3
    assert int(refused.failed.fields["retry_after"]) >= 1
    driver.run()
    assert driver.submit(ask("later", "q", max_tokens=1)).accepted == 1


@pytest.mark.parametrize("queue_limit", [0, 2])
def test_who_finds_a_free_place_does_not_wait(queue_limit: int) -> None:
    driver = Driver(FakeOptions(n_parallel=3, end_chance=0), queue_limit=queue_limit)
    answers = [driver.submit(ask(f"r{i}", "q", max_tokens=5)) for i in range(3 + queue_limit + 1)]
    assert [answer.accepted for answer in answers] == [1] * (3 + queue_limit) + [0]
    assert answers[-1].failed.code == "queue_full"
    driver.step()
    assert driver.submit(ask("all places are taken", "q")).failed.code == "queue_full"
    for i in range(queue_limit):
        driver.engine.cancel(f"r{3 + i}")
    vector = Embedding(request_id="e", prompts=((1, 2),))
    driver.engine.embed(vector)
    assert len(driver.engine.embeddings) == 1


def test_draining_refuses_the_new_and_ends_the_old() -> None:
    driver = Driver(FakeOptions(end_chance=0))
    old = driver.submit(ask("old", "q", max_tokens=20))
    driver.engine.draining = True
    assert driver.submit(ask("new", "q")).failed.code == "draining"
    driver.run()
    assert len(old.content) == 20


# ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_failed_step_fails_who_was_in_it_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ktllama.engine")
    driver = Driver(FakeOptions(n_parallel=2, end_chance=0))
    hit = [driver.submit(ask(f"hit{i}", "p" * 30 + str(i), max_tokens=50)) for i in range(2)]
    waiting = driver.submit(ask("waiting", "q", max_tokens=10))
    for _ in range(5):
        driver.step()
    driver.fake.fail_next = "in the middle"
    driver.step()
    assert [answer.failed.code for answer in hit] == ["engine_error"] * 2
    driver.run()
    assert len(waiting.content) == 10


def test_a_sampler_that_fails_fails_one_request_however_often(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ktllama.engine")
    driver = Driver(FakeOptions(end_chance=0, crash_on={"boom": "sampler"}))
    others = [driver.submit(ask(f"other{i}", f"q{i}", max_tokens=30)) for i in range(2)]
    for i in range(MAX_FAILED_STEPS + 1):
        driver.step()
        failed = driver.submit(ask(f"hit{i}", "boom", max_tokens=30))
        driver.step()
        assert (failed.failed.code, failed.failed.message) == (
            "engine_error",
            "the request failed: the fake was told to fail on 'boom'",
        )
    driver.run()
    assert [len(other.content) for other in others] == [30, 30]


def test_a_sampler_that_cannot_be_made_fails_one_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ktllama.engine")
    driver = Driver(FakeOptions(end_chance=0))
    real_open = driver.fake.open

    def open_or_fail(sequence: int, sampling: Sampling, *rest: object) -> None:
        if sampling.seed == 13:
            raise ValueError("no such sampler")
        real_open(sequence, sampling, *rest)  # type: ignore[arg-type]

    driver.fake.open = open_or_fail  # type: ignore[assignment]
    good = driver.submit(ask("good", "q", max_tokens=10))
    bad = driver.submit(ask("bad", "q", sampling=Sampling(seed=13)))
    driver.run()
    assert bad.failed.message == "the request cannot begin: no such sampler"
    assert len(good.content) == 10


def test_an_executor_that_keeps_failing_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ktllama.engine")
    driver = Driver(FakeOptions(crash_on={"": "raise"}))
    for i in range(MAX_FAILED_STEPS - 1):
        driver.submit(ask(f"r{i}", "q"))
        driver.step()
    last = driver.submit(ask("last", "q"))
    with pytest.raises(EngineBrokenError):
        driver.engine.step()
    driver.collect()
    assert last.failed.code == "engine_error"


def test_a_scheduler_that_stands_still_is_not_spun_for() -> None:
    driver = Driver(FakeOptions(end_chance=0))
    driver.submit(ask("a", "q"))
    driver.engine.scheduler.schedule = dict  # type: ignore[method-assign]
    with pytest.raises(EngineBrokenError, match="none of them can go on"):
        driver.run()


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_embeddings_are_made_in_parts_between_steps() -> None:
    driver = Driver(FakeOptions(end_chance=0))
    parts: list[list[tuple[int, int]]] = []
    real_embed = driver.fake.embed

    def recorded(prompt: tuple[int, ...], start: int, end: int) -> list[float] | None:
        parts[-1].append((start, end))
        return real_embed(prompt, start, end)

    driver.fake.embed = recorded  # type: ignore[method-assign, assignment]
    request = Embed(request_id="e", prompts=("one", "two", "three", tuple(range(40)), "x"))
    embedding = driver.intake.embedding(request)
    assert isinstance(embedding, Embedding)
    driver.engine.embed(embedding)
    stream = driver.submit(ask("s", "q", max_tokens=50))
    events = []
    while driver.engine.embeddings:
        parts.append([])
        driver.engine.step()
        events += driver.engine.take_events()
    (embedded,) = [event for event in events if isinstance(event, Embedded)]
    assert parts == [[(0, 4), (0, 4), (0, 6)], [(0, 16)], [(16, 32)], [(32, 40), (0, 2)]]
    assert list(map(list, embedded.vectors)) == [vector_of(prompt) for prompt in embedding.prompts]
    assert embedded.prompt_tokens == 4 + 4 + 6 + 40 + 2
    assert stream.accepted


def test_an_embedding_that_is_cancelled_halfway_leaves_the_next_one_alone() -> None:
    driver = Driver()
    for name in ("left", "kept"):
        driver.engine.embed(Embedding(request_id=name, prompts=(tuple(range(40)),)))
    driver.engine.step()
    driver.engine.cancel("left")
    while driver.engine.embeddings:
        driver.engine.step()
    failed, embedded = driver.engine.take_events()
    assert isinstance(failed, Failed)
    assert isinstance(embedded, Embedded)
    assert (failed.request_id, embedded.request_id) == ("left", "kept")
    assert list(map(list, embedded.vectors)) == [vector_of(range(40))]


def test_a_prompt_that_is_longer_than_the_model_embeds_is_refused() -> None:
    driver = Driver(FakeOptions(n_ctx=200, n_ctx_train=100))
    refused = driver.intake.embedding(Embed(request_id="e", prompts=("x", tuple(range(101)))))
    assert isinstance(refused, Failed)
    assert (refused.code, refused.fields) == ("context_length_exceeded", {"prompt_tokens": 101, "longest": 100})
    assert isinstance(driver.intake.embedding(Embed(request_id="e", prompts=(tuple(range(100)),))), Embedding)


def test_embeddings_of_a_model_without_are_refused() -> None:
    driver = Driver(FakeOptions(can_embed=False))
    refused = driver.intake.embedding(Embed(request_id="e", prompts=("x",)))
    assert isinstance(refused, Failed)
    assert (refused.code, refused.fields) == ("not_supported", {"field": "embeddings"})


def test_tokens_and_text() -> None:
    intake = Driver().intake
    tokenized = intake.tokenize(
        Tokenize(request_id="t", segments=(Segment("a</think>", True), Segment("</think>", False)))
    )
    assert tokenized.tokens == (97, 259, *b"</think>")
    assert intake.detokenize(Detokenize(request_id="d", tokens=tokenized.tokens)) == Detokenized(
        request_id="d", text=b"a</think></think>"
    )
    assert intake.detokenize(Detokenize(request_id="d", tokens=(97, EOS), special=False)) == Detokenized(
        request_id="d", text=b"a"
    )


def test_stats_count_what_was_done() -> None:
    driver = Driver(FakeOptions(n_ctx=512, end_chance=0))
    driver.submit(ask("a", "p" * 100, max_tokens=10))
    driver.run()
    driver.submit(ask("b", "p" * 100, max_tokens=10))
    driver.run()
    stats = driver.engine.stats("s")
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (101, 99, 20)
    assert (stats.cells_total, stats.cells_running, stats.cells_cached) == (512, 0, 109 + 10)
    assert (stats.steps, stats.sequences_cached, stats.request_id) == (driver.n_steps, 2, "s")


def test_thousands_of_short_requests_leave_nothing() -> None:
    driver = Driver(FakeOptions(n_ctx=256, n_ubatch=64, n_parallel=8, n_sequences=12))
    engine: Engine = driver.engine
    for i in range(3000):
        generation = driver.intake.generation(ask(f"r{i}", f"prompt {i % 50}", max_tokens=2, cache_prompt=i % 3 > 0))
        assert not isinstance(generation, Failed)
        engine.submit(generation)
        engine.step()
        engine.take_events()
    while engine.is_busy:
        engine.step()
        engine.take_events()
    driver.check()
    while engine.cache.evict():
        pass
    assert driver.fake.used_cells() == 0
    assert sorted(engine.cache.free) == list(range(12))
    assert not engine.cache.root.children
    assert not engine._guards
    assert not driver.fake.chains


def test_nothing_here_needs_llama_cpp() -> None:
    import subprocess
    import sys

    script = (
        "import sys; import ktllama.engine.process, ktllama.engine.client;"
        "print([name for name in ('llama_cpp', 'numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_fake_notices_positions_that_are_wrong() -> None:
    fake = FakeExecutor(FakeOptions())
    from ktllama.engine.executor import Row

    with pytest.raises(AssertionError, match="position 3 after 0"):
        fake.run([Row(0, 65, 3, False)])
