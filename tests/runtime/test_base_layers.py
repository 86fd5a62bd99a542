"""llama.cpp's base assignment, repeated by arithmetic."""

from __future__ import annotations

import pytest

from ktllama.errors import LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime.base_layers import base_devices
from tests.runtime.plans import runs


def test_no_devices_means_the_cpu() -> None:
    assert base_devices(LlamaSettings(n_gpu_layers=99), 2) == ("CPU", "CPU", "CPU")


def test_the_last_layers_go_to_the_gpu() -> None:
    settings = LlamaSettings(n_gpu_layers=2, devices=("CUDA0",), tensor_split=(2,))
    assert base_devices(settings, 3) == ("CPU", "CPU", "CUDA0", "CUDA0")


def test_runs_follow_each_other() -> None:
    settings = runs(("CUDA0", 1), ("CPU", 2), ("CUDA0", 1), ("CUDA1", 1))
    assert base_devices(settings, 4) == ("CUDA0", "CPU", "CPU", "CUDA0", "CUDA1")


def test_a_device_without_layers_takes_none() -> None:
    assert base_devices(runs(("CUDA0", 3), ("CUDA1", 0)), 2) == ("CUDA0", "CUDA0", "CUDA0")


def test_a_negative_count_means_all_layers() -> None:
    settings = LlamaSettings(n_gpu_layers=-1, devices=("CUDA0",))
    assert base_devices(settings, 2) == ("CUDA0", "CUDA0", "CUDA0")


@pytest.mark.parametrize("lengths", [(5, 10, 10, 6), (1, 1, 60), (7, 13, 17, 25), (31, 31), (3, 59)])
def test_integer_run_lengths_are_exact_in_32_bits(lengths: tuple[int, ...]) -> None:
    devices = [f"CUDA{index}" for index in range(len(lengths))]
    expected = tuple(device for device, n_layers in zip(devices, lengths, strict=True) for _ in range(n_layers))
    assert base_devices(runs(*zip(devices, lengths, strict=True)), sum(lengths) - 1) == expected


def test_a_split_by_free_memory_is_refused() -> None:
    settings = LlamaSettings(n_gpu_layers=3, devices=("CUDA0", "CUDA1"))
    with pytest.raises(LlamaCppError, match="split the layers by free memory"):
        base_devices(settings, 2)
