"""Plans by kind of module, and what moves between two of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktllama.explaining.document import difference_document, explanations_document, summary_document
from ktllama.explaining.explanation import explain
from ktllama.explaining.summary import DeviceTotal, DifferentModelsError, Kind, Move, compare, summarise, totals
from tests.explaining.plans import OTHER_RULES, RULES, plan
from tests.models import MIB, deepseek


def test_kinds_are_split_by_device_and_count_everything(tmp_path: Path) -> None:
    translation = plan(tmp_path)
    kinds = summarise(translation)
    assert [kind for kind in kinds if kind.name == "model.layers.*.mlp.gate"] == [
        Kind(name="model.layers.*.mlp.gate", device="cuda:0", layers=(1, 3), rules=(2,), n_tensors=4, n_bytes=4 * MIB),
        Kind(name="model.layers.*.mlp.gate", device="cuda:1", layers=(2,), rules=(1,), n_tensors=2, n_bytes=2 * MIB),
    ]
    assert kinds[-2:] == (
        Kind(name="KV cache", device="cuda:0", layers=(0, 1, 3), rules=(2,), n_tensors=0, n_bytes=3 * 192),
        Kind(name="KV cache", device="cuda:1", layers=(2,), rules=(1,), n_tensors=0, n_bytes=192),
    )
    assert sum(kind.n_tensors for kind in kinds) == len(translation.model.tensors)
    assert sum(kind.n_bytes for kind in kinds[:-2]) == translation.model.n_bytes


def test_totals_are_the_placement(tmp_path: Path) -> None:
    assert totals(plan(tmp_path)) == (
        DeviceTotal(device="cuda:0", weight_bytes=45 * MIB, kv_bytes_per_token=576, kv_layers=(0, 1, 3)),
        DeviceTotal(device="cuda:1", weight_bytes=15 * MIB, kv_bytes_per_token=192, kv_layers=(2,)),
        DeviceTotal(device="cpu", weight_bytes=10 * MIB, kv_bytes_per_token=0, kv_layers=()),
    )


def test_moves_are_grouped_by_kind_and_direction(tmp_path: Path) -> None:
    before, after = plan(tmp_path), plan(tmp_path, *OTHER_RULES, name="other.yaml")
    moves = compare(before, after)
    assert moves[-2:] == (
        Move(
            name="model.layers.*.mlp.experts", before="cpu", after="cuda:1", layers=(3,), n_tensors=3, n_bytes=3 * MIB
        ),
        Move(name="KV cache", before="cuda:1", after="cuda:0", layers=(2,), n_tensors=0, n_bytes=192),
    )
    assert sum(move.n_tensors for move in moves) == 3 + 15
    assert compare(before, before) == ()


def test_plans_for_different_models_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(DifferentModelsError) as caught:
        compare(plan(tmp_path), plan(tmp_path, *RULES, model=deepseek(5)))
    assert str(caught.value) == "the plans are for different models, tiny and tiny"


def test_the_document_of_an_explanation(tmp_path: Path) -> None:
    translation = plan(tmp_path)
    document = explanations_document(translation, explain(translation, "model.layers.2.input_layernorm"))
    file = str(tmp_path / "rules.yaml")
    assert document["rules"] == [
        {
            "index": 0,
            "line": 1,
            "name": r"\.mlp\.experts$",
            "class": None,
            "generate_device": "cpu",
            "recursive": False,
        },
        {
            "index": 1,
            "line": 4,
            "name": r"^model\.layers\.2\.",
            "class": None,
            "generate_device": "cuda:1",
            "recursive": True,
        },
        {"index": 2, "line": 6, "name": "", "class": None, "generate_device": "cuda:0", "recursive": True},
    ]
    assert (document["model"], document["rules_file"]) == ("tiny", file)
    assert document["explanations"] == [
        {
            "name": "model.layers.2.input_layernorm",
            "what": "module",
            "module": "model.layers.2.input_layernorm",
            "class": "ktransformers.models.modeling_deepseek_v3.DeepseekV3RMSNorm",
            "device": "cuda:1",
            "reason": "rule",
            "rule": 1,
            "also_matching": [2],
            "cut_by": None,
            "follows": None,
            "bytes_by_device": {"cuda:1": MIB},
            "tensors": [
                {
                    "name": "blk.2.attn_norm.weight",
                    "type": "F32",
                    "bytes": MIB,
                    "device": "cuda:1",
                    "prefill_device": None,
                    "llama": {"means": "layer", "device": "CUDA1", "layer": 2, "pattern": None},
                }
            ],
            "kv": None,
        }
    ]


def test_the_documents_of_a_summary_and_a_difference(tmp_path: Path) -> None:
    before, after = plan(tmp_path), plan(tmp_path, *OTHER_RULES, name="other.yaml")
    summary = summary_document(before)
    assert list(summary) == ["model", "rules_file", "rules", "kinds", "devices", "diagnostics"]
    assert summary["devices"] == [
        {"device": "cuda:0", "weight_bytes": 45 * MIB, "kv_bytes_per_token": 576, "kv_layers": (0, 1, 3)},
        {"device": "cuda:1", "weight_bytes": 15 * MIB, "kv_bytes_per_token": 192, "kv_layers": (2,)},
        {"device": "cpu", "weight_bytes": 10 * MIB, "kv_bytes_per_token": 0, "kv_layers": ()},
    ]
    difference = difference_document(before, after)
    moves = difference["moves"]
    assert isinstance(moves, list)
    assert moves[-1] == {
        "name": "KV cache",
        "before": "cuda:1",
        "after": "cuda:0",
        "layers": (2,),
        "n_tensors": 0,
        "n_bytes": 192,
    }
