"""One layer against another: errors that came in, errors that were added, and flipped experts."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from ktllama.validating.layers import (
    Flip,
    LayerErrors,
    Outputs,
    Routing,
    compare_layer,
    first_flip,
    flipped_positions,
    own_errors,
)


def rows(*values: list[float]) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


def chosen(*values: list[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


#: Two tokens. The reference's own pass gives (3, 4); llama.cpp comes with another input and ends elsewhere.
OUTPUTS = Outputs(
    reference=rows([3, 4], [0, 5]),
    llama=rows([3, 4.5], [0, 10]),
    given=rows([1, 0], [0, 0]),
    led=rows([3, 4], [0, 10]),
)


def test_all_errors_are_relative_to_the_output_and_own_ones_to_what_the_layer_adds() -> None:
    found = compare_layer(3, OUTPUTS, None, "float64")
    assert found.layer == 3
    assert found.relative.tolist() == [0.1, 1.0]
    assert found.own[0] == pytest.approx(0.5 / math.sqrt(20), rel=1e-5)  # of (2, 4), which was added
    assert found.own[1] == 0.0  # it is off only because its input was
    assert (found.worst, found.worst_position) == (1.0, 1)
    assert found.flipped is None
    assert found.n_flipped == 0


def test_the_rounding_of_the_sum_is_no_error_of_the_layer() -> None:
    big = 1e4
    outputs = Outputs(reference=rows([big, 0]), llama=rows([big, 1e-3]), given=rows([big, 0.1]), led=rows([big, 0.0]))
    assert own_errors(outputs, "float32").tolist() == [0.0]  # 1e-3 is a ten-millionth of the sum
    outputs = Outputs(reference=outputs.reference, llama=rows([big, 0.05]), given=outputs.given, led=outputs.led)
    assert own_errors(outputs, "float32")[0] == pytest.approx(0.5, rel=0.05)
    assert own_errors(outputs, "bfloat16").tolist() == [0.0]


def test_what_is_no_number_is_infinitely_wrong() -> None:
    outputs = Outputs(reference=rows([1, 1]), llama=rows([math.nan, 1]), given=rows([0, 0]), led=rows([1, 1]))
    found = compare_layer(0, outputs, None, "float32")
    assert found.relative.tolist() == found.own.tolist() == [math.inf]


def test_experts_are_compared_as_sets() -> None:
    routing = Routing(
        reference=chosen([1, 5], [2, 3]),
        llama=chosen([5, 1], [3, 7]),
        led=chosen([1, 5], [7, 3]),
        nudges=np.zeros(2),
    )
    found = compare_layer(4, OUTPUTS, routing, "float32")
    assert found.flipped is not None
    assert found.own_flipped is not None
    assert found.flipped.tolist() == [False, True]
    assert found.own_flipped.tolist() == [False, False]  # given the same input, both choose 3 and 7
    assert found.n_flipped == 1
    assert found.flip(1) == ((2,), (7,))


def layer(index: int, flipped: list[bool] | None) -> LayerErrors:
    zeros = np.zeros(3)
    if flipped is None:
        return LayerErrors(layer=index, relative=zeros, own=zeros)
    reference = chosen([0], [0], [0])
    llama = np.where(np.array(flipped)[:, None], 9, 0)
    marks = np.array(flipped)
    return LayerErrors(
        layer=index, relative=zeros, own=zeros, flipped=marks, own_flipped=marks, chosen=(reference, llama)
    )


def test_the_first_flip_is_the_first_by_layer() -> None:
    layers = (layer(0, None), layer(1, [False, False, True]), layer(2, [True, False, True]))
    assert first_flip(layers) == Flip(position=2, layer=1, gone=(0,), came=(9,))
    assert first_flip(layers, 0) == Flip(position=0, layer=2, gone=(0,), came=(9,))
    assert first_flip(layers, 1) is None
    assert flipped_positions(layers, 3).tolist() == [True, False, True]
    assert first_flip((layer(0, None),)) is None
