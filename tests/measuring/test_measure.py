"""What is measured of a machine, and where it is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ktllama.measuring import cache
from ktllama.measuring.machine import best_threads, kind_of, measured_machine
from ktllama.measuring.measure import Wanted, measure
from ktllama.measuring.planned import MeasuredSpeeds
from ktllama.measuring.sample_models import Shape, sample
from ktllama.measuring.speeds import STAND_IN, DeviceSpeeds, Overheads, Speeds
from ktllama.planner import hardware
from ktllama.planner.wishes import ContextWishes
from ktllama.runtime import op_timing
from ktllama.runtime.op_timing import MatrixTimes

MOE = sample(Shape(architecture="deepseek2", n_layers=3, n_embd=256, head=64, n_experts=8, n_used=2))


def times(decode: float, buffer: str = "CPU", experts: float | None = None) -> MatrixTimes:
    return MatrixTimes(buffer=buffer, decode=decode, experts=experts, prefill_flops=1e10)


def host(decode: float, node: float) -> DeviceSpeeds:
    kinds = {tensor.type for tensor in MOE.tensors}
    return DeviceSpeeds(
        matrices={kind: {"CPU": times(decode, experts=2 * decode)} for kind in kinds},
        attention={"f16 mla": 1e-10, "q8_0 mla": 2e-10},
        overheads={"mla-moe": Overheads(node=node, token=1e-4, layer=50 * node)},
    )


def test_only_what_is_not_known_is_measured_and_kept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Wanted(threads=(1,), types=("Q8_0", "F32"), kinds=("dense",))
    known = Speeds().with_device("CPU", 1, DeviceSpeeds(matrices={"F32": {"CPU": times(1e-9)}}))
    kept: list[Speeds] = []
    steps: list[str] = []
    found = measure(wanted, known, kept.append, lambda name, number, n: steps.append(f"{number}/{n} {name}"))
    assert steps == [
        "0/4 Q8_0 on CPU with 1 thread",
        "1/4 attention, f16 gqa, on CPU with 1 thread",
        "2/4 attention, f16 gqa-64, on CPU with 1 thread",
        "3/4 small dense models on CPU with 1 thread",
    ]
    one = found.of("CPU", 1)
    assert kept[-1] == found
    assert one.matrices["F32"] == {"CPU": times(1e-9)}
    assert set(one.matrices["Q8_0"]) >= {"CPU"}
    assert all(0 < made.decode < 1e-6 and made.prefill_flops > 1e6 for made in one.matrices["Q8_0"].values())
    assert 0 < one.attention["f16 gqa"] < 1e-5
    assert one.overheads["dense"].token >= 0 <= one.overheads["dense"].node
    assert measure(wanted, found, kept.append) == found
    assert len(kept) == 4  # nothing was measured again


def test_a_cache_is_read_as_it_was_written(tmp_path: Path) -> None:
    speeds = Speeds(devices={("CPU", 2): host(1e-9, 1e-6), ("CUDA0", 2): DeviceSpeeds(crossing=1e-5, copy=2e10)})
    known: dict[str, object] = {"processor": {"model name": "some"}, "n_cores": 2}
    path = cache.path_of(known, tmp_path / "new")
    assert cache.read(path) is None
    cache.write(path, known, speeds)
    assert cache.read(path) == speeds
    assert json.loads(path.read_text())["hardware"] == known
    assert cache.path_of({**known, "n_cores": 4}, tmp_path) != cache.path_of(known, tmp_path)
    path.write_text("{}")
    with pytest.raises(cache.SpeedsFileError, match="holds no measured speeds; delete it and measure again"):
        cache.read(path)


@pytest.mark.parametrize(
    ("figure", "damaged"),
    [
        ('"decode": 1e-09', '"decode": 0.0'),
        ('"decode": 1e-09', '"decode": NaN'),
        ('"decode": 1e-09', '"decode": -1e-09'),
        ('"decode": 1e-09', '"decode": 1e-320'),
        ('"node": 1e-06', '"node": -1e-06'),
        ('"copy_speed": 20000000000.0', '"copy_speed": 1e999'),
        ('"n_threads": 2', '"n_threads": -2'),
    ],
)
def test_a_figure_that_nothing_can_measure_is_no_speed(figure: str, damaged: str, tmp_path: Path) -> None:
    speeds = Speeds(devices={("CPU", 2): host(1e-9, 1e-6), ("CUDA0", 2): DeviceSpeeds(crossing=1e-5, copy=2e10)})
    path = tmp_path / "speeds.json"
    cache.write(path, {}, speeds)
    text = path.read_text()
    assert figure in text
    path.write_text(text.replace(figure, damaged))
    with pytest.raises(cache.SpeedsFileError, match="holds no measured speeds"):
        cache.read(path)


def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.directory({"XDG_CACHE_HOME": "/some/where"}) == Path("/some/where/ktllama")
    assert cache.directory({"XDG_CACHE_HOME": "relative"}) == tmp_path / ".cache" / "ktllama"
    assert cache.directory({}) == tmp_path / ".cache" / "ktllama"


def test_measured_speeds_replace_assumed_ones() -> None:
    speeds = Speeds(devices={("CPU", 2): host(1e-9, 1e-6)})
    assumed = hardware.machine({"cuda:0": 1 << 30}, None)
    found = measured_machine(assumed, speeds, MOE, 2, kv_type="q8_0")
    assert found.measured
    assert found.gpus == assumed.gpus  # not measured
    assert (found.token_seconds, found.cpu.node_seconds, found.cpu.attention_seconds) == (1e-4, 1e-6, 2e-10)
    assert found.cpu.read_seconds["Q8_0"] == 1e-9
    assert found.cpu.expert_seconds["Q8_0"] == 2e-9
    assert found.cpu.flops_of("Q8_0") == 1e10
    assert measured_machine(assumed, speeds, MOE, 3) == assumed  # so many threads were not measured


@pytest.mark.parametrize(("head", "seconds"), [(64, 3e-10), (128, 2e-10), (256, 1.5e-10)])
def test_a_head_costs_something_whatever_its_size(head: int, seconds: float) -> None:
    # of 128 values a head takes 1e-10 × 128 for them and 256e-10 besides
    attention = {"f16 gqa-64": 3e-10, "f16 gqa": 2e-10}
    one = replace(host(1e-9, 1e-6), attention=attention)
    model = sample(Shape(architecture="qwen3moe", n_layers=1, n_embd=256, head=head, n_experts=4))
    found = measured_machine(hardware.machine({}, None), Speeds(devices={("CPU", 1): one}), model, 1)
    assert found.cpu.attention_seconds == pytest.approx(seconds)


def test_a_stand_in_has_the_hosts_plain_kernels_and_overheads_of_its_own() -> None:
    repacked = replace(
        host(1e-9, 1e-6), matrices={"Q8_0": {"CPU": times(3e-9), "CPU_REPACK": times(1e-9, "CPU_REPACK")}}
    )
    stand_in = DeviceSpeeds(overheads={"mla-moe": Overheads(node=4e-6, token=3e-4, layer=0.0)}, crossing=5e-4)
    speeds = Speeds(devices={("CPU", 2): repacked, (STAND_IN, 2): stand_in})
    machine = hardware.machine({"cuda:0": 1 << 30}, None)
    found = measured_machine(machine, speeds, MOE, 2, llama_names={"cuda:0": STAND_IN})
    assert found.cpu.read_seconds == {"Q8_0": 1e-9}
    assert found.gpus[0].read_seconds == {"Q8_0": 3e-9}
    assert (found.gpus[0].node_seconds, found.crossing_seconds, found.token_seconds) == (4e-6, 5e-4, 3e-4)
    plain = measured_machine(machine, speeds, MOE, 2, repacks=False)
    assert plain.cpu.read_seconds == {"Q8_0": 3e-9}


def test_a_gpu_computes_alike_however_many_threads_drive_it() -> None:
    overheads = {"mla-moe": Overheads(node=4e-6, token=3e-4, layer=0.0)}
    full = DeviceSpeeds(matrices={"Q8_0": {"CUDA0": times(1e-12)}}, copy=2e10, crossing=1e-5, overheads=overheads)
    fewer = DeviceSpeeds(crossing=2e-5, overheads=overheads)
    speeds = Speeds(devices={("CPU", 1): host(2e-9, 1e-7), ("CUDA0", 2): full, ("CUDA0", 1): fewer})
    found = measured_machine(
        hardware.machine({"cuda:0": 1 << 30}, None), speeds, MOE, 1, llama_names={"cuda:0": "CUDA0"}
    )
    assert found.gpus[0].read_seconds == {"Q8_0": 1e-12}
    assert (found.crossing_seconds, found.link_bandwidth) == (2e-5, 2e10)


def test_threads_are_chosen_by_what_they_cost_the_whole_model() -> None:
    # twice the threads read twice as fast, and each node waits ten times as long
    speeds = Speeds(devices={("CPU", 1): host(2e-9, 1e-7), ("CPU", 2): host(1e-9, 1e-6)})
    assert best_threads(speeds, MOE) == 2
    slow_nodes = Speeds(devices={("CPU", 1): host(2e-9, 1e-7), ("CPU", 2): host(1e-9, 1e-2)})
    assert best_threads(slow_nodes, MOE) == 1
    assert best_threads(Speeds(), MOE) is None


def test_a_plan_takes_the_threads_that_were_asked_for_and_the_nearest_speeds() -> None:
    speeds = MeasuredSpeeds(speeds=Speeds(devices={("CPU", 1): host(2e-9, 1e-7), ("CPU", 8): host(1e-9, 1e-6)}))
    machine = hardware.machine({}, None)
    found, wishes = speeds(MOE, machine, ContextWishes(n_threads=6))
    assert (wishes.n_threads, found.cpu.read_seconds["F32"]) == (6, 1e-9)
    assert speeds(MOE, machine, ContextWishes())[1].n_threads == 8
    assert MeasuredSpeeds(speeds=Speeds())(MOE, machine, ContextWishes()) == (machine, ContextWishes())


def test_models_are_of_the_kind_that_their_layers_are() -> None:
    assert kind_of(MOE) == "mla-moe"
    assert kind_of(sample(Shape(architecture="qwen3moe", n_layers=1, n_experts=4))) == "gqa-moe"
    assert kind_of(sample(Shape(architecture="llama", n_layers=1))) == "dense"


def test_the_largest_cache_is_found(tmp_path: Path) -> None:
    for number, size in enumerate(("64K", "512K", "8192K", "what")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    assert op_timing.last_cache_bytes(tmp_path) == 8 << 20
    assert op_timing.last_cache_bytes(tmp_path / "none") == 0
