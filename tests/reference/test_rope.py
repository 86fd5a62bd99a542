"""Rotation, against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ktllama.reference.config import RopeConfig, YarnConfig
from ktllama.reference.rope import frequencies, rotate, rotation, yarn_ramp

F64 = torch.float64


def test_pairs_turn_by_powers_of_the_base() -> None:
    found = frequencies(RopeConfig(n_dims=6, base=1000.0))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.1, 0.01], dtype=F64))


def test_factors_and_linear_scaling_divide() -> None:
    config = RopeConfig(n_dims=4, base=100.0, factor=4.0)
    torch.testing.assert_close(frequencies(config), torch.tensor([0.25, 0.025], dtype=F64))
    factors = torch.tensor([1.0, 8.0])
    torch.testing.assert_close(frequencies(config, factors), torch.tensor([0.25, 0.003125], dtype=F64))


def test_neighbours_and_halves() -> None:
    turn = (torch.zeros(1, 1, 2, dtype=F64), torch.ones(1, 1, 2, dtype=F64))  # a quarter turn: (a, b) to (-b, a)
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]], dtype=F64)
    assert rotate(x, turn, "neighbours").flatten().tolist() == [-2, 1, -4, 3]
    assert rotate(x, turn, "halves").flatten().tolist() == [-3, -4, 1, 2]


def test_the_ramp_of_deepseek_v3() -> None:
    """64 values, 4096 tokens, base 10000: the pairs that turn 32 times and once are 10.47 and 22.51."""
    config = RopeConfig(n_dims=64, factor=40.0, yarn=YarnConfig(original_context=4096, log_multiplier=0.1))
    assert config.yarn is not None
    ramp = yarn_ramp(config, config.yarn)
    assert ramp[:11].tolist() == [1.0] * 11  # floor(10.47) keeps its own frequency
    assert ramp[23:].tolist() == [0.0] * 9
    torch.testing.assert_close(ramp[12], torch.tensor(1 - 2 / 13, dtype=F64))
    free = 10000 ** (-24 / 64)
    torch.testing.assert_close(
        frequencies(config)[12], torch.tensor(free * (11 / 13) + free / 40 * (2 / 13), dtype=F64)
    )


@pytest.mark.parametrize(
    ("multiplier", "magnitude", "score"),
    [
        (None, 1 + 0.1 * math.log(40), (1 + 0.1 * math.log(40)) ** 2),
        (0.1, 1.0, (1 + 0.1 * math.log(40)) ** 2),
        (0.0707, 1.0, (1 + 0.0707 * math.log(40)) ** 2),
    ],
)
def test_yarn_grows_the_scores_and_without_a_multiplier_the_rotation(
    multiplier: float | None, magnitude: float, score: float
) -> None:
    config = RopeConfig(n_dims=64, factor=40.0, yarn=YarnConfig(original_context=4096, log_multiplier=multiplier))
    assert config.magnitude == pytest.approx(magnitude)
    assert config.mla_score_factor == pytest.approx(score)
    cos, sin = rotation(config, torch.tensor([0, 5]), F64)
    assert cos.shape == (2, 1, 32)
    torch.testing.assert_close(cos.square() + sin.square(), torch.full_like(cos, magnitude**2))


def test_deepseek_v3_scales_its_scores_by_its_published_number() -> None:
    """mscale of DeepSeek's config.json: 0.1 · 1.0 · ln 40 + 1 = 1.3689, squared 1.8739."""
    config = RopeConfig(n_dims=64, factor=40.0, yarn=YarnConfig(original_context=4096, log_multiplier=0.1))
    assert config.mla_score_factor == pytest.approx(1.87385, abs=1e-5)


def test_without_scaling_nothing_grows() -> None:
    assert RopeConfig(n_dims=64).magnitude == 1
    assert RopeConfig(n_dims=64).mla_score_factor == 1


def test_an_odd_head_is_refused() -> None:
    with pytest.raises(ValueError, match="n_dims of RoPE is 7; expected an even number"):
        RopeConfig(n_dims=7)
