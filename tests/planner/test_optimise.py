"""The optimiser against every assignment of small models."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ktllama.planner.cost import Assignment, host_read_bytes, memory_bytes, n_crossings, token_seconds
from ktllama.planner.machine import Machine, Processor
from ktllama.planner.optimise import least_seconds, optimise, solve
from ktllama.planner.options import Problem
from ktllama.planner.parts import Layer, ModelParts, Part

CPU = Processor(name="cpu", memory_bytes=None, bandwidth=50.0, default_flops=1e12)


def gpu(number: int, room: int, bandwidth: float = 900.0) -> Processor:
    return Processor(name=f"cuda:{number}", memory_bytes=room, bandwidth=bandwidth, default_flops=1e12)


def part(n_bytes: int, read: float | None = None, device: str | None = None) -> Part:
    return Part(tensors=(), n_bytes=n_bytes, reads=(("Q8_0", n_bytes if read is None else read),), device=device)


def layer(index: int, core: int, matrices: list[Part], kv: int = 0, device: str | None = None) -> Layer:
    return Layer(
        index=index, device=device, core=part(core), kv_bytes=kv, kv_read_bytes=kv / 2, matrices=tuple(matrices)
    )


def all_assignments(problem: Problem) -> Iterator[Assignment]:
    """Every assignment whose layers are contiguous by device, the host first, in every order of the GPUs that begins
    as the problem wants it."""
    names = [one.name for one in problem.machine.gpus]
    fixed = problem.model.output.device or problem.output
    outputs = [fixed] if fixed else ["cpu", *names]
    for order in itertools.permutations(names):
        if order[: len(problem.order)] != problem.order:
            continue
        runs = ["cpu", *order]
        for way in itertools.combinations_with_replacement(range(len(runs)), len(problem.model.layers)):
            choices = []
            for one, at in zip(problem.model.layers, way, strict=True):
                places = [[m.device] if m.device else sorted({"cpu", runs[at]}) for m in one.matrices]
                choices.append([(one.device or runs[at], made) for made in itertools.product(*places)])
            for made in itertools.product(*choices):
                for output in outputs:
                    yield Assignment(
                        cores=tuple(core for core, _ in made), matrices=tuple(each for _, each in made), output=output
                    )


def fits(problem: Problem, assignment: Assignment) -> bool:
    used = memory_bytes(problem.model, assignment)
    fixed = memory_bytes_of_fixed(problem.model)
    return all(used.get(one.name, 0) - fixed.get(one.name, 0) <= problem.room[one.name] for one in problem.machine.gpus)


def memory_bytes_of_fixed(model: ModelParts) -> dict[str, int]:
    used: dict[str, int] = {}
    for one in model.all_fixed:
        assert one.device is not None
        used[one.device] = used.get(one.device, 0) + one.n_bytes
    for each in model.layers:
        if each.device is not None:
            used[each.device] = used.get(each.device, 0) + each.core_bytes
    if model.output.device is not None:
        used[model.output.device] = used.get(model.output.device, 0) + model.output.n_bytes
    return used


def random_problem(chance: random.Random, *, n_gpus: int | None = None, most_layers: int = 4) -> Problem:
    def size(most: int) -> int:
        return chance.randrange(1, most)

    def device(names: list[str]) -> str | None:
        return chance.choice(names) if chance.random() < 0.15 else None

    gpus = tuple(gpu(i, 0, chance.choice([500.0, 900.0])) for i in range(n_gpus or chance.randrange(1, 3)))
    names = ["cpu", *(one.name for one in gpus)]
    layers = tuple(
        layer(
            index,
            size(40),
            [part(size(60), size(20), device(names)) for _ in range(chance.randrange(1, 3))],
            kv=chance.randrange(0, 20),
            device=device(names),
        )
        for index in range(chance.randrange(1, most_layers + 1))
    )
    model = ModelParts(layers=layers, output=part(size(50), device=device(names)))
    machine = Machine(cpu=CPU, gpus=gpus, crossing_seconds=chance.choice([0.0, 0.05, 0.5]))
    return Problem(model=model, machine=machine, room={one.name: chance.randrange(0, 250) for one in gpus})


@pytest.mark.parametrize("seed", range(60))
def test_no_assignment_of_a_small_model_is_faster(seed: int) -> None:
    problem = random_problem(random.Random(seed))
    found = optimise(problem)
    assert fits(problem, found)
    # splitting one layer's matrices counts as 0.2% slower, so the optimum is compared up to that
    best = min(
        token_seconds(problem.model, one, problem.machine) for one in all_assignments(problem) if fits(problem, one)
    )
    assert token_seconds(problem.model, found, problem.machine) <= best * 1.002
    assert bound_of_tokens(problem) <= best * 1.002


def bound_of_tokens(problem: Problem) -> float:
    """The bound of layers and output, for whole tokens: what random problems fix is in their layers."""
    assert not problem.model.fixed
    return least_seconds(problem)


@pytest.mark.parametrize("seed", range(30))
def test_an_order_and_a_place_of_the_output_that_are_given_are_kept(seed: int) -> None:
    chance = random.Random(seed)
    problem = random_problem(chance, n_gpus=3, most_layers=3)
    names = [one.name for one in problem.machine.gpus]
    order = tuple(chance.sample(names, chance.randrange(1, 4)))
    output = problem.model.output.device or chance.choice(["cpu", *names])
    given = replace(problem, order=order, output=output)
    possible = [one for one in all_assignments(given) if fits(given, one)]
    if not possible:
        assert solve(given) is None
        return
    found = optimise(given)
    assert fits(given, found)
    assert found.output == output
    best = min(token_seconds(given.model, one, given.machine) for one in possible)
    assert token_seconds(given.model, found, given.machine) <= best * 1.002


def test_the_matrices_of_a_layer_stay_together_where_splitting_gains_nothing() -> None:
    matrices = [part(10), part(10), part(10)]
    model = ModelParts(layers=(layer(0, 1, matrices), layer(1, 1, matrices)), output=part(1))
    machine = Machine(cpu=CPU, gpus=(gpu(0, 0),), crossing_seconds=0.0)
    found = optimise(Problem(model=model, machine=machine, room={"cuda:0": 33}))
    assert sorted(found.matrices) == [("cpu",) * 3, ("cuda:0",) * 3]
    assert memory_bytes(model, found)["cuda:0"] == 33


def test_room_left_by_whole_layers_is_filled_with_part_of_one() -> None:
    model = ModelParts(layers=tuple(layer(i, 1, [part(10), part(10), part(10)]) for i in range(2)), output=part(1))
    machine = Machine(cpu=CPU, gpus=(gpu(0, 0),), crossing_seconds=0.0)
    found = optimise(Problem(model=model, machine=machine, room={"cuda:0": 53}))
    assert memory_bytes(model, found)["cuda:0"] == 53
    assert host_read_bytes(model, found) == 10


def test_crossings_are_counted_along_the_way_of_a_token() -> None:
    assignment = Assignment(cores=("cpu", "cuda:0"), matrices=(("cpu",), ("cpu", "cuda:0")), output="cuda:0")
    # host → (layer 1's core on the GPU) → its first matrix on the host → back → logits to the host
    assert n_crossings(assignment) == 4


def test_host_memory_can_be_given_a_price() -> None:
    slow = Processor(name="cuda:0", memory_bytes=None, bandwidth=10.0, default_flops=1e12)
    model = ModelParts(layers=(layer(0, 10, [part(10)]),), output=part(1))
    machine = Machine(cpu=CPU, gpus=(slow,), crossing_seconds=0.0)
    assert optimise(Problem(model=model, machine=machine, room={"cuda:0": 100})).cores == ("cpu",)
    dear = Problem(model=model, machine=machine, room={"cuda:0": 100}, host_price=1.0)
    assert optimise(dear).cores == ("cuda:0",)
