"""Hostile and unlucky input through the command line: a message and a status, never a traceback or an escape."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ktllama.lower.settings import LlamaSettings
from tests.cli.runner import Ran, ktllama
from tests.model import gguf_bytes as raw
from tests.models import rule

ALL_ON_CPU = rule("", "cpu")
PRESET = ("--preset", "deepseek-v2-lite")

#: What must not reach a terminal, a log of GitHub Actions or rich's markup as itself.
EVIL = {
    "title": "\x1b]0;pwned\x07",
    "colour": "\x1b[31m",
    "c1": "\x9b31m",
    "bidi": "\u202e",
    "isolate": "\u2066\u200b",
    "separator": "\u2028",
    "control": "\x01\x7f",
    "command": "\n::error file=x::pwned",
    "return": "\r::error::pwned",
    "first": "::error file=x::pwned",
    "markup": "[bold]x[/bold][link=http://e]y[/link]",
    "close": "[/]",
    "emoji": ":bomb:",
}


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(ALL_ON_CPU)
    return path


def safe(ran: Ran) -> Ran:
    """``ran``, whose output moves no cursor and begins no line that another program obeys."""
    for text in (ran.out, ran.err):
        odd = {char for char in text if not char.isprintable()} - {"\n"}
        assert not odd, (odd, text)
        assert not any("Traceback" in line or line.lstrip().startswith("::error file=x:") for line in text.split("\n"))
    return ran


def every_command(rules: Path, *model: str) -> list[Ran]:
    ways = [("translate", form) for form in ("text", "json", "argv", "python", "ini")]
    ways += [("lint", form) for form in ("text", "json", "github")]
    ran = [safe(ktllama(command, str(rules), *(model or PRESET), "--format", form)) for command, form in ways]
    for line in ran[-1].out.splitlines():
        assert line.startswith(("::error ", "::warning ", "::notice "))
    return ran


def yaml_of(where: str, evil: str) -> str:
    text = json.dumps(evil)
    filled = {
        "name": f"- match: {{name: {json.dumps('l|' + evil)}}}\n  replace: {{class: default}}\n",
        "class": f"- match: {{class: {json.dumps('a.b' + evil)}}}\n  replace: {{class: default}}\n",
        "device": f"- match: {{name: l}}\n  replace: {{class: default, kwargs: {{generate_device: {text}}}}}\n",
        "argument": f"- match: {{name: l}}\n  replace: {{class: {text}, kwargs: {{{text}: cpu}}}}\n",
        "operator": f"- match: {{name: l}}\n  replace: {{class: default, kwargs: {{prefill_op: {text}}}}}\n",
        "map": f"- match: {{name: l}}\n  replace: {{class: default, kwargs: {{transfer_map: {{{text}: {text}}}}}}}\n",
        "key": f"- match: {{name: l}}\n  replace: {{class: default}}\n  {text}: {text}\n  recursive: {text}\n",
        "twice": f"- {{{text}: 1, {text}: 2}}\n",
        "top": f"{text}: [1]\n",
        "tag": f"- !<{evil}> x\n",
        "alias": f"- *a{evil}\n",
        "bare": f"- match: {evil}\n",
    }
    return filled[where]


WHERE = "name class device argument operator map key twice top tag alias bare".split()  # noqa: SIM905


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
def test_what_a_rule_says_is_printed_harmlessly(where: str, evil: str, rules: Path) -> None:
    rules.write_bytes(yaml_of(where, evil).encode())
    every_command(rules)


def test_brackets_and_colons_of_a_pattern_are_shown_as_they_are(rules: Path) -> None:
    rules.write_text(rule("l|[bold]x|:bomb:", "cpu"))
    shown = ktllama("translate", str(rules), *PRESET).out.splitlines()
    assert [line for line in shown if "bold" in line and line.startswith("     0")]
    assert "l|[bold]x|:bomb:" in "\n".join(shown)


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
def test_names_of_files_are_printed_harmlessly(evil: str, tmp_path: Path) -> None:
    name = evil.replace("/", "_")
    rules, model = tmp_path / f"{name}.yaml", tmp_path / f"{name}.gguf"
    rules.write_text(ALL_ON_CPU)
    model.write_bytes(raw.complete(raw.header()))
    every_command(rules, "--model", str(model))
    for words in (
        ["lint", str(tmp_path / f"{name}.gone")],
        ["lint", str(rules), "--model", str(tmp_path / f"{name}.gone")],
        ["verify", str(rules), "--model", str(tmp_path / f"{name}.gone")],
    ):
        ran = safe(ktllama(*words))
        assert ran.status == 2
        assert ran.err.count("\n") == 1


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
def test_words_of_the_command_line_are_printed_harmlessly(evil: str, rules: Path) -> None:
    for words in (
        [evil],
        ["translate", str(rules), evil],
        ["translate", str(rules), f"--{evil}"],
        *(["translate", str(rules), option, evil] for option in ("--preset", "--target", "--format")),
        *(["translate", str(rules), *PRESET, option, evil] for option in ("--default-device", "--budget")),
        ["translate", str(rules), *PRESET, "--device-map", evil],
        ["translate", str(rules), *PRESET, "--device-map", f"{evil}=CUDA0"],
        ["translate", str(rules), *PRESET, "--device-map", f"cuda:0=X{evil}"],
        ["translate", str(rules), *PRESET, "--budget", f"cuda:0={evil}"],
    ):
        assert safe(ktllama(*words)).status == (0 if evil == "[/]" and words[-1] == "cuda:0=X[/]" else 2)


def test_a_device_that_looks_like_markup_is_shown_as_it_is(rules: Path) -> None:
    rules.write_text(rule("", "cuda:0"))
    for device in ("RPC0[/]", "RPC0[bold]"):
        ran = safe(ktllama("translate", str(rules), *PRESET, "--device-map", f"cuda:0={device}"))
        assert f"  cuda:0  {device} " in ran.out


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
def test_what_a_model_says_is_printed_harmlessly(evil: str, rules: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    tensors = (raw.tensor("token_embd.weight"),)
    for keys, held in (
        ((*raw.LLAMA, raw.text("general.name", evil)), tensors),
        ((raw.text("general.architecture", evil), raw.u32(f"{evil}.block_count", 1)), tensors),
        ((*raw.LLAMA, raw.text(f"k{evil}", "x"), raw.text(f"k{evil}", "x")), tensors),
        (raw.LLAMA, (raw.tensor(f"x{evil}"),)),
        (raw.LLAMA, (raw.tensor(f"blk.0.{evil}"), raw.tensor(f"blk.1.{evil}.weight", offset=128))),
    ):
        model.write_bytes(raw.complete(raw.header(keys, held), data_bytes=256))
        every_command(rules, "--model", str(model))


def test_a_pattern_that_runs_away_is_shown_harmlessly(rules: Path) -> None:
    rules.write_text('- match: {name: "(([a-z.]+)+)+\\e[31m!"}\n  replace: {class: default}\n')
    ran = safe(ktllama("lint", str(rules), *PRESET))
    assert ran.status == 1
    assert "    (([a-z.]+)+)+\\x1b[31m!\n" in ran.out


# Forms to paste


PATHS = [
    "it's; rm -rf $HOME `id`.gguf",
    "\x1b[31m.gguf",
    "a\nb.gguf",
    'q"""\\.gguf',
    "\udcff\u202eé'\\.gguf",
    "-x.gguf",
    "#.gguf",
]


