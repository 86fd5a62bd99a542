"""Why a module or a tensor is where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktllama.explaining.explanation import (
    CacheShare,
    Explainer,
    Llama,
    NoMatchError,
    Reason,
    TensorShare,
    Why,
    explain,
)
from ktllama.translation import Options
from tests.explaining.plans import EXPERTS, plan
from tests.models import MIB, deepseek, rule


def test_experts_name_their_rule_the_others_that_match_and_the_override(tmp_path: Path) -> None:
    (found,) = explain(plan(tmp_path), "model.layers.2.mlp.experts")
    assert found.why == Why(reason="rule", rule=0, also=(1, 2), said="cpu")
    assert (found.device, found.n_experts, found.n_bytes) == ("cpu", 4, 3 * MIB)
    pattern = r"^blk\.[0-9]+\.ffn_(gate|up|down|gate_up)_exps\.weight$"
    assert found.tensors == tuple(
        TensorShare(
            name=f"blk.2.ffn_{part}_exps.weight",
            type="F32",
            n_bytes=MIB,
            device="cpu",
            prefill_device="cuda:0",
            llama=Llama(means="override", device="CPU", pattern=pattern),
        )
        for part in ("down", "gate", "up")
    )


def test_attention_names_its_kv_cache_and_all_that_is_inside(tmp_path: Path) -> None:
    (found,) = explain(plan(tmp_path), "model.layers.2.self_attn")
    assert found.kv == CacheShare(layer=2, device="cuda:1", llama_device="CUDA1", bytes_per_token=2 * 96)
    assert (found.tensors, found.below) == ((), {"cuda:1": 8 * MIB})


def test_a_whole_layer_counts_its_bytes_by_device_gpus_first(tmp_path: Path) -> None:
    (found,) = explain(plan(tmp_path), "model.layers.2")
    assert found.below == {"cuda:1": 15 * MIB, "cpu": 3 * MIB}


def test_a_tensor_of_experts_is_explained_by_their_list(tmp_path: Path) -> None:
    (found,) = explain(plan(tmp_path), "blk.2.ffn_up_exps.weight")
    assert (found.what, found.module) == ("tensor", "model.layers.2.mlp.experts")
    assert found.why == Why(reason="rule", rule=0, also=(1, 2), said="cpu")


def test_what_is_below_a_cut_says_who_cut_it_and_what_would_have_matched(tmp_path: Path) -> None:
    (found,) = explain(plan(tmp_path), "model.layers.2.mlp.experts.0.up_proj")
    assert found.why == Why(reason="cut", rule=0, also=(1, 2), cut_by="model.layers.2.mlp.experts", said="cpu")


@pytest.mark.parametrize(
    ("rules", "name", "device", "reason"),
    [
        ([rule("", "cuda:1")], "model.embed_tokens", "cpu", "embedding"),
        ([rule("", "cpu")], "model.embed_tokens", "cpu", "rule"),
        ([rule("lm_head", "cpu")], "model.norm", "cuda:0", "default-device"),
        (
            ["- match: {name: 'model.norm'}\n  replace: {class: default, kwargs: {prefill_device: cpu}}\n"],
            "model.norm",
            "cuda:0",
            "rule-without-device",
        ),
        (
            [f"- match: {{name: 'experts$'}}\n  replace: {{class: {EXPERTS}}}\n  recursive: false\n"],
            "model.layers.1.mlp.experts",
            "cpu",
            "experts-operator",
        ),
        (
            [rule(r"experts\.0\.", "cuda:1"), rule("", "cpu")],
            "model.layers.1.mlp.experts",
            "cpu",
            "most-experts",
        ),
        ([rule("", "cpu")], "blk.1.attn_extra.weight", "cpu", "follows-attention"),
        ([rule("", "cpu")], "extra.weight", "cuda:0", "no-module"),
    ],
)
def test_reasons(tmp_path: Path, rules: list[str], name: str, device: str, reason: Reason) -> None:
    translation = plan(tmp_path, *rules, model=deepseek(extra=["blk.1.attn_extra.weight", "extra.weight"]))
    (found,) = explain(translation, name)
    assert (found.device, found.why.reason) == (device, reason)


def test_mtp_tensors_stay_on_disk(tmp_path: Path) -> None:
    (found,) = explain(plan(tmp_path, model=deepseek(n_mtp=1)), "blk.3.nextn.enorm.weight")
    assert found.tensors[0].llama.means == "not-loaded"


def test_a_tied_output_is_a_copy_of_the_embedding(tmp_path: Path) -> None:
    (found,) = explain(plan(tmp_path, model=deepseek(tied=True)), "lm_head")
    assert (found.tied_output, found.tensors, found.device) == (True, (), "cuda:0")


def test_a_cache_that_the_target_cannot_place_says_where_it_goes(tmp_path: Path) -> None:
    rules = [rule(r"layers\.[01]\.", "cuda:0"), rule("", "cpu")]
    translation = plan(tmp_path, *rules, options=Options(target="llama-server"))
    (found,) = explain(translation, "model.layers.2.self_attn")
    assert found.kv is not None
    assert (found.kv.device, found.kv.llama_device) == ("cpu", "CUDA0")


@pytest.mark.parametrize("target", ["python", "llama-server", "ik_llama.cpp"])
def test_what_llama_cpp_does_is_what_was_planned(tmp_path: Path, target: str) -> None:
    rules = [rule(r"layers\.[01]\.", "cuda:1"), rule("experts$", "cpu", recursive=False), rule("norm", "cuda:0")]
    translation = plan(tmp_path, *rules, rule("", "cpu"), options=Options(target=target))  # type: ignore[arg-type]
    explainer = Explainer(translation)
    done = {tensor.name: explainer.llama(tensor).device for tensor in translation.placement.tensors.values()}
    to_name = translation.options.device_map.llama_name
    assert done == {name: to_name(tensor.device) for name, tensor in translation.placement.tensors.items()}


def test_a_glob_matches_modules_and_tensors_but_an_exact_name_only_itself(tmp_path: Path) -> None:
    translation = plan(tmp_path)
    assert [found.name for found in explain(translation, "*[.d]norm*")] == [
        "model.norm",
    ]
    assert [found.name for found in explain(translation, "*.2.*ffn_norm*")] == ["blk.2.ffn_norm.weight"]
    assert [found.name for found in explain(translation, "model.norm")] == ["model.norm"]


@pytest.mark.parametrize(
    ("glob", "near"),
    [
        ("model.layers.2.mlp.expert", "model.layers.2.mlp.experts"),
        ("model.layers.*.mlp.expert", "model.layers.*.mlp.experts"),
        ("blk.2.attn_outptu.weight", "blk.2.attn_output.weight"),
    ],
)
def test_no_match_names_what_is_near(tmp_path: Path, glob: str, near: str) -> None:
    with pytest.raises(NoMatchError) as caught:
        explain(plan(tmp_path), glob)
    assert caught.value.near[0] == near
    assert str(caught.value).startswith(f"'{glob}' matches no module and no tensor of tiny; did you mean '{near}' or ")


def test_no_match_with_nothing_near_says_only_that(tmp_path: Path) -> None:
    with pytest.raises(NoMatchError) as caught:
        explain(plan(tmp_path), "\x1b[31m" + "!" * 300)
    assert str(caught.value).startswith(r"'\x1b[31m!!!")
    assert str(caught.value).endswith("!...' matches no module and no tensor of tiny")
