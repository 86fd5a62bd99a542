"""The names that detected GPUs get, beside those that a device map gives."""

from __future__ import annotations

import pytest

from ktllama.devices import parse_device_map
from ktllama.errors import DeviceError
from ktllama.planner import detection
from ktllama.planner.detection import detect, device_map_of
from ktllama.runtime.device_list import BackendDevice

GIB = 1 << 30


def gpu(name: str, backend: str, n_bytes: int) -> BackendDevice:
    return BackendDevice(name=name, description=name, kind="gpu", backend=backend, memory_total=n_bytes,
                         memory_free=n_bytes, buffer_type=name)  # fmt: skip


@pytest.fixture(autouse=True)
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [gpu("CUDA0", "CUDA", 24 * GIB), gpu("CUDA1", "CUDA", 12 * GIB), gpu("SYCL0", "SYCL", 8 * GIB)]
    monkeypatch.setattr(detection, "_gpus", lambda: there)


@pytest.mark.parametrize(
    ("pairs", "names"),
    [
        ((), {"cuda:0": "CUDA0", "cuda:1": "CUDA1", "xpu:0": "SYCL0"}),
        (("cuda:0=CUDA1",), {"cuda:1": "CUDA0", "cuda:0": "CUDA1", "xpu:0": "SYCL0"}),
        (("cuda:1=CUDA0",), {"cuda:1": "CUDA0", "cuda:0": "CUDA1", "xpu:0": "SYCL0"}),
        (("cuda:5=CUDA0",), {"cuda:5": "CUDA0", "cuda:0": "CUDA1", "xpu:0": "SYCL0"}),
        (("cuda:0=SYCL0",), {"cuda:1": "CUDA0", "cuda:2": "CUDA1", "cuda:0": "SYCL0"}),
    ],
)
def test_a_map_of_some_devices_leaves_the_others_their_own_names(pairs: tuple[str, ...], names: dict[str, str]) -> None:
    device_map = parse_device_map(pairs)
    here = detect(device_map)
    assert here.llama_names == names
    assert {here.llama_names[name]: n_bytes // GIB for name, n_bytes in here.vram.items()} == {
        "CUDA0": 24,
        "CUDA1": 12,
        "SYCL0": 8,
    }
    whole = device_map_of(here, device_map)
    assert {name: whole.llama_name(name) for name in here.vram} == names


def test_a_map_to_a_device_that_is_not_there_is_refused() -> None:
    device_map = parse_device_map(("cuda:0=Vulkan0",))
    with pytest.raises(DeviceError, match=r"llama\.cpp has no Vulkan0 here"):
        device_map_of(detect(device_map), device_map)