@pytest.mark.parametrize("name", PATHS)
def test_a_shell_reads_the_path_back(name: str, rules: Path, tmp_path: Path) -> None:
    model = tmp_path / name
    model.write_bytes(raw.complete(raw.header()))
    printed = safe(ktllama("translate", str(rules), "--model", str(model), "--format", "argv")).out
    shell = subprocess.run(["bash", "-c", f"printf '%s\\0' {printed}"], capture_output=True, check=True)
    assert [os.fsdecode(word) for word in shell.stdout.split(b"\0")[:3]] == ["llama-server", "--model", str(model)]


@pytest.mark.parametrize("name", PATHS)
def test_python_reads_the_path_back(name: str, rules: Path, tmp_path: Path) -> None:
    model = tmp_path / name
    model.write_bytes(raw.complete(raw.header()))
    code = safe(ktllama("translate", str(rules), "--model", str(model), "--format", "python")).out
    made: dict[str, object] = {}
    exec(code.partition("with ktllama.applied")[0].replace("import llama_cpp", ""), made)
    assert isinstance(made["settings"], LlamaSettings)
    assert made["model_path"] == str(model)


@pytest.mark.parametrize("name", ["a;b", "a#b", "a\nn-gpu-layers = 0", "\x1b[31m", "\udcff", "end "])
def test_an_ini_file_refuses_a_path_that_it_cannot_hold(name: str, rules: Path, tmp_path: Path) -> None:
    model = tmp_path / name
    model.write_bytes(raw.complete(raw.header()))
    ran = safe(ktllama("translate", str(rules), "--model", str(model), "--format", "ini"))
    assert (ran.status, ran.out) == (2, "")
    assert "a llama-server preset file cannot hold a path with" in ran.err


