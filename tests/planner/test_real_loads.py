"""What a plan says beside what a real load of its settings reports."""

from __future__ import annotations

import pytest

from ktllama import assets
from ktllama.planner import hardware
from ktllama.planner.planning import plan
from ktllama.planner.prediction import decode_seconds
from ktllama.planner.wishes import ContextWishes
from ktllama.ruleset import loader
from ktllama.runtime.timing_session import TimingSession
from tests.models import rule

PRINTED = 0.02 * (1 << 20)  # llama.cpp prints two decimals of a MiB, of a few buffers
WISHES = ContextWishes(n_ctx=1024, ubatch=512, op_offload=False, margin=0)


@pytest.mark.parametrize(
    "rules",
    [
        rule("", "cpu"),
        rule(r"\.mlp\.", "cpu") + rule("", "cuda:0"),
        rule(r"^model\.layers\.[0-2]\.", "cuda:0") + rule("", "cuda:1"),  # pipeline parallelism
        rule(r"^model\.layers\.[01]\.", "cpu") + rule("", "cuda:0"),
    ],
)
def test_planned_memory_is_what_a_load_reports(rules: str) -> None:
    machine = hardware.machine({"cuda:0": 1 << 36, "cuda:1": 1 << 36}, None)
    made = plan(loader.loads(rules, "rules"), str(assets.tiny_r1()), machine=machine, wishes=WISHES)
    names = made.translation.options.device_map
    with TimingSession(
        assets.tiny_r1(), made.translation.settings, made.context, stand_ins=True, cpu_bytes=0
    ) as session:
        loaded = session.loaded
    for one in made.memory:
        name = names.llama_name(one.device)
        planned = (sum(one.weights.values()), one.kv, one.compute)
        real = (loaded.weights.get(name, 0), loaded.kv.get(name, 0), loaded.compute.get(name, 0))
        assert planned == pytest.approx(real, abs=PRINTED), one.device


def test_the_prediction_of_a_placement_is_that_of_its_plan() -> None:
    machine = hardware.machine({"cuda:0": 6 << 30}, None)
    made = plan(None, preset="deepseek-v2-lite", machine=machine, wishes=WISHES)
    seconds = decode_seconds(made.translation.placement, machine, made.context, WISHES.n_ctx / 2, made.n_nodes)
    assert 1 / seconds == pytest.approx(made.prediction.decode_tokens_per_second)
    assert made.n_nodes > 27 * 20
