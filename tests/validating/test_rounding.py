"""Where activations are rounded as llama.cpp's CPU kernels do."""

from __future__ import annotations

from ktllama.devices import DeviceMap
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime.device_binding import BoundDevice
from ktllama.runtime.device_list import BackendDevice, DeviceKind
from ktllama.validating.rounding import activations, cpu_kernels

NAMES = ("cpu", "cuda:0", "cuda:1")
ON_GPU = LlamaSettings(n_gpu_layers=4, devices=("CUDA0", "CUDA1"))
CPU = BoundDevice(name="CPU", backend_name="CPU")
REAL = BoundDevice(name="CUDA0", backend_name="CUDA0")
STAND_IN = BoundDevice(name="CUDA1", backend_name="RPC0", stand_in=True)


def device(name: str, kind: DeviceKind) -> BackendDevice:
    return BackendDevice(
        name=name, description="", kind=kind, backend=name, memory_total=0, memory_free=0, buffer_type=name
    )


HERE = (device("CUDA0", "gpu"), device("CPU", "cpu"))


def test_a_layer_is_rounded_where_all_of_it_is_on_cpus() -> None:
    by_layer = [("cpu",), ("cuda:1", "cpu"), ("cuda:0",), ("cuda:0", "cpu"), ("cpu",)]
    assert activations("auto", by_layer, {"cpu", "cuda:1"}) == (
        "llama.cpp", "llama.cpp", "exact", "exact", "llama.cpp",
    )  # fmt: skip
    assert activations("exact", by_layer, {"cpu"}) == ("exact",) * 5
    assert activations("llama.cpp", by_layer, ()) == ("llama.cpp",) * 5


def test_the_cpu_and_its_stand_ins_have_its_kernels() -> None:
    assert cpu_kernels(NAMES, DeviceMap(), ON_GPU, (CPU, REAL, STAND_IN), HERE) == {"cpu", "cuda:1"}
    assert cpu_kernels(("cpu",), DeviceMap(), LlamaSettings(n_gpu_layers=0), (CPU,), HERE) == {"cpu"}
    mapped = DeviceMap(chosen={"cuda:1": "Vulkan3"})
    vulkan = BoundDevice(name="Vulkan3", backend_name="Vulkan3")
    assert cpu_kernels(NAMES, mapped, ON_GPU, (CPU, REAL, vulkan), HERE) == {"cpu"}


def test_large_batches_that_go_to_a_gpu_are_not_the_cpus() -> None:
    offload = LlamaSettings(n_gpu_layers=4, devices=("CUDA0", "CUDA1"), op_offload=True)
    assert cpu_kernels(NAMES, DeviceMap(), offload, (CPU, REAL, STAND_IN), HERE) == {"cuda:1"}
    assert cpu_kernels(NAMES, DeviceMap(), offload, (CPU, STAND_IN), HERE) == {"cpu", "cuda:1"}


def test_an_accelerator_has_kernels_of_its_own() -> None:
    blas = (*HERE, device("BLAS", "accel"))
    assert cpu_kernels(NAMES, DeviceMap(), ON_GPU, (CPU, STAND_IN), blas) == frozenset()