def test_a_model_name_cannot_end_its_section_of_an_ini_file(rules: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(raw.complete(raw.header((*raw.LLAMA, raw.text("general.name", "x] y = 1 ;")))))
    ran = ktllama("translate", str(rules), "--model", str(model), "--format", "ini")
    assert ran.out.splitlines()[2:4] == ["[x--y---1--]", f"model = {model}"]


def test_commas_and_equals_in_tensor_names_cannot_add_an_override(rules: Path, tmp_path: Path) -> None:
    rules.write_text(rule("lm_head", "cuda:0") + ALL_ON_CPU)
    model = tmp_path / "model.gguf"
    names = ["token_embd.weight", "output.weight", "blk.0.attn_norm.weight", "a,.*=CPU", "blk.0.x,.*=CUDA9,y"]
    tensors = tuple(raw.tensor(name, offset=128 * number) for number, name in enumerate(names))
    model.write_bytes(raw.complete(raw.header(raw.LLAMA, tensors), data_bytes=1000))
    words = ["translate", str(rules), "--model", str(model), "--default-device", "cuda:1", "--format", "argv"]
    command = shlex.split(ktllama(*words).out)
    assert command[command.index("--override-tensor") + 1].split(",") == [r"^a\x2c\.\*\x3dCPU$=CUDA1"]


# Files that are something else


def test_rules_and_model_the_wrong_way_round(rules: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(raw.complete(raw.header()))
    swapped = ktllama("translate", str(model), "--model", str(rules))
    expected = f"ktllama: {model}: a GGUF model, not a rule file; the rules come first, the model after --model\n"
    assert (swapped.status, swapped.err) == (2, expected)
    two_rule_files = ktllama("lint", str(rules), "--model", str(rules))
    begins = rules.read_bytes()[:4]
    assert two_rule_files.err.startswith(f"ktllama: {rules}: is not a GGUF file: it begins with {begins!r}")


def test_directories_loops_and_devices(rules: Path, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for words, reason in (
        (["lint", str(tmp_path)], f"{tmp_path}: a directory, not a rule file"),
        (["lint", str(loop)], f"{loop}: Too many levels of symbolic links"),
        (["lint", "/dev/zero"], "/dev/zero: larger than 10 MB, which no rule file is"),
        (["lint", str(rules), "-m", str(tmp_path)], f"{tmp_path}: is a directory; expected a GGUF file"),
        (["lint", str(rules), "-m", str(loop)], f"{loop}: cannot be read: Too many levels of symbolic links"),
        (["lint", str(rules), "-m", str(fifo)], f"{fifo}: is not a regular file; expected a GGUF file"),
        (["lint", str(rules), "-m", "/dev/zero"], "/dev/zero: is not a regular file; expected a GGUF file"),
    ):
        ran = ktllama(*words)
        assert (ran.status, ran.out, ran.err) == (2, "", f"ktllama: {reason}\n")


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        pytest.param(ALL_ON_CPU.encode("utf-16"), 2, "UTF-16 text; expected UTF-8: save it again in that encoding",
                     id="utf-16"),
        pytest.param(ALL_ON_CPU.encode("utf-16-be"), 1, "character U+0000 is not allowed in YAML; delete it",
                     id="utf-16-be"),
        pytest.param(b"- \xff\n", 2, "not UTF-8 text: byte 2 is 0xff", id="latin-1"),
        pytest.param(ALL_ON_CPU.encode("utf-8-sig"), 0, "0 errors", id="byte order mark"),
        pytest.param(ALL_ON_CPU.replace("\n", "\r\n").encode(), 0, "0 errors", id="crlf"),
        pytest.param(b"- a\0b\n", 1, "character U+0000 is not allowed in YAML; delete it", id="nul"),
        pytest.param(b"[" * 100_000, 1, "lists and mappings are nested more than 100 deep", id="deep"),
        pytest.param(b"- " * 5_000 + b"x", 1, "lists and mappings are nested more than 100 deep", id="deep list"),
        pytest.param(
            b"- &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
                b"- &%c [%s]\n" % (98 + n, b", ".join([b"*%c" % (97 + n)] * 9)) for n in range(9)
            ),
            1, "aliases repeat more than 100000 values", id="alias bomb",
        ),
        pytest.param(b"- match: {name: '" + b"x" * 1_000_000 + b"'}\n  replace: {class: default}\n", 1,
                     "the pattern has 1000000 characters; expected at most 10000", id="long name"),
        pytest.param(ALL_ON_CPU.encode() * 10_001, 1, "the file has 10001 rules; at most 10000 are read", id="many rules"),
        pytest.param(b"#" * 10_000_001, 2, "larger than 10 MB, which no rule file is", id="too large"),
    ],
)  # fmt: skip
def test_rule_files_of_every_unlucky_kind(content: bytes, status: int, message: str, rules: Path) -> None:
    rules.write_bytes(content)
    ran = safe(ktllama("lint", str(rules), *PRESET))
    assert ran.status == status
    assert message in ran.out + ran.err
    assert len(ran.out + ran.err) < 2000


