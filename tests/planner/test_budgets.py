"""Budgets as people write them and as a machine has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktllama.planner import budgets, hardware
from ktllama.planner.budgets import Detected
from ktllama.planner.errors import BudgetError
from tests.planner.machines import GIB


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("24G", {"cuda:0": 24 * GIB}),
        ("24G, 12GiB", {"cuda:0": 24 * GIB, "cuda:1": 12 * GIB}),
        ("xpu:1=16G,cuda=512M", {"xpu:1": 16 * GIB, "cuda:0": GIB // 2}),
        ("none", {}),
    ],
)
def test_memories_of_gpus(text: str, found: dict[str, int]) -> None:
    assert budgets.parse_vram(text) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-24G", "--vram '-24G': expected a size above 0, such as 24G or 512M, detected or none"),
        ("0", "--vram '0': expected a size above 0, such as 24G or 512M, detected or none"),
        ("24 gigs", "--vram '24 gigs': expected a size above 0, such as 24G or 512M, detected or none"),
        ("24", "--vram '24': that is 24 bytes; expected a size with its unit, such as 24G"),
        ("24G,", "--vram '24G,': a size is missing; expected one for each GPU, as in 24G or 24G,12G"),
        ("9999999T", "--vram '9999999T': no machine has that much; expected a size such as 24G or 512M"),
        ("cuda:0=24G,cuda:0=12G", "--vram 'cuda:0=24G,cuda:0=12G': cuda:0 is named twice"),
        ("cuda=24G,cuda:0=12G", "--vram 'cuda=24G,cuda:0=12G': cuda:0 is named twice"),
        ("cpu=24G", "--vram 'cpu=24G': 'cpu' is no GPU of a rule; expected cuda:N, xpu:N or npu:N"),
        ("gpu0=24G", "--vram 'gpu0=24G': 'gpu0' is no GPU of a rule; expected cuda:N, xpu:N or npu:N"),
        (
            "cuda:0=24G,12G",
            "--vram 'cuda:0=24G,12G': name every device or none, as in cuda:0=24G,cuda:1=12G or 24G,12G",
        ),
        (",".join(["1G"] * 16), "--vram: 16 GPUs; llama.cpp takes 15 beside the host"),
    ],
)
def test_what_is_no_memory_of_gpus(text: str, message: str) -> None:
    with pytest.raises(BudgetError) as raised:
        budgets.parse_vram(text)
    assert str(raised.value) == message


def test_a_margin_may_be_nothing() -> None:
    assert (budgets.parse_margin("0"), budgets.parse_margin("1G")) == (0, GIB)
    with pytest.raises(BudgetError, match="--margin '-1'"):
        budgets.parse_margin("-1")


def test_speeds_count_in_thousands_as_data_sheets_do() -> None:
    assert budgets.parse_bandwidths(["cuda=936G", "cpu=0.2T"]) == {"cuda:0": 936e9, "cpu": 200e9}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("cuda:0", "--bandwidth 'cuda:0': expected DEVICE=SPEED, such as cuda:0=936G or cpu=200G"),
        ("auto=1G", "--bandwidth 'auto=1G': expected DEVICE=SPEED, such as cuda:0=936G or cpu=200G"),
        ("cpu=0", "--bandwidth '0': expected bytes a second, such as 936G"),
        ("cpu=fast", "--bandwidth 'fast': expected bytes a second, such as 936G"),
    ],
)
def test_what_is_no_speed(pair: str, message: str) -> None:
    with pytest.raises(BudgetError) as raised:
        budgets.parse_bandwidths([pair])
    assert str(raised.value) == message


def test_a_device_has_one_speed_and_must_be_there() -> None:
    with pytest.raises(BudgetError, match="cuda:0 is named twice"):
        budgets.parse_bandwidths(["cuda:0=1G", "cuda=2G"])
    with pytest.raises(BudgetError, match="--bandwidth cuda:3: no such device here; there are cpu, cuda:0"):
        hardware.machine({"cuda:0": GIB}, None, bandwidth={"cuda:3": 1e9})


def test_a_gpu_that_says_who_it_is_has_its_makers_bandwidth() -> None:
    named = hardware.machine({"cuda:0": GIB, "cuda:1": GIB}, None, descriptions={"cuda:0": "NVIDIA GeForce RTX 4090"})
    assert [gpu.bandwidth for gpu in named.gpus] == [0.85 * 1008e9, hardware.GPU_BANDWIDTH]


def test_more_than_the_machine_has_is_no_budget() -> None:
    here = Detected(vram={"cuda:0": 16 * GIB}, descriptions={}, ram=64 * GIB)
    budgets.check_against(here, {"cuda:0": 16 * GIB}, 64 * GIB)
    with pytest.raises(BudgetError, match="--ram 128 GiB: this machine has 64 GiB"):
        budgets.check_against(here, {}, 128 * GIB)
    with pytest.raises(BudgetError, match="--vram cuda:0=24 GiB: it has 16 GiB"):
        budgets.check_against(here, {"cuda:0": 24 * GIB}, None)


def test_a_control_group_may_allow_less_than_the_machine_has(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "a" / "b").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       1048576 kB\nMemFree: 1 kB\n")
    assert budgets.host_memory(proc, groups) == GIB
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    (groups / "a" / "memory.max").write_text("536870912\n")
    (groups / "a" / "b" / "memory.max").write_text("max\n")
    assert budgets.host_memory(proc, groups) == GIB // 2


def test_a_system_that_says_nothing_needs_a_size(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="--ram detected: this system does not say"):
        budgets.host_memory(tmp_path, tmp_path)


def test_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    assert budgets.n_physical_cores(tmp_path) == 2
