"""Which layer is blamed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ktllama.validating.layers import LayerErrors
from ktllama.validating.suspects import Suspect, far_off, first_suspect, largest

CALM = np.full(4, 0.01)


def expected(_layer: int | None) -> float:
    return 0.01


def layer(index: int, own: float | list[float], flipped: list[bool] | None = None) -> LayerErrors:
    values: npt.NDArray[np.float64] = np.full(20, own) if isinstance(own, float) else np.array(own)
    marks = None if flipped is None else np.array(flipped)
    return LayerErrors(layer=index, relative=values * 10, own=values, flipped=marks, own_flipped=marks)


def test_errors_as_expected_blame_nobody() -> None:
    assert first_suspect(tuple(layer(index, 0.03) for index in range(6)), CALM, expected) is None


def test_the_first_of_two_wrong_layers_is_blamed() -> None:
    layers = tuple(layer(index, own) for index, own in enumerate((0.01, 0.01, 0.5, 0.01, 0.9)))
    assert first_suspect(layers, CALM, expected) == Suspect(layer=2, error=0.5, share=1.0, certain=True)


def test_clearly_more_than_a_tenth_of_the_tokens_is_enough() -> None:
    def wrong(n: int, of: int) -> tuple[LayerErrors]:
        return (layer(0, [*[0.09] * n, *[0.01] * (of - n)]),)

    assert first_suspect(wrong(5, 20), CALM, expected) == Suspect(layer=0, error=0.09, share=0.25, certain=True)
    enough = {8: 3, 20: 5, 100: 17, 300: 41}
    for of, n in enough.items():
        assert first_suspect(wrong(n, of), CALM, expected) is not None
        assert first_suspect(wrong(n - 1, of), CALM, expected) is None


def test_three_tokens_that_are_far_off_are_enough() -> None:
    def wrong(n: int) -> tuple[LayerErrors]:
        return (layer(1, [*[0.2] * n, *[0.0] * (300 - n)]),)

    assert first_suspect(wrong(3), CALM, expected) == Suspect(layer=1, error=0.2, share=0.01, certain=True)
    assert first_suspect(wrong(2), CALM, expected) is None
    assert far_off(wrong(2)[0], 0.01).sum() == 2


def test_a_flip_that_rounding_cannot_explain_is_an_error() -> None:
    def flips(nudge: float) -> LayerErrors:
        marks = np.arange(20) < 3
        own, nudges = np.where(marks, 0.09, 0.0), np.where(marks, nudge, 0.0)
        return LayerErrors(layer=1, relative=own, own=own, flipped=marks, own_flipped=marks, nudges=nudges)

    assert first_suspect((flips(0.09),), CALM, expected) is None
    assert largest((flips(0.09),), expected) is None
    assert first_suspect((flips(0.11),), CALM, expected) == Suspect(layer=1, error=0.09, share=0.15, certain=True)


def test_one_or_two_tokens_must_be_far_off() -> None:
    for n in (1, 2):
        assert first_suspect((LayerErrors(layer=0, relative=np.ones(n), own=np.full(n, 0.09)),), CALM, expected) is None
        found = first_suspect((LayerErrors(layer=0, relative=np.ones(n), own=np.full(n, 0.2)),), CALM, expected)
        assert found == Suspect(layer=0, error=0.2, share=1.0, certain=True)


def test_some_flipped_experts_are_no_fault_but_a_router_that_flips_most_is() -> None:
    some = [True] * 8 + [False] * 12
    most = [True] * 10 + [False] * 10
    assert first_suspect((layer(0, [0.9] * 8 + [0.01] * 12, some),), CALM, expected) is None
    found = first_suspect((layer(0, [0.9] * 10 + [0.01] * 10, most),), CALM, expected)
    assert found is not None
    assert (found.layer, found.share) == (0, 0.5)


def test_the_output_is_blamed_where_every_layer_is_right() -> None:
    wrong = np.array([0.3, 0.3, 0.3, 0.01])
    assert first_suspect((layer(0, 0.01),), wrong, expected) == Suspect(layer=None, error=0.3, share=0.75, certain=True)


def test_the_largest_error_is_no_proof() -> None:
    assert largest((layer(0, 0.01), layer(1, 0.03), layer(2, 0.02)), expected) == Suspect(
        layer=1, error=0.03, share=0.0, certain=False
    )
    assert largest((), expected) is None
    assert largest((layer(0, 0.01), layer(1, 0.005)), expected) is None  # no more than is expected
    one = layer(2, [0.02, *[0.0] * 19])
    assert largest((layer(0, 0.01), one), expected) == Suspect(layer=2, error=0.02, share=0.0, certain=False)


def test_every_layer_is_held_against_what_is_expected_of_it() -> None:
    layers = (layer(0, 0.35), layer(1, 0.03), layer(2, 0.03))

    def by_layer(index: int | None) -> float:
        return {0: 0.1, 1: 0.01, 2: 0.001}.get(index if index is not None else -1, 1e-6)

    assert first_suspect(layers, CALM, by_layer) == Suspect(layer=2, error=0.03, share=1.0, certain=True)
    assert first_suspect(layers[:2], CALM, by_layer) == Suspect(layer=None, error=0.01, share=1.0, certain=True)
    assert largest(layers[:2], by_layer) == Suspect(layer=0, error=0.35, share=0.0, certain=False)
    assert largest(layers, by_layer) == Suspect(layer=2, error=0.03, share=1.0, certain=False)
