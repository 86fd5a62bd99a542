"""Plans for other cards and contexts are whole plans, and refused as plans are."""

from __future__ import annotations

from unittest import mock

from ktllama.devices import DeviceMap
from ktllama.planner import fixed_part, hardware, sessions, survey
from ktllama.planner.planning import plan, planner
from ktllama.planner.survey import Outcome, Refusal, with_another
from ktllama.planner.wishes import ContextWishes
from tests.planner.machines import GIB

QUICK = ContextWishes(n_ctx=4096, ubatch=512, op_offload=False)


def test_neighbours_are_what_plans_for_them_are() -> None:
    machine = hardware.machine({"cuda:0": 6 * GIB}, 8 * GIB)
    told: list[tuple[str, float]] = []
    with (
        mock.patch.object(survey, "CARD_BYTES", (1 * GIB, 8 * GIB)),
        mock.patch.object(fixed_part, "check_present") as held_against_what_is_here,
        mock.patch.object(survey, "_LONGEST_CONTEXT", 8192),
        sessions.start(with_another(machine), DeviceMap()) as session,
        planner(None, None, session, machine=machine, wishes=QUICK, preset="deepseek-v2-lite") as ready,
    ):
        made = survey.survey(ready, lambda what, share: told.append((what, share)))
    # other cards are none of those that are here, whatever their names are
    assert [call.args[0] for call in held_against_what_is_here.call_args_list] == [machine, machine]
    assert (made.replaced_name, made.added_name) == ("cuda:0", "cuda:1")
    assert [point.amount for point in made.replaced] == [1 * GIB, 6 * GIB, 8 * GIB]
    assert [point.amount for point in made.added] == [1 * GIB, 8 * GIB]
    assert [point.amount for point in made.contexts] == [4096, 8192]
    small, here, large = (point.found for point in made.replaced)
    assert isinstance(small, Refusal)
    assert small.missing_bytes > 0
    assert small.reason.startswith("DeepSeek V2 Lite Chat Q4_K_M does not fit: 8 GiB of RAM and 1 GiB on cuda:0 are ")
    assert isinstance(here, Outcome)
    assert here.prediction == made.plan.prediction
    assert here.start_tokens_per_second > here.prediction.decode_tokens_per_second
    assert isinstance(large, Outcome)
    alone = plan(preset="deepseek-v2-lite", machine=hardware.machine({"cuda:0": 8 * GIB}, 8 * GIB), wishes=QUICK)
    assert large.prediction == alone.prediction
    speeds = [point.tokens_per_second for point in (*made.replaced[1:], *made.added)]
    assert None not in speeds
    assert told[-1] == ("other contexts", 1.0)
    assert [what for what, share in told if share == 1.0] == ["another card", "one more card", "other contexts"]


def test_one_more_card_is_like_the_first_and_has_a_name_of_its_own() -> None:
    machine = hardware.machine({"xpu:0": 8 * GIB, "xpu:2": 4 * GIB}, None, bandwidth={"xpu:0": 1e11})
    added = with_another(machine, 2 * GIB).gpus[-1]
    assert (added.name, added.memory_bytes, added.bandwidth) == ("xpu:1", 2 * GIB, 1e11)
    assert with_another(hardware.machine({}, None), GIB).gpus[0].name == "cuda:0"
    full = hardware.machine({f"cuda:{number}": GIB for number in range(15)}, None)
    assert with_another(full, GIB) is full
