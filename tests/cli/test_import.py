"""``ktllama import`` as a user sees it."""

from __future__ import annotations

from pathlib import Path

from ktllama.model import presets, sparse
from tests.cli.runner import ktllama

R1 = ("--preset", "deepseek-r1")


def test_words_and_one_string_give_the_same_rules() -> None:
    words = ktllama("import", *R1, "--", "llama-server", "-ngl", "99", "-ot", "exps=CPU")
    string = ktllama("import", *R1, "llama-server -ngl 99 -ot exps=CPU")
    assert (words.status, words.err) == (0, "")
    assert words.out == string.out
    assert words.out.startswith("# Placement rules for DeepSeek R1 Q4_K_M, imported from a llama.cpp command line.\n")


def test_the_commands_own_model_is_read(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    sparse.write(presets.load("deepseek-v2-lite"), model)
    rules = tmp_path / "rules.yaml"
    ran = ktllama("import", "-o", str(rules), "--", "llama-server", "-m", str(model), "-ngl", "99", "-cmoe")
    assert (ran.status, ran.out, ran.err) == (0, "", f"wrote {rules}\n")
    assert ktllama("lint", str(rules), "--model", str(model), "--strict").status == 0


def test_a_file_is_not_overwritten_unless_forced(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("mine")
    command = ("import", *R1, "-o", str(rules))
    ran = ktllama(*command, "llama-server -ngl 99")
    assert ran.status == 2
    assert ran.err == f"ktllama: {rules}: already exists; --force overwrites it\n"
    assert rules.read_text() == "mine"
    assert ktllama(*command, "--force", "llama-server -ngl 99").status == 0
    assert rules.read_text().startswith("# Placement rules")


def test_the_model_that_is_read_is_never_overwritten(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    sparse.write(presets.load("deepseek-v2-lite"), model)
    before = model.stat()
    message = f"ktllama: {model}: is one of the files to read; give another name\n"
    for words in (("-m", str(model), "--", "llama-server"), ("--", "llama-server", "-m", str(model))):
        ran = ktllama("import", "-o", str(model), "--force", *words, "-ngl", "99")
        assert (ran.status, ran.err) == (2, message)
    assert (model.stat().st_size, model.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_a_model_is_needed() -> None:
    for said, why in (("", "the command names none"), (" -m no.gguf", "the command's no.gguf does not exist here")):
        ran = ktllama("import", f"llama-server -ngl 99{said}")
        assert ran.status == 2
        assert ran.err.endswith(f"Error: which model? {why}; give --model FILE.gguf or --preset NAME.\n")


def test_findings_go_to_standard_error_and_strict_writes_nothing() -> None:
    plain = ktllama("import", *R1, "llama-server")
    strict = ktllama("import", *R1, "--strict", "llama-server")
    assert (plain.status, strict.status) == (0, 1)
    assert "[import-auto-layers]" in plain.err
    assert strict.out == ""


def test_a_command_that_llama_cpp_would_refuse() -> None:
    ran = ktllama("import", *R1, "llama-server -ngl 99 -ot exps=cpu")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "ktllama: -ot: 'exps=cpu': 'cpu' is no buffer type; did you mean CPU?\n"
