"""Which device of a machine a device name of the settings means."""

from __future__ import annotations

import pytest

from ktllama.errors import DeviceError
from ktllama.lower.settings import LlamaSettings, TensorOverride
from ktllama.runtime.device_binding import BoundDevice, device_names, require_real, resolve_devices
from ktllama.runtime.device_list import BackendDevice, DeviceKind


def _device(name: str, kind: DeviceKind = "gpu") -> BackendDevice:
    return BackendDevice(
        name=name,
        description=f"a {name}",
        kind=kind,
        backend=name.rstrip("0123456789"),
        memory_total=0,
        memory_free=0,
        buffer_type=name,
    )


CPU = _device("CPU", "cpu")
TWO_GPUS = LlamaSettings(
    n_gpu_layers=5,
    devices=("CUDA0", "CPU", "CUDA0"),
    tensor_split=(1, 2, 2),
    tensor_overrides=(TensorOverride(pattern="x", device="CUDA1"),),
)


def test_every_name_of_the_settings_counts_once() -> None:
    assert device_names(TWO_GPUS) == ("CPU", "CUDA0", "CUDA1")


def test_names_that_exist_are_themselves() -> None:
    here = (CPU, _device("CUDA1"), _device("CUDA0"))
    assert resolve_devices(TWO_GPUS, here) == tuple(
        BoundDevice(name=name, backend_name=name) for name in ("CPU", "CUDA0", "CUDA1")
    )


def test_other_gpus_serve_by_their_number_discrete_ones_first() -> None:
    here = (CPU, _device("Vulkan1", "igpu"), _device("Vulkan0"))
    assert resolve_devices(TWO_GPUS, here) == (
        BoundDevice(name="CPU", backend_name="CPU"),
        BoundDevice(name="CUDA0", backend_name="Vulkan0"),
        BoundDevice(name="CUDA1", backend_name="Vulkan1"),
    )


def test_missing_gpus_are_stood_in_for() -> None:
    here = (CPU, _device("ROCm0"))
    assert resolve_devices(TWO_GPUS, here) == (
        BoundDevice(name="CPU", backend_name="CPU"),
        BoundDevice(name="CUDA0", backend_name="ROCm0"),
        BoundDevice(name="CUDA1", backend_name="", stand_in=True),
    )


def test_one_gpu_never_serves_as_two() -> None:
    settings = LlamaSettings(n_gpu_layers=2, devices=("SYCL0", "CUDA0"), tensor_split=(1, 1))
    bound = resolve_devices(settings, (CPU, _device("CUDA0")))
    assert [(device.name, device.backend_name, device.stand_in) for device in bound] == [
        ("CPU", "CPU", False),
        ("SYCL0", "", True),
        ("CUDA0", "CUDA0", False),
    ]


def test_a_device_that_the_user_chose_must_exist() -> None:
    with pytest.raises(DeviceError) as raised:
        resolve_devices(TWO_GPUS, (CPU, _device("Vulkan0")), explicit=("CUDA1",))
    assert str(raised.value) == "llama.cpp has no device CUDA1 here; it has CPU (a CPU), Vulkan0 (a Vulkan0)"


def test_a_real_run_refuses_stand_ins() -> None:
    bound = resolve_devices(TWO_GPUS, (CPU,))
    with pytest.raises(DeviceError, match="no devices CUDA0, CUDA1 here; it has CPU"):
        require_real(bound, (CPU,))
