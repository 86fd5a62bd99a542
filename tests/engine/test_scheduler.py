"""Who computes what in which step: fairness, admission, shared prefixes, preemption. Steps are counted, never time."""

from __future__ import annotations

from ktllama.engine.messages import Generate
from ktllama.engine.scheduler import MAX_PASSES
from tests.engine.driver import Answer, Driver, alone, ask, seeded
from tests.engine.fake_executor import FakeOptions


def options(**fields: object) -> FakeOptions:
    return FakeOptions(end_chance=0, **fields)  # type: ignore[arg-type]


def same_as_alone(answer: Answer, request: Generate, settings: FakeOptions) -> bool:
    expected = alone(request, settings)
    return (answer.reasoning, answer.content) == (expected.reasoning, expected.content)


def rows_of(driver: Driver) -> list[list[int]]:
    """Of each batch, the number of rows of each sequence in it."""
    return [[n_rows for _, n_rows in batch] for batch in driver.fake.batches]


# ── the budget ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_is_computed_in_ubatches_and_its_last_token_samples() -> None:
    driver = Driver(options(n_ubatch=64))
    driver.fake.record_batches = True
    answer = driver.submit(ask("a", "x" * 150, max_tokens=3))
    driver.run()
    assert rows_of(driver) == [[64], [64], [22], [1], [1]]
    assert answer.finished.usage.completion_tokens == 3


def test_a_running_stream_gets_a_token_in_every_step_while_a_long_prompt_comes() -> None:
    driver = Driver(options(n_ubatch=64, n_ctx=8192))
    driver.fake.record_batches = True
    stream = driver.submit(ask("stream", "short", max_tokens=1000))
    driver.step()
    driver.submit(ask("long", "y" * 4000, max_tokens=5))
    for n_tokens in range(2, 60):
        driver.step()
        assert len(stream.content) == n_tokens
    assert rows_of(driver)[1:10] == [[1, 63]] * 9


def test_a_short_prompt_behind_a_long_one_begins_after_a_step() -> None:
    driver = Driver(FakeOptions(n_ctx=40_000, n_ubatch=64, end_chance=0))
    driver.submit(ask("long", "z" * 30_000, max_tokens=5))
    driver.step()
    short = driver.submit(ask("short", "hello", max_tokens=5))
    driver.step()
    assert len(short.content) == 1


