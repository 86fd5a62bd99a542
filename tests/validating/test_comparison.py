"""What is compared, and what may come of it."""

from __future__ import annotations

import pytest

from ktllama.model.model_file import ModelFile, Tensor
from ktllama.validating.comparison import Comparison, comparison, same_types, weight_rounding


def model(*types: str) -> ModelFile:
    tensors = [
        Tensor(name=f"blk.{index}.attn_q.weight", shape=(256, 256), type=name, n_bytes=1)
        for index, name in enumerate(types)
    ]
    tensors.append(Tensor(name="output_norm.weight", shape=(256,), type="F32", n_bytes=1))
    return ModelFile(name="m", architecture="llama", metadata={}, tensors=tuple(tensors))


def compared(
    *types: str, kv: str = "f32", fa: bool = False, dtype: str = "float32", alike: bool = False, n_ubatch: int = 512
) -> Comparison:
    rounded = (alike,) * (len(types) + 1)
    return comparison(
        model(*types),
        model(*types),
        kv_type=kv,
        flash_attention=fa,
        dtype=dtype,
        rounded=rounded,
        n_ubatch=n_ubatch,
    )


def reasons(found: Comparison) -> list[str]:
    return [source.what for source in found.sources]


TIES = "values are rounded alike, but one near a tie may fall on either side"


@pytest.mark.parametrize("alike", [False, True])
def test_float32_throughout_differs_in_the_order_of_sums_only(alike: bool) -> None:
    found = compared("F32", alike=alike)
    assert reasons(found) == ["sums are taken in another order"]
    assert found.expected(0) == found.expected(None) == 1e-6
    assert found.max_kl == 1e-3


def test_every_reason_is_named_with_its_size() -> None:
    found = compared("Q4_K", "Q6_K", "F16", kv="q8_0", fa=True, dtype="bfloat16")
    assert reasons(found) == [
        "sums are taken in another order",
        "the reference itself computes in bfloat16",
        "llama.cpp rounds activations to 8 bits before it multiplies with Q4_K or Q6_K",
        "the KV cache keeps Q8_0 where the reference keeps bfloat16",
        "flash attention on the CPU takes K and V as F16 and may sum in F16",
    ]
    assert found.weights == "Q4_K"
    assert found.expected(0) == pytest.approx((0.02**2 + 0.01**2 + 5e-4**2 + 0.01**2 + 1e-12) ** 0.5)


def test_what_the_reference_rounds_alike_is_no_reason_but_for_ties() -> None:
    found = compared("Q8_0", kv="f16", fa=True, alike=True)
    assert reasons(found) == ["sums are taken in another order", TIES]
    assert found.expected(0) == pytest.approx((0.02 * 3e-4) ** 0.5)
    only_the_cache = compared("F32", kv="f16", alike=True)
    assert reasons(only_the_cache) == ["sums are taken in another order", TIES]
    assert only_the_cache.expected(0) == pytest.approx(3e-4, rel=1e-3)
    quantized_cache = compared("Q8_0", kv="q8_0", fa=True, alike=True)
    assert reasons(quantized_cache) == [
        "sums are taken in another order",
        "the KV cache keeps Q8_0 where the reference keeps float32",
        "flash attention on the CPU takes K and V as F16 and may sum in F16",
        TIES,
    ]
    assert 0.01 < quantized_cache.expected(0) < 0.02
    token_by_token = compared("F32", kv="f16", fa=True, alike=True, n_ubatch=1)
    assert "flash attention on the CPU takes K and V as F16 and may sum in F16" in reasons(token_by_token)


def test_layers_that_round_and_layers_that_do_not_expect_different_errors() -> None:
    whole = compared("Q8_0", "Q8_0")
    mixed = comparison(
        model("Q8_0", "Q8_0"),
        model("Q8_0", "Q8_0"),
        kv_type="f32",
        flash_attention=False,
        dtype="float32",
        rounded=(True, False, False),
    )
    assert [mixed.expected(layer) for layer in (0, 1, None)] == [
        pytest.approx((0.02 * 3e-4) ** 0.5),
        whole.expected(1),
        whole.expected(None),
    ]
    assert reasons(mixed) == [*reasons(whole), TIES]


def test_types_are_compared_tensor_by_tensor() -> None:
    assert same_types(model("Q8_0", "Q4_K"), model("Q8_0", "Q4_K"))
    assert not same_types(model("Q8_0", "Q4_K"), model("Q4_K", "Q8_0"))
    assert not same_types(model("Q8_0"), model("Q8_0", "Q8_0"))


@pytest.mark.parametrize(("type_name", "relative"), [("F16", 1e-3), ("BF16", 8e-3), ("Q8_0", 2e-2)])
def test_products_round_their_activations_to_the_weights_partner(type_name: str, relative: float) -> None:
    assert compared("F32", type_name).sources[1].relative == relative


@pytest.mark.parametrize(
    ("types", "limit"), [(("F16",), 1e-3), (("Q8_0", "F32"), 1e-3), (("Q6_K",), 2e-2), (("Q8_0", "Q4_K"), 2e-2)]
)
def test_the_limit_follows_the_least_precise_weights(types: tuple[str, ...], limit: float) -> None:
    assert compared(*types).max_kl == limit


@pytest.mark.parametrize(("type_name", "limit"), [("Q8_0", 1e-2), ("Q4_K", 1e-1), ("Q2_K", 1.0)])
def test_another_file_brings_the_rounding_of_its_weights(type_name: str, limit: float) -> None:
    found = comparison(
        model(type_name), model("F16"), kv_type="f32", flash_attention=False, dtype="float32", rounded=(False, False)
    )
    assert found.sources[1].what == f"the weights are {type_name} here and F16 in the file of the reference"
    assert found.sources[1].relative == weight_rounding(type_name)
    assert (found.weights, found.reference_weights, found.max_kl) == (type_name, "F16", limit)


@pytest.mark.parametrize(
    ("type_name", "measured"), [("Q8_0", 0.004), ("Q6_K", 0.016), ("Q5_K", 0.033), ("Q4_K", 0.067), ("Q2_K", 0.25)]
)
def test_the_rounding_of_weights_is_about_what_quantizers_do(type_name: str, measured: float) -> None:
    assert weight_rounding(type_name) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("kv_type", "dtype", "limit"),
    [("f16", "float32", 1e-3), ("q8_0", "float32", 5e-2), ("q4_0", "float32", 1.0), ("f16", "bfloat16", 5e-2)],
)
def test_the_limit_follows_what_was_asked_for(kv_type: str, dtype: str, limit: float) -> None:
    found = Comparison(
        weights="Q8_0",
        reference_weights="Q8_0",
        kv_type=kv_type,
        flash_attention=True,
        dtype=dtype,
        exact=(),
        alike=(),
        rounded=(),
    )
    assert found.max_kl == limit
