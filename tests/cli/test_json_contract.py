"""The JSON document of a translation and its published schema agree."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from ktllama.cli.lint import command as lint
from ktllama.cli.translate import command as translate
from ktllama.devices import parse_device_map
from ktllama.document import translation_document
from ktllama.lower.settings import Target
from ktllama.ruleset import loader
from ktllama.translation import Options, analyse
from tests.models import deepseek, rule

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "translation.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)

EXPERTS_ON_CPU = rule(
    r"\.mlp\.experts$",
    cls="torch.nn.ModuleList",
    replace="ktransformers.operators.experts.KTransformersExperts",
    recursive=False,
    prefill_device="cuda:0",
)
GPU_FIRST = rule(r"^model\.layers\.[0-9]\.", "cuda:0") + rule(r"^model\.layers\.", "cpu")
ALL_ON_CPU = rule(".", "cpu")
TWO_GPUS = rule(r"^model\.layers\.1?[0-9]\.", "cuda:0") + rule(".", "cuda:1")


def document(text: str, preset: str, options: Options | None = None) -> dict[str, Any]:
    """The document as its readers get it."""
    translation = analyse(loader.loads(text, "rules.yaml"), preset=preset, options=options)
    read: dict[str, Any] = json.loads(json.dumps(translation_document(translation)))
    return read


def faults(instance: object) -> list[str]:
    return [f"{fault.json_path}: {fault.message}" for fault in VALIDATOR.iter_errors(instance)]


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("preset", ["deepseek-r1", "deepseek-v2-lite", "r1-distill-llama-8b"])
@pytest.mark.parametrize("target", ["python", "llama-server"])
@pytest.mark.parametrize("text", [EXPERTS_ON_CPU, GPU_FIRST, ALL_ON_CPU, TWO_GPUS])
def test_translations_fit_the_schema(text: str, preset: str, target: Target) -> None:
    found = document(text, preset, Options(target=target))
    assert found["settings"] is not None
    assert found["kv"]
    assert faults(found) == []


def test_a_chosen_device_and_a_budget_fit_the_schema() -> None:
    options = Options(device_map=parse_device_map(["cuda:0=RPC0[127.0.0.1:50052]"]), budgets={"cuda:1": 1 << 40})
    found = document(TWO_GPUS, "deepseek-v2-lite", options)
    assert found["settings"]["devices"] == ["RPC0[127.0.0.1:50052]", "CUDA1"]
    assert faults(found) == []


def test_a_file_with_an_mtp_block_fits_the_schema() -> None:
    translation = analyse(loader.loads(ALL_ON_CPU), deepseek(4, n_mtp=1))
    found = json.loads(json.dumps(translation_document(translation)))
    assert sorted(found["kv"]) == ["0", "1", "2"]
    assert faults(found) == []


def test_errors_leave_no_settings_and_fit_the_schema() -> None:
    found = document(rule(r"^model\.layers\.", "auto"), "deepseek-r1")
    assert found["settings"] is None
    assert found["tensors"]["blk.0.attn_norm.weight"]["device"] == "auto"
    assert [one["code"] for one in found["diagnostics"] if one["severity"] == "error"] == ["auto-device"]
    assert faults(found) == []


def test_rules_without_a_model_fit_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("")
    result = CliRunner().invoke(translate, [str(path), "--format", "json"], standalone_mode=False)
    found = json.loads(result.stdout)
    assert found["model"] is None
    assert faults(found) == []
    assert result.return_value == 1


def test_lint_prints_the_diagnostics_of_the_same_contract(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(rule(r"^model\.layers\.[0-29]\."))
    arguments = [str(path), "--preset", "deepseek-r1", "--format", "json"]
    found = json.loads(CliRunner().invoke(lint, arguments, standalone_mode=False).stdout)
    assert {one["code"] for one in found} >= {"number-range", "model-assumed"}
    listed = Draft202012Validator({**SCHEMA, "allOf": [], **SCHEMA["properties"]["diagnostics"]})
    assert list(listed.iter_errors(found)) == []


def _set(*path: str | int, to: object) -> Callable[[dict[str, Any]], None]:
    def mutate(found: dict[str, Any]) -> None:
        node: Any = found
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = to

    return mutate


def _drop(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def mutate(found: dict[str, Any]) -> None:
        node: Any = found
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]

    return mutate


@pytest.mark.parametrize(
    "mutate",
    [
        pytest.param(_set("extra", to=1), id="unknown member"),
        pytest.param(_drop("kv"), id="missing member"),
        pytest.param(_set("model", to=None), id="settings without a model"),
        pytest.param(_set("model", "n_layers", to=0), id="no layers"),
        pytest.param(_set("settings", to=None), id="no settings and no error"),
        pytest.param(_set("diagnostics", 0, "severity", to="error"), id="settings and an error"),
        pytest.param(_set("diagnostics", 0, "severity", to="info"), id="unknown severity"),
        pytest.param(_set("diagnostics", 0, "line", to=None), id="half a place"),
        pytest.param(_set("diagnostics", 0, "code", to="Model Assumed"), id="not a code"),
        pytest.param(_drop("diagnostics", 0, "column"), id="no column"),
        pytest.param(_set("settings", "n_cpu_moe", to=3), id="unknown setting"),
        pytest.param(_set("settings", "n_gpu_layers", to=-1), id="negative layers"),
        pytest.param(_set("settings", "n_gpu_layers", to="62"), id="layers as text"),
        pytest.param(_set("settings", "devices", 0, to="CUDA 0"), id="not a llama.cpp device"),
        pytest.param(_set("settings", "tensor_split", to=[]), id="empty split"),
        pytest.param(_set("settings", "tensor_split", to=[0.5]), id="a share, not layers"),
        pytest.param(_set("settings", "tensor_overrides", 0, "pattern", to="exps=CPU"), id="unanchored pattern"),
        pytest.param(_set("settings", "split_mode", to="row"), id="another split mode"),
        pytest.param(_set("settings", "load_mode", to="direct"), id="another load mode"),
        pytest.param(_set("tensors", "output.weight", "device", to="cuda"), id="device not canonical"),
        pytest.param(_set("tensors", "output.weight", "rule", to=-1), id="negative rule"),
        pytest.param(_set("tensors", "output.weight", "bytes", to=1.5), id="half a byte"),
        pytest.param(_set("tensors", "output.weight", "type", to="Q6_K"), id="unknown member of a tensor"),
        pytest.param(_set("kv", "layer 0", to="cpu"), id="not a layer number"),
        pytest.param(_set("kv", "0", to=0), id="device as a number"),
    ],
)
def test_a_changed_document_is_refused(mutate: Callable[[dict[str, Any]], None]) -> None:
    found = document(EXPERTS_ON_CPU + rule(".", "cuda:0"), "deepseek-v2-lite")
    assert faults(found) == []
    changed = copy.deepcopy(found)
    mutate(changed)
    assert faults(changed) != []