def test_many_short_prompts_behind_a_long_one_share_half_of_every_ubatch() -> None:
    driver = Driver(FakeOptions(n_ctx=40_000, n_ubatch=64, n_parallel=9, end_chance=0))
    long = driver.submit(ask("long", "z" * 30_000, max_tokens=5))
    driver.step()
    shorts = [driver.submit(ask(f"s{i}", f"{i}" * 64, max_tokens=100)) for i in range(8)]
    for _ in range(8 * 64 // 32 + 8):  # half of the rest of a ubatch is at least (64 - 8) / 2 tokens
        driver.step()
    assert all(short.first_step for short in shorts)
    driver.run()
    assert long.finished.usage.completion_tokens == 5


def test_short_prompts_without_end_do_not_starve_a_long_one() -> None:
    driver = Driver(FakeOptions(n_ctx=8192, n_ubatch=64, n_parallel=4, end_chance=0))
    long = driver.submit(ask("long", "z" * 3200, max_tokens=2))
    count = 0
    while long.first_step is None:
        while len(driver.engine.generations) < 8:
            count += 1
            driver.submit(ask(f"s{count}", f"{count:032}", max_tokens=1))
        driver.step()
        assert driver.n_steps <= 3200 // 30  # half a ubatch less the decoding rows, each step


def test_prompts_of_one_length_are_served_in_order_of_arrival() -> None:
    driver = Driver(options(n_ubatch=64, n_parallel=4))
    answers = [driver.submit(ask(f"r{i}", f"{i}" * 200, max_tokens=50)) for i in range(4)]
    driver.run()
    assert [answer.first_step for answer in answers] == sorted(answer.first_step or 0 for answer in answers)
    assert answers[0].first_step == 4  # ceil(200 / 64): nobody took anything from the first


# ── admission ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_at_most_n_parallel_run_and_the_others_wait_in_order() -> None:
    driver = Driver(options(n_parallel=2))
    answers = [driver.submit(ask(f"r{i}", "p", max_tokens=4, cache_prompt=False)) for i in range(6)]
    while driver.engine.is_busy:
        driver.step()
        assert len(driver.engine.scheduler.running) <= 2
    assert [answer.last_step for answer in answers] == [4, 4, 8, 8, 12, 12]


def test_a_request_that_does_not_fit_waits_and_smaller_ones_may_pass_it_a_bounded_number_of_times() -> None:
    driver = Driver(FakeOptions(n_ctx=1000, n_ubatch=64, n_parallel=4, n_sequences=8, end_chance=0))
    driver.submit(ask("holder", "h" * 500, max_tokens=400, cache_prompt=False))
    driver.step()
    big = driver.submit(ask("big", "b" * 600, max_tokens=10, cache_prompt=False))
    small = [driver.submit(ask(f"s{i}", "s", max_tokens=1, cache_prompt=False)) for i in range(MAX_PASSES + 5)]
    for _ in range(2 * MAX_PASSES + 10):
        driver.step()
    passed = [answer for answer in small if answer.ends]
    assert len(passed) == MAX_PASSES
    assert big.first_step is None
    driver.run()
    assert big.finished.reason == "length"
    after = [answer.first_step or 0 for answer in small if answer not in passed]
    assert min(after) >= (big.first_step or 0) - 600 // 32


def test_the_cache_is_evicted_for_a_prompt_that_needs_its_cells() -> None:
    settings = options(n_ctx=300, n_ubatch=64)
    driver = Driver(settings)
    for i in range(3):
        driver.submit(ask(f"r{i}", f"{i}" * 80, max_tokens=5))
        driver.run()
    assert driver.engine.stats().cells_cached == 3 * 84
    driver.submit(ask("big", "b" * 200, max_tokens=5))
    driver.run()
    stats = driver.engine.stats()
    assert (stats.evictions, stats.cells_cached) == (2, 84 + 204)  # the two least recently used


# ── cells run out ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_when_cells_run_out_the_youngest_computes_again_later_and_says_the_same() -> None:
    settings = FakeOptions(n_ctx=200, n_ubatch=32, n_parallel=4, end_chance=0)
    driver = Driver(settings)
    requests = [ask(f"r{i}", f"{i}" * 20, max_tokens=100) for i in range(4)]
    answers = [driver.submit(request) for request in requests]
    driver.run()
    assert driver.engine.scheduler.preemptions > 0
    assert [answer.finished.usage.completion_tokens for answer in answers] == [100] * 4
    assert all(same_as_alone(answer, request, settings) for answer, request in zip(answers, requests, strict=True))
    assert [answer.last_step for answer in answers] == sorted(answer.last_step for answer in answers)
    assert answers[0].last_step == 100  # nobody took a step from the oldest, whose prompt is computed in the first


def test_generation_ends_with_the_context() -> None:
    driver = Driver(options(n_ctx=100))
    answer = driver.submit(ask("a", "x" * 60))
    driver.run()
    assert (answer.finished.reason, answer.finished.usage.completion_tokens) == ("length", 40)


def test_a_batch_without_room_gives_up_the_cache_then_the_youngest() -> None:
    driver = Driver(options())
    driver.submit(ask("old", "old", max_tokens=5))
    driver.run()
    first = driver.submit(ask("first", "first", max_tokens=30))
    second = driver.submit(ask("second", "second", max_tokens=30))
    driver.step()
    driver.fake.fail_next = "no room"
    driver.step()
    assert (driver.engine.stats().cells_cached, driver.engine.stats().preempted) == (0, 0)
    driver.fake.fail_next = "no room"
    driver.step()
    assert driver.engine.stats().preempted == 1
    driver.run()
    assert (len(first.content), len(second.content)) == (30, 30)


# ── shared prefixes ───────────────────────────────────────────────────────────────────────────────────────────────


def test_sixteen_clients_with_one_prefix_compute_it_once() -> None:
    settings = FakeOptions(n_ctx=4096, n_ubatch=64, n_parallel=16, n_sequences=32, end_chance=0)
    driver = Driver(settings)
    prefix = "You are a helpful machine. " * 75  # 2025 tokens
    requests = [ask(f"r{i}", f"{prefix}Question {i:02}?", max_tokens=5) for i in range(16)]
    answers = [driver.submit(request) for request in requests]
    driver.run()
    assert [answer.finished.usage.cached_tokens for answer in answers] == [0] + [2035] * 9 + [2034] * 6
    assert driver.engine.stats().prompt_tokens == 2037 + 9 * 2 + 6 * 3
    steps = [answer.first_step or 0 for answer in answers]
    assert steps[0] == 32  # ceil(2037 / 64)
    assert max(steps[1:]) <= 34
    assert all(same_as_alone(answer, request, settings) for answer, request in zip(answers, requests, strict=True))


def test_choices_of_one_request_compute_its_prompt_once() -> None:
    settings = FakeOptions(n_ubatch=64, end_chance=0)
    driver = Driver(settings)
    requests = [ask(f"r{i}", "the same prompt, " * 10, max_tokens=20, sampling=seeded(i)) for i in range(4)]
    answers = [driver.submit(request) for request in requests]
    driver.run()
    assert [answer.finished.usage.cached_tokens for answer in answers] == [0, 169, 169, 169]
    assert driver.engine.stats().prompt_tokens == 170 + 3
    assert len({answer.content for answer in answers}) == 4
    assert all(same_as_alone(answer, request, settings) for answer, request in zip(answers, requests, strict=True))


def test_who_follows_goes_on_alone_when_its_leader_is_cancelled() -> None:
    settings = FakeOptions(n_ubatch=32, end_chance=0)
    driver = Driver(settings)
    requests = [ask(f"r{i}", "a common beginning, " * 20 + str(i), max_tokens=10) for i in range(3)]
    answers = [driver.submit(request) for request in requests]
    driver.step()
    driver.step()
    driver.engine.cancel("r0")
    driver.run()
    assert [answer.finished.reason for answer in answers] == ["cancelled", "length", "length"]
    assert [answer.finished.usage.cached_tokens for answer in answers] == [0, 64, 400]
    assert same_as_alone(answers[2], requests[2], settings)


def test_prompts_that_share_little_do_not_wait_for_each_other() -> None:
    driver = Driver(options(n_ubatch=64))
    driver.submit(ask("a", "<｜User｜>" + "a" * 500, max_tokens=5))
    driver.submit(ask("b", "<｜User｜>" + "b" * 10, max_tokens=5))
    driver.step()
    assert driver.answers["b"].first_step == 1


def test_a_conversation_goes_on_from_its_cells() -> None:
    driver = Driver(options())
    first = driver.submit(ask("1", "a question, long enough to matter. ", max_tokens=10))
    driver.run()
    turn = "a question, long enough to matter. " + first.content + "And then?"
    second = driver.submit(ask("2", turn, max_tokens=10))
    driver.run()
    assert second.finished.usage.cached_tokens == 35 + 9  # the last token that was said was never computed
    assert driver.engine.stats().sequences_cached == 1  # taken over, not copied


def test_cache_prompt_false_neither_takes_nor_leaves() -> None:
    driver = Driver(options())
    for i in range(2):
        answer = driver.submit(ask(f"r{i}", "x" * 50, max_tokens=5, cache_prompt=False))
        driver.run()
        assert answer.finished.usage.cached_tokens == 0
    assert driver.fake.used_cells() == 0


def test_a_model_that_cannot_share_never_copies() -> None:
    driver = Driver(options(can_share_prefix=False))
    for i in range(3):
        driver.submit(ask(f"r{i}", "x" * 100, max_tokens=5))
    driver.run()
    assert [answer.finished.usage.cached_tokens for answer in driver.answers.values()] == [0, 0, 0]
    assert driver.fake.used_cells() == 0


# ── deterministic ─────────────────────────────────────────────────────────────────────────────────────────────────


def batches_of(driver: Driver, request_id: str) -> list[int]:
    """The batch sizes in which a request was computed, which must have been alone in them."""
    sequence = driver.engine.generations[request_id].sequence
    sizes = []
    for batch in driver.fake.batches:
        if sequence in dict(batch):
            assert len(batch) == 1, "a deterministic request shared a batch"
            sizes.append(batch[0][1])
    return sizes


def test_deterministic_requests_run_in_batches_that_do_not_depend_on_others() -> None:
    request = ask("d", "deterministic " * 12, max_tokens=60, deterministic=True)
    quiet = Driver(FakeOptions(n_ubatch=64, end_chance=0))
    quiet.fake.record_batches = True
    quiet.submit(request)
    for _ in range(30):
        quiet.step()
    busy = Driver(FakeOptions(n_ubatch=64, end_chance=0))
    busy.fake.record_batches = True
    others = [busy.submit(ask(f"r{i}", "deterministic " * 20 + str(i), max_tokens=100)) for i in range(3)]
    busy.step()
    busy.submit(request)
    for _ in range(61):
        busy.step()
    assert batches_of(quiet, "d") == [64, 64, 40, *[1] * 27]
    assert batches_of(busy, "d")[:30] == [64, 64, 40, *[1] * 27]
    assert all(other.content for other in others)


def test_deterministic_and_other_requests_take_turns() -> None:
    driver = Driver(options())
    one = driver.submit(ask("one", "1", max_tokens=100, deterministic=True))
    two = driver.submit(ask("two", "2", max_tokens=100, deterministic=True))
    other = driver.submit(ask("other", "3", max_tokens=100))
    for _ in range(30):
        driver.step()
    assert (len(one.content), len(two.content), len(other.content)) == (10, 10, 10)


def test_a_deterministic_request_that_lost_its_cells_repeats_its_batches() -> None:
    driver = Driver(FakeOptions(n_ubatch=64, end_chance=0))
    driver.fake.record_batches = True
    driver.submit(ask("other", "x", max_tokens=300))
    answer = driver.submit(ask("d", "y" * 100, max_tokens=60, deterministic=True))
    while len(answer.content) < 10:
        driver.step()
    driver.engine.scheduler.preempt_youngest()
    before = len(driver.fake.batches)
    sequence = driver.engine.generations["d"].sequence
    driver.engine.cancel("other")  # something leaves: it may resume
    while len(answer.content) < 12:
        driver.step()
    again = [dict(batch)[sequence] for batch in driver.fake.batches[before:] if sequence in dict(batch)]
    assert again == [64, 36, *[1] * 11]