def test_a_pattern_that_python_warns_about_warns_nobody(rules: Path) -> None:
    rules.write_text(rule("[[a-z]|x", "cpu"))
    code = "from ktllama.cli.main import main; main()"
    ran = subprocess.run([sys.executable, "-c", code, "lint", str(rules), *PRESET], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_deep_groups_are_searched_all_the_same(rules: Path) -> None:
    rules.write_text(rule("(" * 200 + "layers" + ")" * 200, "cpu"))
    ran = safe(ktllama("lint", str(rules), *PRESET))
    assert ran.status == 0


def test_many_winners_are_counted_not_listed(rules: Path) -> None:
    rules.write_text(
        "".join(rule(rf"layers\.{layer}\.", "cpu") for layer in range(27)) + rule(r"layers\.[0-9]+\.", "cpu")
    )
    found = json.loads(ktllama("lint", str(rules), *PRESET, "--format", "json").out)
    (message,) = [one["message"] for one in found if one["code"] == "rule-shadowed"]
    assert "rule 3 (line 7) and 23 further rules before it already take" in message


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        (("blk.4.attn_norm.weight",), "tensor 'blk.4.attn_norm.weight' is in no layer of the model, which has 4"),
        (("blk.999999999.x",), "tensor 'blk.999999999.x' is in no layer of the model, which has 4"),
        (("x", "x"), "tensor 'x' is there twice (at byte 135)"),
    ],
)
def test_tensors_that_no_model_has(held: tuple[str, ...], reason: str, rules: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    tensors = tuple(raw.tensor(name, offset=128 * number) for number, name in enumerate(held))
    model.write_bytes(raw.complete(raw.header(raw.LLAMA, tensors), data_bytes=1000))
    ran = ktllama("translate", str(rules), "--model", str(model))
    assert (ran.status, ran.out, ran.err) == (2, "", f"ktllama: {model}: {reason}\n")


@pytest.mark.parametrize("key", ["expert_count", "nextn_predict_layers"])
def test_counts_that_would_fill_the_memory(key: str, rules: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(raw.complete(raw.header((*raw.LLAMA, raw.u32(f"llama.{key}", 738_197_507)))))
    ran = ktllama("lint", str(rules), "--model", str(model))
    assert ran.status == 2
    assert f"metadata key 'llama.{key}' is 738197507; expected 0 to " in ran.err


# Outputs, locales and signals, in processes


COMMAND = [sys.executable, "-m", "ktllama"]
QUIET = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}


def shell(script: str, rules: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = " ".join(shlex.quote(word) for word in COMMAND)
    told = {**QUIET, **environment, "K": command, "R": str(rules)}
    return subprocess.run(["bash", "-c", script], env=told, capture_output=True, text=True, encoding="latin-1")


@pytest.mark.parametrize(
    "words", ["translate", "lint --format json", "translate --format argv", "translate --format json"]
)
def test_a_full_disk_is_told(words: str, rules: Path) -> None:
    ran = shell(f"$K {words} $R --preset deepseek-v2-lite >/dev/full", rules)
    message = "ktllama: the output cannot be written: No space left on device\n"
    assert ran.returncode == 2
    assert ran.stderr.splitlines(keepends=True)[-1] == message
    assert "Traceback" not in ran.stderr


def test_outputs_that_are_closed_or_full(rules: Path) -> None:
    ran = shell("$K lint $R --preset deepseek-v2-lite >&-", rules)
    assert (ran.returncode, ran.stderr) == (2, "ktllama: standard output is closed\n")
    assert shell("$K lint /nowhere 2>&-", rules).returncode == 2
    assert shell("$K lint /nowhere 2>/dev/full", rules).returncode == 2
    assert shell("$K lint --nowhere 2>/dev/full", rules).returncode == 2
    assert shell("$K --help >/dev/full", rules).returncode == 2


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_closed_pipe_ends_quietly(form: str, rules: Path) -> None:
    rules.write_text("".join(rule(f"x{number}", "cpu") for number in range(2000)))
    ran = shell(f"$K translate $R --preset deepseek-r1 --format {form} | head -1; exit ${{PIPESTATUS[0]}}", rules)
    assert (ran.returncode, ran.stderr) == (141, "")
    assert ran.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
def test_an_output_without_unicode_gets_escapes(environment: dict[str, str], rules: Path) -> None:
    rules.write_text(rule("experts", "cpu") + rule("", "cuda:0"))
    ran = shell("$K translate $R --preset deepseek-v2-lite", rules, **environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert r"\.weight$  \u2192  CPU" in ran.stdout


def test_interrupted_in_a_search_it_ends_with_130(rules: Path) -> None:
    patterns = [f"(([a-z.]+)+)+!{number}" for number in range(5)]
    rules.write_text("".join(rule(pattern, "cpu") for pattern in patterns))
    words = [*COMMAND, "lint", str(rules), "--preset", "deepseek-v2-lite"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.strip()) == (130, b"", b"")


# Work grows with the file, not with its square


def test_ten_thousand_rules_need_each_a_search_at_most(monkeypatch: pytest.MonkeyPatch, rules: Path) -> None:
    from ktllama.placing import searching

    searched: list[int] = []
    original = searching.Searcher.search_all

    def counting(self: searching.Searcher, pattern: object, names: list[str]) -> list[bool]:
        searched.append(len(names))
        return original(self, pattern, names)  # type: ignore[arg-type]

    monkeypatch.setattr(searching.Searcher, "search_all", counting)
    rules.write_text("".join(rule(rf"^model\.layers\.{number}\.mlp\.experts$", "cpu") for number in range(10_000)))
    ran = ktllama("lint", str(rules), *PRESET, "--format", "github")
    assert ran.status == 0
    assert ran.out.count("title=rule-matches-nothing") == 10_000 - 26
    assert (
        len(searched) == 10_000 + 4 * 26
    )  # each rule once, and the experts of 26 layers with the one that is for them


def test_all_patterns_together_have_a_limit(monkeypatch: pytest.MonkeyPatch, rules: Path) -> None:
    from ktllama.placing import resolve, searching

    monkeypatch.setattr(searching, "ALL_TIME_LIMIT", 0.0)
    monkeypatch.setattr(resolve, "ALL_TIME_LIMIT", 0.0)
    rules.write_text(rule("layers", "cpu") + rule("norm", "cpu") + rule("head", "cpu"))
    found = json.loads(ktllama("lint", str(rules), *PRESET, "--format", "json").out)
    assert [(one["line"], one["message"]) for one in found if one["severity"] == "error"] == [
        (3, "the patterns of this file were stopped at this one, after 0 s together on the model's module names; "
            "write fewer or simpler rules")
    ]  # fmt: skip
