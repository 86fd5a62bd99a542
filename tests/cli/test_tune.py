"""``ktllama tune``, and ``plan`` with what it measured, as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ktllama.measuring import cache
from ktllama.measuring.locks import held
from ktllama.measuring.speeds import DeviceSpeeds, Overheads, Speeds
from ktllama.planner.budgets import n_physical_cores
from ktllama.runtime.device_list import BackendDevice
from ktllama.runtime.op_timing import MatrixTimes
from tests.cli.runner import ktllama

PLAN = ("plan", "--preset", "deepseek-v2-lite", "--vram", "none", "--ctx", "4096", "--ubatch", "512")


@pytest.fixture
def speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that knows everything about this machine: one thread reads 10 GB/s."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kinds = ("F32", "F16", "Q8_0", "Q4_K", "Q6_K", "Q5_0")
    matrices = {
        kind: {"CPU": MatrixTimes(buffer="CPU", decode=1e-10, experts=1e-10, prefill_flops=1e11)} for kind in kinds
    }
    overheads = {"mla-moe": Overheads(node=0.0, token=0.0, layer=0.0)}
    one = DeviceSpeeds(matrices=matrices, attention={"f16 mla": 1e-12}, overheads=overheads)
    known = cache.hardware()
    path = cache.path_of(known, cache.directory({"XDG_CACHE_HOME": str(tmp_path / "cache")}))
    cache.write(path, known, Speeds(devices={("CPU", n): one for n in {1, n_physical_cores()}}))
    return path


def test_plan_uses_what_was_measured_here_and_says_so(speeds: Path) -> None:
    ran = ktllama(*PLAN, "--ram", "detected", "--threads", "1")
    assert ran.status == 0
    assert "for GB/s of cpu 10, link 25; measured on this machine, by type of weights\n" in ran.out
    document = json.loads(ktllama(*PLAN, "--ram", "detected", "--threads", "1", "--json").out)
    assert document["speeds"] == "measured"
    # ten GB/s of what a token reads: half of 4096 cells are in the host's figure too
    rate = document["prediction"]["decode_tokens_per_second"]
    assert rate == pytest.approx(1e10 / document["prediction"]["host_read_bytes"], rel=0.02)
    for words in (("--ram", "16G"), ("--ram", "detected", "--speeds", "assumed"), ("--ram", "detected", "--bandwidth", "cpu=60G")):  # fmt: skip
        assert json.loads(ktllama(*PLAN, *words, "--json").out)["speeds"] == "assumed"
    assert json.loads(ktllama(*PLAN, "--ram", "16G", "--speeds", "measured", "--json").out)["speeds"] == "measured"


def test_plan_says_which_types_were_not_measured(speeds: Path) -> None:
    host = json.loads(speeds.read_text())
    for one in host["devices"]:
        del one["matrices"]["Q4_K"]
    speeds.write_text(json.dumps(host))
    ran = ktllama(*PLAN, "--ram", "detected", "--threads", "1")
    said = " ".join(ran.out.split())
    assert "by type of weights; Q4_K not measured: estimated from the types that were" in said


def test_a_device_without_kernels_keeps_what_is_assumed(speeds: Path) -> None:
    host = json.loads(speeds.read_text())
    for one in host["devices"]:
        one["matrices"] = {kind: [] for kind in one["matrices"]}
    speeds.write_text(json.dumps(host))
    ran = ktllama(*PLAN, "--ram", "detected", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert json.loads(ran.out)["speeds"] == "assumed"


def test_plan_says_that_the_figures_are_of_other_threads(speeds: Path) -> None:
    known = sorted({1, n_physical_cores()})
    assert json.loads(ktllama(*PLAN, "--ram", "detected", "--threads", "1", "--json").out)["notes"] == []
    other = known[-1] + 1
    notes = json.loads(ktllama(*PLAN, "--ram", "detected", "--threads", str(other), "--json").out)["notes"]
    assert notes == [f"{other} threads were not measured; these are the figures of {known[-1]}"]
    refused = ktllama(*PLAN, "--ram", "detected", "--speeds", "measured", "--threads", str(other))
    assert (refused.status, refused.out) == (2, "")
    assert refused.err == (
        f"ktllama: this machine's speeds were not measured with {other} threads yet (they are not in {speeds}): ktllama "
        f"tune --threads {other} measures them\n"
    )


def test_plan_says_how_speeds_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ran = ktllama(*PLAN, "--speeds", "measured")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("ktllama: this machine's speeds were not measured yet (there is no ")
    assert ran.err.endswith("): ktllama tune measures them\n")
    both = ktllama(*PLAN, "--speeds", "measured", "--bandwidth", "cpu=60G")
    assert both.err.endswith("Error: --speeds measured and --bandwidth exclude each other.\n")
    broken = tmp_path / "ktllama"
    broken.mkdir()
    cache.path_of(cache.hardware(), broken).write_text("{")
    ran = ktllama(*PLAN, "--ram", "detected")
    assert ran.status == 2
    assert "holds no measured speeds; delete it and measure again" in ran.err


def test_tune_tries_and_writes_the_rules_that_won(speeds: Path, tmp_path: Path) -> None:
    rules, state = tmp_path / "rules.yaml", tmp_path / "state.json"
    words = ("tune", "--vram", "none", "--ctx", "512", "--threads", "1", "--depth", "8", "--minutes", "0",
             "--state", str(state))  # fmt: skip
    ran = ktllama(*words, "-o", str(rules))
    assert ran.status == 0
    assert ran.err.splitlines()[-2:] == ["trying 1 thread", f"wrote {rules}"]
    lines = [line.rstrip() for line in ran.out.splitlines()]
    assert [line for line in lines if line in ("Tried", "Settings that won", "Notes", "Next")] == [
        "Tried", "Settings that won", "Notes", "Next",
    ]  # fmt: skip
    won = next(line for line in lines if line.lstrip().startswith("→"))
    assert won.split()[1:4] == ["1", "thread", "512"]
    assert f"  time was over before everything was tried; the same command goes on from {state}" in lines
    assert lines[-1].startswith(f"  ktllama run {rules} --model ")
    assert ktllama("lint", str(rules), "--model", str(Path(__file__).parents[2] / "ktllama/assets/tiny-r1.gguf")).status == 0  # fmt: skip
    again = json.loads(ktllama(*words, "--json").out)  # what is known already is not tried again
    assert [trial["won"] for trial in again["trials"]] == [True]
    assert again["plan"]["rules"] == rules.read_text()
    refused = ktllama(*words, "-o", str(rules))
    assert (refused.status, refused.err.splitlines()[-1]) == (
        2,
        f"ktllama: {rules}: already exists; --force overwrites it",
    )


def test_tune_writes_the_plan_it_prints(speeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "rules.yaml"
    words = ("tune", "--ctx", "512", "--threads", "1", "--depth", "8", "--minutes", "0", "--stand-ins", "--json")
    plans = []
    for free in (2000 << 20, 2010 << 20, 520 << 20):
        device = BackendDevice(name="CUDA0", description="card", kind="gpu", backend="CUDA",
                               memory_total=24 << 30, memory_free=free, buffer_type="CUDA0")  # fmt: skip
        monkeypatch.setattr("ktllama.planner.detection._gpus", lambda device=device: [device])
        ran = ktllama(*words, "--force", "-o", str(written))
        assert ran.status == 0
        document = json.loads(ran.out)
        assert document["plan"]["rules"] == written.read_text()
        assert document["trials"][0]["rules"] == written.read_text()
        plans.append((written.read_text(), "trying 1 thread" in ran.err))
    (roomy, was_tried), (same, was_tried_again), (full, was_tried_anew) = plans
    assert (was_tried, was_tried_again, was_tried_anew) == (True, False, True)
    assert roomy == same != full


def test_each_kv_type_is_predicted_with_its_own_attention(
    speeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = json.loads(speeds.read_text())
    for one in host["devices"]:
        one["attention"] = {"f16 mla": 1e-12, "q8_0 mla": 1e-6}  # as slow as nothing else is
    speeds.write_text(json.dumps(host))
    monkeypatch.setattr("ktllama.measuring.measure.measure", lambda wanted, start, keep, progress: start)
    ran = ktllama("tune", "--vram", "none", "--ctx", "512", "--threads", "1", "--depth", "128", "--kv-type", "f16",
                  "--kv-type", "q8_0", "--state", str(tmp_path / "state.json"), "--json")  # fmt: skip
    assert ran.status == 0
    predicted = {one["choice"]["kv_type"]: one["predicted_decode"] for one in json.loads(ran.out)["trials"]}
    assert predicted["q8_0"] < predicted["f16"] / 10


def test_a_second_tune_does_not_write_over_the_first(speeds: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    words = ("tune", "--vram", "none", "--ctx", "512", "--threads", "1", "--minutes", "0", "--state", str(state))
    for path in (state, speeds):
        with held(path):
            ran = ktllama(*words)
        assert (ran.status, ran.out) == (2, "")
        assert (
            ran.err.splitlines()[-1]
            == f"ktllama: {path}: another ktllama tune writes to it: wait until that one is done"
        )
    assert not state.exists()


def test_tune_shows_what_it_measured(speeds: Path) -> None:
    ran = ktllama("tune", "--vram", "none", "--threads", "1", "--measure-only")
    assert ran.status == 0
    lines = [line.strip() for line in ran.out.splitlines()]
    assert "CPU with 1 thread" in lines
    assert next(line for line in lines if line.startswith("Q4_K")).split() == [
        "Q4_K", "CPU", "10", "GB/s", "10", "GB/s", "100", "Gop/s",
    ]  # fmt: skip
    document = json.loads(ktllama("tune", "--vram", "none", "--threads", "1", "--measure-only", "--json").out)
    assert {one["device"] for one in document} == {"CPU"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "hf:some/repo"), "must be a file on this machine: download it first"),
        (("--model", "nowhere.gguf"), "nowhere.gguf"),
        (("--vram", "none", "--ram", "900T"), "--ram 900 TiB: this machine has "),
        (("--vram", "x"), "--vram 'x'"),
        (("--minutes", "nan"), "nan is no number"),
        (("--force",), "--force is for --output"),
        (("--output", "/nowhere/rules.yaml"), "/nowhere/rules.yaml: cannot be written: there is no such folder"),
        (("--measure-only", "-o", "x.yaml"), "--measure-only tries nothing; --output is for trials"),
        (("--measure-only", "--rules", "x.yaml"), "--measure-only tries nothing; --rules is for trials"),
        (("--measure-only", "--state", "x.json"), "--measure-only tries nothing; --state is for trials"),
        (("--measure-only", "--minutes", "10"), "--measure-only tries nothing; --minutes is for trials"),
        (("--measure-only", "--depth", "512"), "--measure-only tries nothing; --depth is for trials"),
        (("--measure-only", "--stand-ins"), "--measure-only tries nothing; --stand-ins is for trials"),
        (("--output", "x.yaml", "--state", "./x.yaml"), "--output and --state name the same file"),
    ],
)
def test_what_cannot_be_tuned_is_said_in_a_line(words: tuple[str, ...], said: str) -> None:
    ran = ktllama("tune", *words)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_nothing_is_measured_for_what_cannot_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measures(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("ktllama.measuring.measure.measure", measures)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    long = ktllama("tune", "--vram", "none", "--ctx", "100000")
    assert long.status == 2
    assert "ktllama: --ctx 100000: tiny-R1 was trained with a context of 4096 tokens" in long.err
    (tmp_path / "ktllama").write_text("no folder")
    for words in ((), ("--measure-only",)):
        unwritable = ktllama("tune", "--vram", "none", *words)
        assert unwritable.status == 2
        assert unwritable.err.endswith(".json: cannot be written: File exists\n")


@pytest.mark.parametrize("option", [("--force", "--output"), ("--again", "--state")])
def test_the_files_that_are_read_are_not_written_over(option: tuple[str, str], tmp_path: Path) -> None:
    model, rules = tmp_path / "model.gguf", tmp_path / "mine.yaml"
    for file in (model, rules):
        file.write_text("kept")
        ran = ktllama("tune", "--model", str(model), "--rules", str(rules), *option, str(file))
        assert (ran.status, ran.out) == (2, "")
        assert ran.err == f"ktllama: {file}: is one of the files to read; give another name\n"
        assert file.read_text() == "kept"


def test_damaged_speeds_are_measured_again_where_that_is_asked_for(
    speeds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ktllama.measuring.measure.measure", lambda wanted, start, keep, progress: start)
    speeds.write_text("{")
    refused = ktllama("tune", "--vram", "none", "--measure-only", "--json")
    assert refused.status == 2
    assert "holds no measured speeds; delete it and measure again" in refused.err
    again = ktllama("tune", "--vram", "none", "--measure-only", "--json", "--again")
    assert (again.status, json.loads(again.out)) == (0, [])
