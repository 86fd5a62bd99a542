"""Compute buffers of several ubatches from few dry runs."""

from collections.abc import Sequence

from ktllama.planner.buffers import Buffers, by_ubatch

KNOWN = {512: {"cuda:0": 100, "cpu": 10}, 1024: {"cuda:0": 150}, 4096: {"cuda:0": 800, "cpu": 80}}


def test_the_ends_are_measured_and_those_between_are_on_the_line() -> None:
    asked: list[tuple[int, ...]] = []

    def measure(sizes: Sequence[int]) -> dict[int, Buffers]:
        asked.append(tuple(sizes))
        return {size: KNOWN[size] for size in sizes}

    assert by_ubatch((512, 1024, 4096), measure) == {
        512: {"cuda:0": 100, "cpu": 10},
        1024: {"cuda:0": 200, "cpu": 20},
        4096: {"cuda:0": 800, "cpu": 80},
    }
    assert by_ubatch((512,), measure) == {512: {"cuda:0": 100, "cpu": 10}}
    assert asked == [(512, 4096), (512,)]


def test_all_are_measured_where_an_end_is_refused() -> None:
    def measure(sizes: Sequence[int]) -> dict[int, Buffers]:
        return {size: KNOWN[size] for size in sizes if size < 4096}

    assert by_ubatch((512, 1024, 4096), measure) == {512: KNOWN[512], 1024: KNOWN[1024]}
