"""Routing and mixing, against numbers computed by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from ktllama.reference.config import MoeConfig
from ktllama.reference.experts import MixtureOfExperts, combine, route


def _logits(*scores: float) -> Tensor:
    """Router logits whose sigmoids are ``scores``, for one token."""
    return torch.tensor([[math.log(score / (1 - score)) for score in scores]], dtype=torch.float64)


def _moe(n_experts: int, **changes: object) -> MoeConfig:
    usual = {"n_experts_used": 2, "n_shared": 0, "expert_ffn": 1, "normalize": False}
    return MoeConfig(**{"n_experts": n_experts, **usual, **changes})  # type: ignore[arg-type]


def test_sigmoid_scores_choose_and_weigh_the_best() -> None:
    experts, weights = route(_logits(0.1, 0.6, 0.3, 0.5), None, _moe(4))
    assert experts.tolist() == [[1, 3]]
    torch.testing.assert_close(weights, torch.tensor([[0.6, 0.5]], dtype=torch.float64))


def test_weights_are_normalized_then_scaled() -> None:
    _, weights = route(_logits(0.1, 0.6, 0.3, 0.2), None, _moe(4, normalize=True, scale=2.5))
    torch.testing.assert_close(weights, torch.tensor([[0.6 / 0.9 * 2.5, 0.3 / 0.9 * 2.5]], dtype=torch.float64))


def test_softmax_scores_are_shares_of_all_experts() -> None:
    logits = torch.tensor([[0.0, math.log(3), math.log(4), 0.0]], dtype=torch.float64)
    experts, weights = route(logits, None, _moe(4, gating="softmax", scale=16.0))
    assert experts.tolist() == [[2, 1]]
    torch.testing.assert_close(weights, torch.tensor([[4 / 9 * 16, 3 / 9 * 16]], dtype=torch.float64))


def test_the_bias_chooses_but_does_not_weigh() -> None:
    bias = torch.tensor([0.9, 0.0, 0.0, -0.4], dtype=torch.float64)
    experts, weights = route(_logits(0.1, 0.6, 0.3, 0.9), bias, _moe(4))
    assert experts.tolist() == [[0, 1]]
    torch.testing.assert_close(weights, torch.tensor([[0.1, 0.6]], dtype=torch.float64))


def test_a_group_is_rated_by_its_two_best() -> None:
    # group 0 holds the best expert, group 1 the better pair
    logits = _logits(0.9, 0.2, 0.1, 0.6, 0.55, 0.1)
    config = _moe(6, n_groups=2, n_groups_used=1)
    assert route(logits, None, config)[0].tolist() == [[3, 4]]
    alone = _moe(6, n_groups=2, n_groups_used=1, group_score="max")
    assert route(logits, None, alone)[0].tolist() == [[0, 1]]


def test_experts_outside_the_chosen_groups_lose_even_to_negative_ones() -> None:
    bias = torch.tensor([-2.0, 0.0, -2.0, -2.0], dtype=torch.float64)
    experts, weights = route(_logits(0.2, 0.9, 0.5, 0.5), bias, _moe(4, n_groups=2, n_groups_used=1))
    assert experts.tolist() == [[1, 0]]  # a mask of 0 would have let expert 2 or 3 win over -1.8
    torch.testing.assert_close(weights, torch.tensor([[0.9, 0.2]], dtype=torch.float64))


def test_a_sum_of_weights_is_never_taken_for_less_than_float16_holds() -> None:
    logits = torch.full((1, 4), -30.0, dtype=torch.float64)
    _, weights = route(logits, None, _moe(4, normalize=True))
    expected = 1 / (1 + math.exp(30)) / 6.103515625e-5
    torch.testing.assert_close(weights, torch.full((1, 2), expected, dtype=torch.float64))


def _silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def test_experts_are_mixed_by_weight() -> None:
    """Two tokens of one value; expert e computes down·silu(gate·x)·up·x with these three numbers."""
    numbers = [(1.0, 2.0, 3.0), (0.5, -1.0, 2.0), (7.0, 7.0, 7.0), (-1.0, 1.0, 4.0)]
    matrices = [tuple(partial(torch.mul, torch.tensor(value)) for value in expert) for expert in numbers]
    x = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    experts = torch.tensor([[3, 0], [0, 1]])
    weights = torch.tensor([[0.25, 0.5], [1.0, 2.0]], dtype=torch.float64)

    used = [matrices[0], matrices[1], matrices[3]]
    made = combine(x, experts, weights, used, [2, 1, 0, 1])  # type: ignore[arg-type]

    first = 0.25 * 4 * _silu(-2.0) * 2 + 0.5 * 3 * _silu(2.0) * 4
    second = 3 * _silu(-1.0) * -2 + 2 * (2 * _silu(-0.5) * 1)
    torch.testing.assert_close(made, torch.tensor([[first], [second]], dtype=torch.float64))


def test_the_shared_expert_sees_every_token() -> None:
    torch.manual_seed(0)
    module = MixtureOfExperts(4, _moe(4, n_shared=1, expert_ffn=3)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        x = torch.randn(5, 4, dtype=torch.float64)
        whole, experts, weights = module(x)
        routed = torch.stack([
            sum(
                weight * module.down_exps.weight[expert] @ (
                    torch.nn.functional.silu(module.gate_exps.weight[expert] @ token)
                    * (module.up_exps.weight[expert] @ token)
                )
                for expert, weight in zip(chosen, shares, strict=True)
            )
            for token, chosen, shares in zip(x, experts, weights, strict=True)
        ])  # fmt: skip
        shared = torch.stack([
            module.down_shexp.weight @ (
                torch.nn.functional.silu(module.gate_shexp.weight @ token) * (module.up_shexp.weight @ token)
            )
            for token in x
        ])  # fmt: skip
    torch.testing.assert_close(whole, routed + shared)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_experts_used": 9}, "n_experts_used is 9; expected 1 to 8"),
        ({"n_groups": 3}, "8 experts make no 3 groups"),
        ({"n_groups": 8, "n_groups_used": 4}, "8 experts in 8 groups; a group needs two experts or more"),
        ({"n_groups": 4, "n_groups_used": 5}, "n_groups_used is 5; expected 1 to 4"),
        ({"n_groups": 4, "n_experts_used": 3}, "3 experts cannot be chosen from 1 groups of 2"),
    ],
)
def test_impossible_numbers_of_experts_are_refused(changes: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        _moe(8, **changes)
    assert str(caught.value) == reason
