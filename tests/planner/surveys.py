"""A survey made by hand around a plan that llama.cpp agreed to."""

from __future__ import annotations

from functools import cache

from ktllama.planner import hardware
from ktllama.planner.plan import Plan, Prediction
from ktllama.planner.planning import plan
from ktllama.planner.survey import Outcome, Point, Refusal, Survey
from ktllama.planner.wishes import ContextWishes
from tests.planner.machines import GIB


@cache
def lite_plan() -> Plan:
    """DeepSeek-V2-Lite on a card of 8 GiB."""
    wishes = ContextWishes(n_ctx=8192, ubatch=512, op_offload=False)
    return plan(preset="deepseek-v2-lite", machine=hardware.machine({"cuda:0": 8 * GIB}, 32 * GIB), wishes=wishes)


def outcome(speed: float, *, start: float | None = None, op_offload: bool = False) -> Outcome:
    """A plan that decodes at ``speed``."""
    prediction = Prediction(
        decode_tokens_per_second=speed, prefill_tokens_per_second=100.0, crossings=3, host_read_bytes=2.0 * GIB
    )
    return Outcome(prediction=prediction, start_tokens_per_second=start or speed, ubatch=512, op_offload=op_offload)


def survey() -> Survey:
    """A plan at 10 tokens a second (said so here) with cards and contexts, some of which do not fit."""
    made = lite_plan()
    base = made.prediction.decode_tokens_per_second
    return Survey(
        plan=made,
        replaced=(
            Point(amount=4 * GIB, found=Refusal(reason="M <b> does not fit", missing_bytes=3 * GIB)),
            Point(amount=8 * GIB, found=outcome(base, start=base * 1.1)),
            Point(amount=16 * GIB, found=outcome(base * 1.5)),
            Point(amount=80 * GIB, found=outcome(base * 3)),
        ),
        added=(Point(amount=8 * GIB, found=outcome(base * 1.25)), Point(amount=16 * GIB, found=outcome(base * 1.252))),
        contexts=(
            Point(amount=4096, found=outcome(base * 1.1, start=base * 1.2)),
            Point(amount=8192, found=outcome(base, start=base * 1.1)),
            Point(amount=16384, found=outcome(base * 0.8, start=base, op_offload=True)),
            Point(amount=32768, found=Refusal(reason="the buffers are too large")),
        ),
        replaced_name="cuda:0",
        added_name="cuda:1",
    )
