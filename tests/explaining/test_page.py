"""The picture: a page that stands alone, says what the plan says, and lets no name in it do anything."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ktllama.explaining import page
from ktllama.explaining.summary import DifferentModelsError
from ktllama.model.model_file import ModelFile
from ktllama.translation import Options
from tests.explaining.plans import OTHER_RULES, plan
from tests.models import MIB, deepseek, rule
from tests.pages.reader import read

HOSTILE = """</script><script>alert(1)</script><!--"'&amp; \\u2028"""


def test_the_data_in_the_page_is_the_plan(tmp_path: Path) -> None:
    translation = plan(tmp_path)
    _, data = read(page.render(translation))
    (drawn,) = data["plans"]
    tensors = {
        tensor["name"]: (part["device"], part["rule"], tensor["module"], tensor["bytes"])
        for part in drawn["parts"]
        for tensor in part["tensors"]
    }
    assert tensors == {
        name: (tensor.device, tensor.rule, tensor.module, tensor.n_bytes)
        for name, tensor in translation.placement.tensors.items()
    }
    assert {int(kv["column"]): kv["device"] for kv in drawn["kv"]} == translation.placement.kv
    assert {one["name"]: one["weight_bytes"] for one in drawn["devices"]} == translation.placement.bytes_by_device()
    assert data["columns"] == ["in", "0", "1", "2", "3", "out"]
    assert data["devices"] == ["cuda:0", "cuda:1", "cpu"]


def test_parts_stand_in_their_row_and_column_with_rule_and_reason(tmp_path: Path) -> None:
    _, data = read(page.render(plan(tmp_path)))
    found = [part for part in data["plans"][0]["parts"] if (part["row"], part["column"]) == ("routed-experts", "2")]
    assert found == [
        {
            "row": "routed-experts",
            "column": "2",
            "device": "cpu",
            "rule": 0,
            "other": None,
            "loaded": True,
            "prefill": "cuda:0",
            "why": "rule 0 says so",
            "llama": [r"CPU by the override ^blk\.[0-9]+\.ffn_(gate|up|down|gate_up)_exps\.weight$"],
            "tensors": [
                {
                    "name": f"blk.2.ffn_{part}_exps.weight",
                    "module": "model.layers.2.mlp.experts",
                    "type": "F32",
                    "bytes": MIB,
                }
                for part in ("gate", "up", "down")
            ],
        }
    ]
    assert data["plans"][0]["rules"][1] == {
        "index": 1,
        "line": 4,
        "match": r"^model\.layers\.2\.",
        "replace": "",
        "device": "cuda:1",
    }


def test_two_plans_mark_what_moves_from_both_sides(tmp_path: Path) -> None:
    before, after = plan(tmp_path), plan(tmp_path, *OTHER_RULES, name="other.yaml")
    _, data = read(page.render(before, after))
    moved = [
        {
            (part["device"], part["other"], tensor["name"])
            for part in drawn["parts"]
            if part["other"]
            for tensor in part["tensors"]
        }
        for drawn in data["plans"]
    ]
    expected = {
        (tensor.device, after.placement.tensors[name].device, name)
        for name, tensor in before.placement.tensors.items()
        if after.placement.tensors[name].device != tensor.device
    }
    assert len(expected) == 18
    assert moved == [expected, {(there, here, name) for here, there, name in expected}]
    assert [[(kv["column"], kv["other"]) for kv in drawn["kv"] if kv["other"]] for drawn in data["plans"]] == [
        [("2", "cuda:0")],
        [("2", "cuda:1")],
    ]


def test_two_models_cannot_share_a_page(tmp_path: Path) -> None:
    with pytest.raises(DifferentModelsError):
        page.render(plan(tmp_path), plan(tmp_path, model=deepseek(5)))


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    text = page.render(plan(tmp_path))
    reader, _ = read(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttpRequest|import\(", text.replace("// ---", ""))
    assert not [tag for tag, given in reader.elements if {"src", "href", "srcset", "action"} & given.keys()]
    policy = next(given["content"] for tag, given in reader.elements if "http-equiv" in given)
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_the_page_can_be_used_with_a_keyboard_and_a_screen_reader(tmp_path: Path) -> None:
    reader, _ = read(page.render(plan(tmp_path)))
    by_id = {given["id"]: (tag, given) for tag, given in reader.elements if given.get("id")}
    assert ("html", {"lang": "en"}) in reader.elements
    assert by_id["svg"][1]["role"] == "group"
    assert by_id["tokens"] == ("output", {"id": "tokens", "for": "context"})
    assert ("label", {"for": "context"}) in reader.elements
    assert by_id["context"][1]["type"] == "range"


def hostile_model() -> ModelFile:
    model = deepseek(extra=[f"blk.1.{HOSTILE}.weight"])
    return ModelFile(
        name=f"{HOSTILE}\x1b{{{{data}}}}",
        architecture=model.architecture,
        metadata=model.metadata,
        tensors=model.tensors,
    )


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile_rule = json.dumps({"match": {"name": f"zz{HOSTILE}\x07"}, "replace": {"class": "default"}})
    folder = tmp_path / "<b>'\"&{{title}}"
    folder.mkdir()
    plain, _ = read(page.render(plan(tmp_path)))
    reader, data = read(page.render(plan(folder, f"- {hostile_rule}\n", rule("", "cpu"), model=hostile_model())))
    assert [tag for tag, _ in reader.elements] == [tag for tag, _ in plain.elements]
    assert data["model"]["name"] == f"{HOSTILE}\\x1b{{{{data}}}}"
    assert data["plans"][0]["rules"][0]["match"] == f"zz{HOSTILE}\\x07"
    assert data["plans"][0]["rules_file"] == f"{folder}/rules.yaml"
    assert reader.texts["title"] == f"{HOSTILE}\\x1b{{{{data}}}} · ktllama"


def test_budgets_and_the_training_context_reach_the_page(tmp_path: Path) -> None:
    options = Options(budgets={"cuda:0": 99 * MIB})
    _, data = read(page.render(plan(tmp_path, options=options)))
    assert [one["budget_bytes"] for one in data["plans"][0]["devices"]] == [99 * MIB, None, None]
    assert data["context"] == {"shortest": 1024, "longest": 32768, "shown": 32768}
