"""The search for the fastest settings: which are tried, what is kept, who wins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ktllama import assets
from ktllama.devices import DeviceMap
from ktllama.errors import LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.planner import hardware, sessions
from ktllama.planner.machine import Machine
from ktllama.planner.planning import planner
from ktllama.planner.wishes import ContextWishes
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.timing import Timed
from ktllama.tuning import search as searching
from ktllama.tuning.search import Effort, NothingRanError, Task, search, wording
from ktllama.tuning.trials import Choice, State, StateFileError, Trial, best, best_prefill, name_of, open_state

ASKED: dict[str, object] = {"model": "tiny"}
EFFORT = Effort(depth=8, prefill_tokens=16, decode_tokens=2, repetitions=1)


@pytest.fixture
def task() -> Iterator[Task]:
    machine = hardware.machine({}, None)
    wishes = ContextWishes(n_ctx=1024, margin=0)
    with (
        sessions.start(machine, DeviceMap()) as session,
        planner(None, str(assets.tiny_r1()), session, machine=machine, wishes=wishes) as ready,
    ):
        yield Task(planner=ready, model_path=str(assets.tiny_r1()), machines={(2, "f16"): machine, (1, "f16"): machine})


def trial(choice: Choice, decode: float, prefill: float = 1.0, ubatch: int = 512) -> Trial:
    return Trial(choice=choice, ubatch=choice.ubatch or ubatch, decode=(decode,), prefill=(prefill,))


def test_each_setting_is_varied_from_the_best_so_far(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {1: 50.0, 2: 40.0}
    monkeypatch.setattr(
        searching,
        "_tried",
        lambda task, effort, choice: trial(choice, speeds[choice.n_threads], prefill=choice.ubatch or 512),
    )
    machine = task.machines[1, "f16"]
    both = {(n_threads, kv_type): machine for n_threads in (2, 1) for kv_type in ("f16", "q8_0")}
    task = replace(task, machines=both, kv_types=("f16", "q8_0"))
    found = search(task, EFFORT, State(path=tmp_path / "s.json", asked=ASKED))
    assert [one.choice for one in found.trials] == [
        Choice(n_threads=2), Choice(n_threads=1),
        Choice(n_threads=1, ubatch=256), Choice(n_threads=1, ubatch=1024),
        Choice(n_threads=1, ubatch=1024, kv_type="q8_0"),
    ]  # fmt: skip
    assert found.winner.choice == Choice(n_threads=1, ubatch=1024)
    assert found.complete


def test_a_second_start_goes_on_where_the_first_ended(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tried = tmp_path / "deep" / "s.json", []

    def tries(task: Task, effort: Effort, choice: Choice) -> Trial:
        tried.append(choice)
        return trial(choice, 10.0)

    monkeypatch.setattr(searching, "_tried", tries)
    first = search(task, replace(EFFORT, seconds=-1.0), open_state(path, ASKED))
    assert (first.complete, tried) == (False, [Choice(n_threads=2)])  # one at least
    second = search(task, EFFORT, open_state(path, ASKED))
    assert second.complete
    assert tried == [one.choice for one in second.trials]  # none twice
    assert search(task, replace(EFFORT, seconds=-1.0), open_state(path, ASKED)) == second
    assert [one["choice"]["n_threads"] for one in json.loads(path.read_text())["trials"]][:2] == [2, 1]


@pytest.mark.parametrize(
    "other",
    [
        hardware.machine({}, 8 << 30),  # the words may be the same: "detected"
        replace(hardware.machine({}, None), measured=True, token_seconds=1e-3),
    ],
)
def test_trials_with_other_memory_or_speeds_are_not_taken(
    other: Machine, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def tries(task: Task, effort: Effort, choice: Choice) -> Trial:
        tried.append(choice)
        return trial(choice, 10.0)

    monkeypatch.setattr(searching, "_tried", tries)
    path, at_once = tmp_path / "s.json", replace(EFFORT, seconds=-1.0)
    first = search(task, at_once, open_state(path, ASKED))
    changed = replace(task, machines=dict.fromkeys(task.machines, other))
    second = search(changed, at_once, open_state(path, ASKED))
    assert (len(first.trials), len(second.trials), len(tried)) == (1, 1, 2)
    assert first.winner.machine != second.winner.machine
    assert search(task, at_once, open_state(path, ASKED)) == first  # as before, and both are kept
    assert len(tried) == 2


def test_a_real_trial_has_its_plan_and_its_speeds(task: Task, tmp_path: Path) -> None:
    one = replace(task, machines={(1, "f16"): task.machines[1, "f16"]})
    one.planner.wishes = replace(one.planner.wishes, ubatch=128)  # leaves one trial
    found = search(one, EFFORT, State(path=tmp_path / "s.json", asked=ASKED))
    (made,) = found.trials
    assert (made.choice, made.ubatch, made.op_offload, made.failure) == (Choice(n_threads=1), 128, False, "")
    assert made.decode_speed > 0 < made.prefill_speed
    assert made.predicted_decode > 0
    assert made.rules.startswith("# Placement rules for tiny-R1, planned by ktllama.\n")


def test_what_fails_is_kept_with_its_reason(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise LlamaCppError("llama.cpp was killed by SIGABRT while it was measured", log=("no",))

    monkeypatch.setattr(searching, "TimingSession", refuses)
    state = State(path=tmp_path / "s.json", asked=ASKED)
    with pytest.raises(NothingRanError) as raised:
        search(task, EFFORT, state)
    assert str(raised.value) == "nothing could be tried: llama.cpp was killed by SIGABRT while it was measured"
    assert [one.choice.n_threads for one in open_state(state.path, ASKED).trials] == [2, 1]


def test_of_those_that_decode_alike_the_fastest_prefill_wins() -> None:
    fastest = trial(Choice(n_threads=4), 100.0, prefill=10.0)
    alike = trial(Choice(n_threads=3), 97.5, prefill=30.0)
    slower = trial(Choice(n_threads=2), 96.0, prefill=90.0)
    failed = Trial(choice=Choice(n_threads=1), failure="no")
    assert best([fastest, alike, slower, failed]) is alike
    assert best([failed]) is None
    assert best([]) is None


def test_ubatches_are_compared_by_prefill_alone() -> None:
    one = replace(trial(Choice(n_threads=1), 100.0, prefill=10.0), predicted_decode=50.0)
    larger = replace(trial(Choice(n_threads=1, ubatch=2048), 90.0, prefill=30.0), predicted_decode=49.9)
    crowded = replace(trial(Choice(n_threads=1, ubatch=4096), 99.0, prefill=90.0), predicted_decode=40.0)
    failed = Trial(choice=Choice(n_threads=1, ubatch=256), failure="no")
    assert best_prefill([one, larger, crowded, failed]) is larger  # the third has fewer weights on its GPU
    assert best_prefill([failed]) is None
    assert best_prefill([]) is None


def test_every_trial_of_a_search_reads_as_many_tokens(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    class Session:
        def __init__(self, _path: str, _settings: LlamaSettings, context: ContextOptions, **_: object) -> None:
            self.n_ubatch = context.n_ubatch

        def __enter__(self) -> Session:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def measure(self, depth: int, prefill_tokens: int, decode_tokens: int) -> Timed:
            asked.append((self.n_ubatch, prefill_tokens))
            return Timed(depth=depth, prefill_tokens=prefill_tokens, prefill_seconds=1.0, decode_tokens=decode_tokens,
                         decode_seconds=1.0)  # fmt: skip

    monkeypatch.setattr(searching, "TimingSession", Session)
    task.planner.wishes = replace(task.planner.wishes, n_ctx=4096)
    search(
        replace(task, machines={(1, "f16"): task.machines[1, "f16"]}),
        EFFORT,
        State(path=tmp_path / "s.json", asked=ASKED),
    )
    assert {ubatch for ubatch, _ in asked} == {256, 512, 1024, 2048, 4096}
    assert {n_tokens for _, n_tokens in asked} == {4096 - EFFORT.depth}


def test_trials_of_another_question_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    State(path=path, asked=ASKED).add(trial(Choice(n_threads=1), 1.0))
    with pytest.raises(StateFileError, match="another model, machine or question"):
        open_state(path, {"model": "other"})
    assert open_state(path, {"model": "other"}, again=True).trials == []
    path.write_text("[]")
    with pytest.raises(StateFileError, match="holds no trials"):
        open_state(path, ASKED)
    with pytest.raises(StateFileError, match="holds no trials"):
        open_state(path, ASKED, again=True)  # what is no state file is not forgotten either
    assert path.read_text() == "[]"
    assert name_of(ASKED) != name_of({"model": "other"})


@pytest.mark.parametrize("speed", ["NaN", "Infinity", "0.0", "-1.0"])
def test_a_speed_that_is_none_is_no_trial(speed: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    State(path=path, asked=ASKED).add(trial(Choice(n_threads=1), 123.5))
    text = path.read_text()
    assert "123.5" in text
    path.write_text(text.replace("123.5", speed))
    with pytest.raises(StateFileError, match="holds no trials"):
        open_state(path, ASKED)


def test_choices_in_words() -> None:
    assert (wording(Choice(n_threads=4)), wording(Choice(n_threads=1))) == ("4 threads", "1 thread")
    assert (
        wording(Choice(n_threads=4, ubatch=1024, op_offload=True, kv_type="q8_0", spare=3 << 30))
        == "4 threads, ubatch 1024, op_offload on, KV q8_0, 3072 MiB more left free"
    )
