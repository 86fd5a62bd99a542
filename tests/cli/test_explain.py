"""``ktllama explain`` as a user sees it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ktllama.model import sparse
from tests.cli.runner import ktllama
from tests.explaining.plans import OTHER_RULES, RULES, write
from tests.models import deepseek, rule

_OVERRIDE = r"^blk\.[0-9]+\.ffn_(gate|up|down|gate_up)_exps\.weight$"


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and two rule files, made the working folder."""
    monkeypatch.chdir(tmp_path)
    model = deepseek()
    named = {"general.architecture": "deepseek2", "general.name": "tiny", **model.metadata}
    sparse.write(dataclasses.replace(model, metadata=named), tmp_path / "tiny.gguf")
    write(tmp_path / "rules.yaml", *RULES)
    write(tmp_path / "other.yaml", *OTHER_RULES)
    return tmp_path


def explain(*words: str) -> tuple[int, str]:
    ran = ktllama("explain", "rules.yaml", "--model", "tiny.gguf", *words)
    return ran.status, ran.out


@pytest.mark.usefixtures("given")
def test_text_of_a_module_and_of_a_tensor() -> None:
    assert explain("model.layers.2.mlp.experts") == (
        0,
        "model.layers.2.mlp.experts  ModuleList of 4 experts\n"
        "  device     cpu: rule 0 says so\n"
        "  rule       0  rules.yaml:1  \\.mlp\\.experts$\n"
        "  also match 1  rules.yaml:4  ^model\\.layers\\.2\\.\n"
        "             2  rules.yaml:6  (every name)\n"
        f"  llama.cpp  CPU by the override {_OVERRIDE}\n"
        "  prefill    streamed to cuda:0 for long prompts\n"
        "  bytes      3 MiB\n"
        "  tensors    blk.2.ffn_down_exps.weight  F32  1 MiB\n"
        "             blk.2.ffn_gate_exps.weight  F32  1 MiB\n"
        "             blk.2.ffn_up_exps.weight  F32  1 MiB\n",
    )
    assert explain("blk.2.attn_k_b.weight") == (
        0,
        "blk.2.attn_k_b.weight  tensor\n"
        "  module     model.layers.2.self_attn.kv_b_proj\n"
        "  device     cuda:1: rule 1 says so\n"
        "  rule       1  rules.yaml:4  ^model\\.layers\\.2\\.\n"
        "  also match 2  rules.yaml:6  (every name)\n"
        "  llama.cpp  CUDA1, the device of layer 2\n"
        "  bytes      1 MiB\n"
        "  type       F32\n",
    )


@pytest.mark.usefixtures("given")
def test_text_of_attention_and_of_a_whole_layer() -> None:
    assert explain("model.layers.2.self_attn", "--ctx", "1024") == (
        0,
        "model.layers.2.self_attn  DeepseekV3Attention\n"
        "  device     cuda:1: rule 1 says so\n"
        "  rule       1  rules.yaml:4  ^model\\.layers\\.2\\.\n"
        "  also match 2  rules.yaml:6  (every name)\n"
        "  KV cache   192 KiB at 1k tokens in f16, on CUDA1, the device of layer 2\n"
        "  bytes      8 MiB\n",
    )
    status, out = explain("model.layers.2")
    assert (status, out.splitlines()[-1]) == (0, "  bytes      18 MiB: 15 MiB on cuda:1, 3 MiB on cpu")


@pytest.mark.usefixtures("given")
def test_summary_without_a_glob() -> None:
    status, out = explain()
    lines = [line.rstrip() for line in out.splitlines()]
    assert status == 0
    assert lines[0].endswith("  rules.yaml")
    assert lines[1:4] == [
        "",
        "Modules",
        "  module                                       layers  device   bytes  rule",
    ]
    assert "  model.layers.*.mlp.gate                      1, 3    cuda:0   4 MiB  2" in lines
    assert lines[-7:] == [
        "  KV cache at 32k                              2       cuda:1   6 MiB  1",
        "",
        "Devices",
        "  device  weights  KV at 32k   total",
        "  cuda:0   45 MiB     18 MiB  63 MiB",
        "  cuda:1   15 MiB      6 MiB  21 MiB",
        "  cpu      10 MiB          -  10 MiB",
    ]


