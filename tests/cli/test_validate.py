"""``ktllama validate`` as a user sees it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.cli.runner import ktllama
from tests.models import rule
from tests.runtime.tiny_models import TinyDeepSeek
from tests.validating.models import UniformDeepSeek, UniformLlama, with_tensor_scaled

pytest.importorskip("torch", reason="the reference needs torch")

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "validation.schema.json").read_text(encoding="utf-8"))
QUICK = ("--tokens", "24", "--ctx", "256", "--threads", "1")
EXACT = ("--kv-type", "f32", "--flash-attn", "off")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("validate")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return UniformDeepSeek(n_layers=3).write(folder / "model.gguf")


def test_a_sound_model_passes_and_says_what_was_compared(model: Path) -> None:
    ran = ktllama("validate", "-m", str(model), *QUICK, *EXACT)
    assert (ran.status, ran.err) == (0, "")
    lines = [line.rstrip() for line in ran.out.splitlines()]
    assert lines[0] == (
        "model  deepseek2, 3 layers, 24 tokens, weights F32, reference in float32, activations rounded as llama.cpp "
        "rounds them, KV cache f32, flash attention off, rules none (all on the CPU)"
    )
    assert lines[2] == "Layers"
    assert lines[3].split() == [
        "layer", "devices", "typical", "error", "worst", "at", "position", "its", "own", "part", "flipped",
    ]  # fmt: skip
    assert [line.split()[:2] for line in lines[4:8]] == [["0", "cpu"], ["1", "cpu"], ["2", "cpu"], ["output", "cpu"]]
    assert "  sums are taken in another order: about 1e-06" in lines
    assert lines[-1].startswith("  mean KL divergence ")
    assert lines[-1].endswith(", within the limit of 0.001")


def test_a_wrong_layer_on_a_device_fails_by_name_in_every_form(model: Path, folder: Path) -> None:
    wrong = with_tensor_scaled(model, folder / "wrong.gguf", "blk.2.ffn_down_exps.weight", 3.0)
    rules = folder / "rules.yaml"
    rules.write_text(rule(r"^model\.layers\.2\.", "cuda:1") + rule("", "cuda:0"), encoding="utf-8")
    document, page = folder / "report.json", folder / "report.html"
    ran = ktllama(
        "validate", "-m", str(wrong), "--against", str(model), "--rules", str(rules), "--stand-ins", *QUICK,
        "--json", str(document), "--html", str(page),
    )  # fmt: skip
    assert ran.status == 1
    assert "  layer 2 on cuda:1 goes wrong first: given the same input, it is off by " in ran.out
    assert f"wrote {document}\nwrote {page}\n" in ran.err
    found = json.loads(document.read_text(encoding="utf-8"))
    assert [fault.message for fault in Draft202012Validator(SCHEMA).iter_errors(found)] == []
    assert found["ok"] is False
    assert (found["suspect"]["layer"], found["suspect"]["devices"]) == (2, ["cuda:1"])
    assert [layer["devices"] for layer in found["layers"]] == [["cuda:0"], ["cuda:0"], ["cuda:1"]]
    assert "layer 2 goes wrong first" in page.read_text(encoding="utf-8")


def test_json_on_standard_output_is_alone_there(model: Path) -> None:
    ran = ktllama("validate", "-m", str(model), *QUICK, *EXACT, "--prompt", "hello there", "--json")
    assert ran.status == 0
    assert json.loads(ran.out)["n_tokens"] == 12


def test_the_limit_may_be_chosen(model: Path) -> None:
    ran = ktllama("validate", "-m", str(model), *QUICK, "--max-kl", "0")
    assert ran.status == 1
    assert ran.out.rstrip().endswith("PAST the limit of 0")


def test_without_a_model_it_is_the_embedded_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ktllama import assets

    monkeypatch.setattr(assets, "tiny_r1", lambda: model)
    ran = ktllama("validate", *QUICK, *EXACT)
    assert ran.status == 0
    assert ran.err == f"no --model given: this is the embedded tiny-R1, {model}\n"


def test_the_layers_may_be_spread_without_rules(model: Path) -> None:
    ran = ktllama("validate", "-m", str(model), *QUICK, *EXACT, "--devices", "cuda,cpu", "--stand-ins")
    assert ran.status == 0
    assert [line.split()[1] for line in ran.out.splitlines()[4:8]] == ["cuda:0", "cuda:0", "cpu", "cpu"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt", "  "), "ktllama: --prompt: there is no text in it\n"),
        (("--text", "nowhere.txt"), "ktllama: nowhere.txt: cannot be read: No such file or directory\n"),
        (
            ("--prompt", "x" * 300, "--ctx", "256"),
            "ktllama: the text has 301 tokens and the context holds 256: shorten it or enlarge the context\n",
        ),
        (
            ("--devices", "cuda:0,gpu"),
            "ktllama: --devices 'cuda:0,gpu': 'gpu' is no device; expected cpu, cuda:N, xpu:N or npu:N\n",
        ),
        (("--devices", "cpu,cpu,cpu,cpu"), "ktllama: --devices 'cpu,cpu,cpu,cpu': 4 devices for 3 layers\n"),
        (("--against", "nowhere.gguf"), "ktllama: nowhere.gguf: "),
    ],
)
def test_bad_input_is_one_line(model: Path, words: tuple[str, ...], message: str) -> None:
    ran = ktllama("validate", "-m", str(model), *words)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(message)
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rules", "r.yaml", "--devices", "cpu"), "--rules and --devices exclude each other."),
        (("--prompt", "a", "--text", "b"), "--prompt and --text exclude each other."),
        (("--force",), "--force is for --json FILE and --html FILE."),
        (("--json", "a", "--html", "a"), "--json and --html name the same file."),
        (("--json", "a", "--html", "./a"), "--json and --html name the same file."),
        (("--against", "hf:some/where"), "the model must be a file on this machine."),
    ],
)
def test_bad_usage_is_said(model: Path, words: tuple[str, ...], message: str) -> None:
    ran = ktllama("validate", "-m", str(model), *words)
    assert ran.status == 2
    assert ran.err.rstrip().endswith(message)


def test_a_file_that_is_there_is_not_overwritten(model: Path, folder: Path) -> None:
    page = folder / "there.html"
    page.write_text("mine", encoding="utf-8")
    ran = ktllama("validate", "-m", str(model), *QUICK, "--html", str(page))
    assert (ran.status, ran.err) == (2, f"ktllama: {page}: already exists; --force overwrites it\n")
    assert page.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("option", ["--html", "--json"])
@pytest.mark.parametrize("name", ["m.gguf", "reference.gguf", "text.txt", "rules.yaml"])
def test_what_is_read_is_never_overwritten(option: str, name: str, model: Path, tmp_path: Path) -> None:
    for copy in ("m.gguf", "reference.gguf"):
        shutil.copyfile(model, tmp_path / copy)
    (tmp_path / "text.txt").write_text("some words", encoding="utf-8")
    (tmp_path / "rules.yaml").write_text(rule("", "cpu"), encoding="utf-8")
    before = (tmp_path / name).read_bytes()
    output = tmp_path / "link"
    output.symlink_to(tmp_path / name)
    ran = ktllama(
        "validate", "-m", str(tmp_path / "m.gguf"), "--against", str(tmp_path / "reference.gguf"),
        "--text", str(tmp_path / "text.txt"), "--rules", str(tmp_path / "rules.yaml"), *QUICK,
        option, str(output), "--force",
    )  # fmt: skip
    assert (ran.status, ran.err) == (2, f"ktllama: {output}: is one of the files to read; give another name\n")
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_what_cannot_be_written_is_said_before_anything_is_computed(
    option: str, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_arguments: object) -> None:
        raise AssertionError("it was computed first")

    monkeypatch.setattr("ktllama.cli.validate.validate", computed)
    nowhere, directory = folder / "no" / "page.html", folder / "folder"
    directory.mkdir(exist_ok=True)
    ran = ktllama("validate", "-m", str(model), option, str(nowhere))
    assert (ran.status, ran.err) == (2, f"ktllama: {nowhere}: cannot be written: there is no such folder\n")
    ran = ktllama("validate", "-m", str(model), option, str(directory), "--force")
    assert (ran.status, ran.err) == (2, f"ktllama: {directory}: cannot be written: it is a folder\n")
    below = model / "page.html"
    ran = ktllama("validate", "-m", str(model), option, str(below))
    assert (ran.status, ran.err) == (2, f"ktllama: {below}: cannot be written: there is no such folder\n")


def test_no_more_is_read_than_the_context_that_was_asked_for(model: Path) -> None:
    ran = ktllama("validate", "-m", str(model), "--ctx", "16", "--threads", "1", "--json")
    assert json.loads(ran.out)["n_tokens"] == 16
    ran = ktllama("validate", "-m", str(model), "--ctx", "16", "--prompt", "x" * 16)
    assert (ran.status, ran.err) == (
        2, "ktllama: the text has 17 tokens and the context holds 16: shorten it or enlarge the context\n",
    )  # fmt: skip


def test_activations_may_be_left_exact(model: Path) -> None:
    ran = ktllama("validate", "-m", str(model), *QUICK, "--activations", "exact", "--json")
    assert json.loads(ran.out)["comparison"]["activations"] == "exact"
    ran = ktllama("validate", "-m", str(model), *QUICK, "--json")
    assert json.loads(ran.out)["comparison"]["activations"] == "llama.cpp"


def test_weights_that_no_token_needs_are_looked_at_too(folder: Path) -> None:
    import gguf
    import numpy as np

    path = TinyDeepSeek(n_layers=2, expert_type="F32").write(folder / "unused.gguf")
    reader = gguf.GGUFReader(path, "r+")
    embedding = next(tensor.data for tensor in reader.tensors if tensor.name == "token_embd.weight")
    embedding[ord("~")] = np.nan  # a byte that the prompt has not
    reader.data.flush()
    ran = ktllama("validate", "-m", str(path), *QUICK, "--prompt", "hello")
    assert (ran.status, ran.err) == (
        2, f"ktllama: {path}: tensor 'token_embd.weight' holds values that are no numbers (NaN or infinity)\n",
    )  # fmt: skip


def test_text_must_be_text(model: Path, folder: Path) -> None:
    latin = folder / "latin.txt"
    latin.write_bytes("naïve".encode("latin-1"))
    ran = ktllama("validate", "-m", str(model), "--text", str(latin))
    assert (ran.status, ran.err) == (2, f"ktllama: {latin}: is not UTF-8 (at byte 2)\n")


def test_models_that_cannot_be_compared_are_refused(model: Path, folder: Path) -> None:
    broken = folder / "broken.gguf"
    broken.write_bytes(b"no model")
    ran = ktllama("validate", "-m", str(broken))
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    other = UniformLlama().write(folder / "other.gguf")
    ran = ktllama("validate", "-m", str(model), "--against", str(other))
    assert (ran.status, ran.err) == (
        2, f"ktllama: {other}: its architecture is llama, but the model has deepseek2: not the same model\n",
    )  # fmt: skip


def test_without_torch_it_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    ran = ktllama("validate", "-m", str(model))
    assert (ran.status, ran.out) == (2, "")
    assert "pip install 'ktllama[reference]'" in ran.err
    assert ran.err.count("\n") == 1


def test_weights_that_are_no_numbers_are_named(folder: Path) -> None:
    import gguf
    import numpy as np

    path = TinyDeepSeek(n_layers=2, expert_type="F32").write(folder / "nan.gguf")
    reader = gguf.GGUFReader(path, "r+")
    next(tensor.data for tensor in reader.tensors if tensor.name == "blk.1.attn_norm.weight")[3] = np.nan
    reader.data.flush()
    ran = ktllama("validate", "-m", str(path), *QUICK)
    assert ran.status == 2
    assert "blk.1.attn_norm.weight" in ran.err
    assert ran.err.count("\n") == 1


def test_without_an_embedded_model_it_asks_for_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ktllama import assets

    monkeypatch.setattr(assets, "tiny_r1", lambda: folder / "none.gguf")
    for words in (("validate",), ("run", "-p", "hello"), ("verify", "tiny-r1/cpu")):
        ran = ktllama(*words)
        assert (ran.status, ran.out, ran.err) == (
            2, "", "ktllama: --model: none is given, and this installation embeds none: name a GGUF file\n",
        )  # fmt: skip


def test_commands_take_the_embedded_model_for_its_own_rules(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ktllama import assets

    monkeypatch.setattr(assets, "tiny_r1", lambda: model)
    said = f"no --model given: this is the embedded tiny-R1, {model}\n"
    verified = ktllama("verify", "tiny-r1/cpu")
    assert verified.status == 0
    assert verified.err.startswith(said)
    other = ktllama("translate", "deepseek-v2-lite/cpu")
    assert said not in other.err
    chosen = ktllama("run", "-m", str(model), "-p", "hello")
    assert chosen.status == 2
    assert "Missing argument 'RULES'" in chosen.err
