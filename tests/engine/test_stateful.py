"""Random lives of an engine: whatever comes together, each request is answered as if it had run alone."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from ktllama.engine.messages import Generate, Segment, Thinking
from tests.engine.driver import Answer, Driver, alone, seeded
from tests.engine.fake_executor import FakeOptions

PARTS = ("A" * 20, "B" * 9, "C", "DE" * 24, "F" * 40)
PROMPTS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("".join)
THINKING = Thinking(start="<think>", end="</think>", begins_inside=True, closing=" Enough.</think>")


Outcome = tuple[str, str, str, str | None, int, int]
KNOWN: dict[bytes, Outcome] = {}


def expected(request: Generate, options: FakeOptions) -> Outcome:
    """What a request is answered alone; of the context only its size may matter."""
    plain = FakeOptions(n_ctx=options.n_ctx, end_chance=options.end_chance)
    renamed = changed(request, request_id="alone", deterministic=False, cache_prompt=True)
    key = msgspec.msgpack.encode((renamed, plain))
    if key not in KNOWN:
        KNOWN[key] = outcome(alone(renamed, plain))
    return KNOWN[key]


def changed(request: Generate, **fields: Any) -> Generate:
    return msgspec.structs.replace(request, **fields)


def outcome(answer: Answer) -> Outcome:
    end = answer.finished
    usage = end.usage
    return answer.reasoning, answer.content, end.reason, end.stop, usage.completion_tokens, usage.reasoning_tokens


class EngineMachine(RuleBasedStateMachine):
    """Submits, cancels and faults in any order, with the integrity check after each step."""

    requests: Bundle[str] = Bundle("requests")

    @initialize(
        n_ctx=st.sampled_from([100, 160, 400]),
        n_ubatch=st.sampled_from([1, 5, 16]),
        n_parallel=st.integers(1, 4),
        n_more_sequences=st.integers(0, 3),
        can_share=st.sampled_from([True, True, True, False]),
        parking_bytes=st.sampled_from([0, 60, 1000]),
    )
    def start(
        self,
        n_ctx: int,
        n_ubatch: int,
        n_parallel: int,
        n_more_sequences: int,
        can_share: bool,
        parking_bytes: int,
    ) -> None:
        options = FakeOptions(
            n_ctx=n_ctx,
            n_ubatch=n_ubatch,
            n_parallel=n_parallel,
            n_sequences=n_parallel + n_more_sequences,
            can_share_prefix=can_share,
            parking_bytes=parking_bytes,
            end_chance=24,
        )
        self.driver = Driver(options, queue_limit=12)
        self.asked: dict[str, Generate] = {}
        self.cancelled: set[str] = set()
        self.may_fail = False
        self.good_steps = 1
        logging.getLogger("ktllama.engine").setLevel(logging.CRITICAL)  # it tells of each fault at length

    @rule(
        target=requests,
        text=PROMPTS,
        max_tokens=st.one_of(st.none(), st.integers(0, 60)),
        budget=st.one_of(st.none(), st.integers(0, 30)),
        seed=st.integers(0, 1),
        deterministic=st.sampled_from([False, False, False, True]),
        cache_prompt=st.sampled_from([True, True, True, False]),
        stop=st.sampled_from([(), (), ("ab", " e")]),
    )
    def submit(
        self,
        text: str,
        max_tokens: int | None,
        budget: int | None,
        seed: int,
        deterministic: bool,
        cache_prompt: bool,
        stop: tuple[str, ...],
    ) -> str:
        thinking = Thinking()
        if budget is not None:
            text += "<think>\n"
            thinking = Thinking(
                start=THINKING.start, end=THINKING.end, begins_inside=True, closing=THINKING.closing, budget=budget
            )
        request = Generate(
            request_id=f"r{len(self.asked)}",
            prompt=(Segment(text, True),),
            max_tokens=max_tokens,
            sampling=seeded(seed),
            thinking=thinking,
            deterministic=deterministic,
            cache_prompt=cache_prompt,
            stop=stop,
        )
        self.asked[request.request_id] = request
        answer = self.driver.submit(request)
        if answer.ends and not answer.accepted:
            assert answer.failed.code in ("queue_full", "context_length_exceeded")
        return request.request_id

    @rule(request_id=requests, n_more=st.integers(1, 3))
    def ask_again(self, request_id: str, n_more: int) -> None:
        """More choices of the same prompt."""
        for _ in range(n_more):
            copy = changed(self.asked[request_id], request_id=f"r{len(self.asked)}")
            self.asked[copy.request_id] = copy
            self.driver.submit(copy)

    @rule(n_steps=st.integers(1, 12))
    def step(self, n_steps: int) -> None:
        for _ in range(n_steps):
            if self.driver.engine.is_busy:
                self.driver.step()
                self.good_steps += 1

    @rule(n_parked=st.integers(1, 4))
    def tidy(self, n_parked: int) -> None:
        """What the process does between steps."""
        for _ in range(n_parked):
            self.driver.engine.tidy()

    @rule(request_id=requests)
    def cancel(self, request_id: str) -> None:
        self.driver.engine.cancel(request_id)
        self.driver.collect()
        assert self.driver.answers[request_id].ends, "a cancelled request has not left"
        self.cancelled.add(request_id)

    @rule(request_id=requests)
    def preempt(self, request_id: str) -> None:
        """What the scheduler does when cells run out, at any other time too."""
        scheduler = self.driver.engine.scheduler
        if scheduler.preempt_youngest():
            self.driver.check()

    @precondition(lambda self: self.good_steps > 0)
    @rule(how=st.sampled_from(["no room", "in the middle", "no restore", "no save"]))
    def fail(self, how: str) -> None:
        if self.driver.engine.is_busy:
            self.driver.fake.fail_next = how  # type: ignore[assignment]
            self.may_fail = True
            self.good_steps = 0
            self.driver.step()

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "driver"):
            self.driver.check()

    def teardown(self) -> None:
        logging.getLogger("ktllama.engine").setLevel(logging.NOTSET)
        if not hasattr(self, "driver"):
            return
        self.driver.fake.fail_next = None
        self.driver.run()
        for request_id, answer in self.driver.answers.items():
            assert len(answer.ends) == 1
            if not answer.accepted:
                assert answer.failed.code in ("queue_full", "context_length_exceeded")
                continue
            if not hasattr(answer.ends[0], "reason"):
                assert self.may_fail
                assert answer.failed.code == "engine_error"
                continue
            if answer.finished.reason == "cancelled":
                assert request_id in self.cancelled
                continue
            assert outcome(answer) == expected(self.asked[request_id], self.driver.fake.options)
        assert self.driver.engine.cache.n_held == 0
        assert not self.driver.fake.chains
        while self.driver.engine.cache.evict():
            self.driver.check()
        assert self.driver.fake.used_cells() == 0


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