@pytest.mark.usefixtures("given")
def test_difference_of_two_rule_files() -> None:
    status, out = explain("--diff", "other.yaml")
    lines = [line.rstrip() for line in out.splitlines()]
    assert status == 0
    assert lines[0].endswith("  rules.yaml → other.yaml")
    assert "  model.layers.*.mlp.gate                      2       cuda:1  → cuda:0  2 MiB" in lines
    assert lines[-8:] == [
        "  model.layers.*.mlp.experts                   3       cpu     → cuda:1  3 MiB",
        "  KV cache at 32k                              2       cuda:1  → cuda:0  6 MiB",
        "",
        "Devices",
        "  device  weights before   after  KV at 32k before   after",
        "  cuda:0          45 MiB  60 MiB            18 MiB  24 MiB",
        "  cuda:1          15 MiB   3 MiB             6 MiB       -",
        "  cpu             10 MiB   7 MiB                 -       -",
    ]
    assert explain("--diff", "rules.yaml")[1].endswith("\n\nNothing moves.\n")


@pytest.mark.usefixtures("given")
def test_json_of_all_three() -> None:
    one, summary, moves = (json.loads(explain(*words, "--format", "json")[1]) for words in (["lm_head"], [], _DIFF))
    assert one["explanations"][0]["tensors"][0]["llama"] == {
        "means": "output-layer",
        "device": "CUDA0",
        "layer": 4,
        "pattern": None,
    }
    assert summary["kinds"][-1]["layers"] == [2]
    assert [side["rules_file"] for side in (moves["before"], moves["after"])] == ["rules.yaml", "other.yaml"]


_DIFF = ["--diff", "other.yaml"]


@pytest.mark.usefixtures("given")
def test_no_match_is_an_error_with_a_hint() -> None:
    ran = ktllama("explain", "rules.yaml", "--model", "tiny.gguf", "model.layers.2.mlp.expert")
    assert (ran.status, ran.out) == (2, "")
    assert "did you mean 'model.layers.2.mlp.experts' or " in ran.err


def test_a_page_is_written_once_and_again_only_by_force(given: Path) -> None:
    assert explain("--html", "plan.html") == (0, "")
    first = (given / "plan.html").read_text()
    assert first.startswith("<!doctype html>")
    ran = ktllama("explain", "rules.yaml", "--model", "tiny.gguf", "--html", "plan.html", *_DIFF)
    assert (ran.status, ran.err) == (2, "ktllama: plan.html: already exists; --force overwrites it\n")
    assert (given / "plan.html").read_text() == first
    assert explain("--html", "plan.html", "--force", *_DIFF) == (0, "")
    assert (given / "plan.html").read_text() != first


@pytest.mark.parametrize("name", ["rules.yaml", "other.yaml", "tiny.gguf"])
def test_a_page_never_overwrites_what_it_explains(given: Path, name: str) -> None:
    before = (given / name).read_bytes()
    ran = ktllama("explain", "rules.yaml", "--model", "tiny.gguf", *_DIFF, "--html", name, "--force")
    assert (ran.status, ran.err) == (2, f"ktllama: {name}: is one of the files to read; give another name\n")
    assert (given / name).read_bytes() == before


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["lm_head", "--diff", "other.yaml"], "--diff shows the whole model; leave out GLOB."),
        (["lm_head", "--html", "plan.html"], "--html shows the whole model; leave out GLOB."),
        (["--html", "plan.html", "--format", "json"], "--html and --format exclude each other."),
        (["--force"], "--force is for --html."),
        (["--preset", "deepseek-r1"], "--model and --preset exclude each other."),
    ],
)
def test_options_that_do_not_go_together(words: list[str], reason: str) -> None:
    ran = ktllama("explain", "rules.yaml", "--model", "tiny.gguf", *words)
    assert (ran.status, ran.out) == (2, "")
    assert f"Error: {reason}\n" in ran.err


def test_rules_with_errors_are_explained_as_far_as_they_go(given: Path) -> None:
    write(given / "bad.yaml", rule("lm_head", "cuda:0"), "- match: {name: '('}\n  replace: {class: default}\n")
    ran = ktllama("explain", "bad.yaml", "--model", "tiny.gguf", "lm_head")
    assert ran.status == 1
    assert ran.out.startswith("lm_head  Linear\n  device     cuda:0: rule 0 says so\n")
    assert "bad.yaml:3:" in ran.err


def test_control_characters_in_rules_do_not_reach_the_terminal(given: Path) -> None:
    write(given / "odd.yaml", '- match: {name: "lm_head|\\e[31m]"}\n  replace: {class: default}\n')
    ran = ktllama("explain", "odd.yaml", "--model", "tiny.gguf", "lm_head")
    assert "\x1b" not in ran.out + ran.err
    assert "odd.yaml:1  lm_head|\\x1b[31m]\n" in ran.out
