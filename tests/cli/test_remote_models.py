"""Models that are not on disk, from the command line: addresses, repositories, and a config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktllama.model import presets, sparse
from tests.cli.runner import ktllama
from tests.model.http_files import Site, serving
from tests.model.test_hf_config import LLAMA_8B

PRESET = "deepseek-v2-lite"
RULES = """\
- match: {name: "^model\\\\.layers\\\\.\\\\d+\\\\.mlp\\\\.experts$"}
  replace: {class: default, kwargs: {generate_device: cpu, prefill_device: cpu}}
"""


@pytest.fixture
def rules(tmp_path: Path) -> str:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return str(path)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A hub with the header of a model, without its tensor data."""
    model = presets.load(PRESET)
    sparse.write(model, tmp_path / "model.gguf")
    with (tmp_path / "model.gguf").open("rb") as file:
        header = file.read(200_000)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as served:
        served.files["/o/r/resolve/main/m.gguf"] = header
        served.files["/o/llama/resolve/main/config.json"] = json.dumps(LLAMA_8B).encode()
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_TOKEN", " t0ken\n")
        yield served


def test_translate(site: Site, rules: str, tmp_path: Path) -> None:
    local = ktllama("translate", rules, "--model", str(tmp_path / "model.gguf"), "--format", "json")
    remote = ktllama("translate", rules, "--model", "hf:o/r:m.gguf", "--format", "json")
    assert (remote.status, remote.out, remote.err) == (0, local.out, "")
    assert site.asked[0][1]["Authorization"] == "Bearer t0ken"


def test_a_command_line_names_the_file_not_its_address(site: Site, rules: str) -> None:
    ran = ktllama(
        "translate", rules, "--model", f"{site.url}/o/r/resolve/main/m.gguf?download=true", "--format", "argv"
    )
    assert ran.status == 0
    assert "--model m.gguf" in ran.out
    assert "http" not in ran.out


def test_lint(site: Site, rules: str) -> None:
    ran = ktllama("lint", rules, "--model", "hf:o/r:m.gguf", "--format", "json")
    assert ran.status == 0
    assert "model-assumed" not in ran.out


def test_verify(site: Site, rules: str) -> None:
    ran = ktllama("verify", rules, "--model", "hf:o/r:m.gguf", "--format", "json")
    document = json.loads(ran.out)
    assert (ran.status, document["ok"], document["tensors"]["checked"]) == (0, True, len(presets.load(PRESET).tensors))


def test_verify_with_a_config(site: Site, rules: str) -> None:
    ran = ktllama("verify", rules, "--config", "hf:o/llama", "--quant", "Q8_0", "--format", "json")
    assert (ran.status, json.loads(ran.out)["ok"]) == (0, True)


def test_run_wants_a_file(rules: str) -> None:
    ran = ktllama("run", rules, "--model", "hf:o/r:m.gguf", "--prompt", "x")
    assert ran.status == 2
    assert "run loads the weights, so the model must be a file on this machine: download it first." in ran.err


def test_a_config_is_an_assumption(site: Site, rules: str) -> None:
    ran = ktllama("lint", rules, "--config", "hf:o/llama")
    assert (
        "note: sizes are those of hf:o/llama in Q4_K_M; --model FILE.gguf takes them from a file, "
        "--quant NAME assumes another quantization [model-assumed]"
    ) in ran.out
    assert ran.status == 0


def test_a_server_that_refuses(site: Site, rules: str) -> None:
    site.answers["/o/r/resolve/main/m.gguf"] = lambda handler: handler.answer(403)
    ran = ktllama("translate", rules, "--model", "hf:o/r:m.gguf")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        f"ktllama: {site.url}/o/r/resolve/main/m.gguf: the server answers HTTP 403 Forbidden; the repository is "
        "private or gated, or does not exist: set HF_TOKEN to a token that may read it\n"
    )


@pytest.mark.parametrize("command", ["translate", "lint", "verify"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--model", "x", "--preset", "y"), "--model and --preset exclude each other."),
        (("--model", "x", "--preset", "y", "--config", "z"), "--model and --preset and --config exclude each other."),
        (
            ("--preset", "y", "--quant", "F16"),
            "--quant is for --config; a file and a preset have their own quantization.",
        ),
    ],
)
def test_choices_that_exclude_each_other(rules: str, command: str, words: tuple[str, ...], expected: str) -> None:
    ran = ktllama(command, rules, *words)
    assert ran.status == 2
    assert expected in ran.err


def test_a_token_that_is_none(rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a\nb")
    ran = ktllama("lint", rules, "--model", "hf:o/r")
    assert ran.status == 2
    assert "HF_TOKEN holds characters that are in no token." in ran.err
