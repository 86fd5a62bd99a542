"""Assignments within GPUs' and the host's memory, against every assignment of small models."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ktllama.planner.assigning import Reserve, assign, fixed_bytes, host_bytes, least_host_bytes, relaxed_seconds, room
from ktllama.planner.cost import token_seconds
from ktllama.planner.options import Problem
from tests.planner.machines import layer, machine, model, part
from tests.planner.test_optimise import all_assignments, fits, random_problem

NOTHING = Reserve(by_device={})


@pytest.mark.parametrize("seed", range(20))
def test_what_needs_the_least_host_memory_is_found_and_a_budget_is_kept(seed: int) -> None:
    chance = random.Random(seed)
    parts = model(
        *(
            layer(i, chance.randrange(1, 30), *(part(chance.randrange(1, 60), chance.randrange(1, 20)) for _ in "ab"))
            for i in range(chance.randrange(1, 4))
        ),
        output=chance.randrange(1, 40),
    )
    here = machine(*(chance.randrange(10, 120) for _ in range(chance.randrange(1, 3))))
    problem = Problem(model=parts, machine=here, room=room(parts, here, NOTHING))
    possible = [one for one in all_assignments(problem) if fits(problem, one)]
    least = min(host_bytes(parts, one, NOTHING) for one in possible)
    assert least_host_bytes(parts, here, NOTHING) == least
    gpus = [gpu.memory_bytes or 0 for gpu in here.gpus]
    assert assign(parts, machine(*gpus, ram=least - 1), NOTHING) is None
    for ram in (least, least + 7, least + 40):
        found = assign(parts, machine(*gpus, ram=ram), NOTHING)
        assert found is not None
        assert host_bytes(parts, found, NOTHING) <= ram
        fastest = min(token_seconds(parts, one, here) for one in possible if host_bytes(parts, one, NOTHING) <= ram)
        assert token_seconds(parts, found, here) <= fastest * 1.002


@pytest.mark.parametrize("seed", range(30))
def test_nothing_within_a_ram_budget_is_faster_whatever_is_fixed(seed: int) -> None:
    problem = random_problem(random.Random(1000 + seed))
    parts, fixed = problem.model, fixed_bytes(problem.model)
    gpus = tuple(
        replace(gpu, memory_bytes=problem.room[gpu.name] + fixed.get(gpu.name, 0)) for gpu in problem.machine.gpus
    )
    possible = [one for one in all_assignments(problem) if fits(problem, one)]
    sizes = sorted({host_bytes(parts, one, NOTHING) for one in possible})
    for ram in (sizes[0] - 1, *sizes[:: max(1, len(sizes) // 4)]):
        here = replace(problem.machine, cpu=replace(problem.machine.cpu, memory_bytes=ram), gpus=gpus)
        found = assign(parts, here, NOTHING)
        within = [token_seconds(parts, one, here) for one in possible if host_bytes(parts, one, NOTHING) <= ram]
        if not within:
            assert found is None
            continue
        assert found is not None
        assert fits(problem, found)
        assert host_bytes(parts, found, NOTHING) <= ram
        assert token_seconds(parts, found, here) <= min(within) * 1.002


def test_a_short_host_moves_what_takes_memory_not_what_is_read() -> None:
    # two layers of experts: one large and hardly read, one small and read in full
    parts = model(layer(0, 0, part(100, 5)), layer(1, 0, part(50, 50)), output=0)
    fast = assign(parts, machine(100), NOTHING)
    tight = assign(parts, machine(100, ram=60), NOTHING)
    assert fast is not None
    assert tight is not None
    assert fast.matrices == (("cpu",), ("cuda:0",))
    assert tight.matrices == (("cuda:0",), ("cpu",))


def test_reserves_and_fixed_parts_leave_less_room() -> None:
    parts = model(layer(0, 10, part(30, device="cuda:0"), kv=5, device="cuda:0"), layer(1, 7))
    assert fixed_bytes(parts) == {"cuda:0": 45}
    assert room(parts, machine(100, 20), Reserve(by_device={"cuda:0": 15})) == {"cuda:0": 40, "cuda:1": 20}


def test_a_part_may_be_cut_when_only_the_time_is_estimated() -> None:
    parts = model(layer(0, 90, part(90)), output=0)
    # 90 bytes of core and 10 of 90 of the matrix at 900 a second, the rest at 50
    assert relaxed_seconds(parts, machine(100), NOTHING) == pytest.approx(100 / 900 + 80 / 50)
