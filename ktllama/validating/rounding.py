"""Where the reference rounds activations as llama.cpp's CPU kernels do, and where it leaves them exact."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from ktllama import devices
from ktllama.devices import DeviceMap
from ktllama.lower.settings import LlamaSettings

if TYPE_CHECKING:
    from ktllama.reference.activations import Activations
    from ktllama.runtime.device_binding import BoundDevice
    from ktllama.runtime.device_list import BackendDevice

#: What a user may ask for; ``auto`` is ``llama.cpp`` wherever that is what llama.cpp does.
ActivationsChoice: TypeAlias = Literal["auto", "exact", "llama.cpp"]


def activations(
    choice: ActivationsChoice, by_layer: Sequence[Collection[str]], kernels: Collection[str]
) -> tuple[Activations, ...]:
    """How activations are rounded in each layer, and last in the output.

    ``by_layer`` are the devices of each, as rules name them; ``kernels`` those whose products are the CPU's.
    """
    if choice != "auto":
        return (choice,) * len(by_layer)
    return tuple("llama.cpp" if set(names) <= set(kernels) else "exact" for names in by_layer)


def cpu_kernels(
    names: Collection[str],
    device_map: DeviceMap,
    settings: LlamaSettings,
    bound: Sequence[BoundDevice],
    available: Sequence[BackendDevice],
) -> frozenset[str]:
    """Those of the devices (as rules name them) on which llama.cpp multiplies with its CPU kernels.

    The CPU and what it stands in for. None where an accelerator such as BLAS takes products over
    (``ggml_backend_sched`` asks it first), and not the CPU where large batches are sent on to a GPU (``op_offload``).
    """
    if any(device.kind == "accel" for device in available):
        return frozenset()
    cpu = device_map.llama_name(devices.CPU)
    on_cpu: Mapping[str, bool] = {one.name: one.stand_in or one.backend_name == cpu for one in bound}
    sent_on = settings.op_offload and not all(on_cpu.values())
    kernels = {name for name in names if on_cpu.get(device_map.llama_name(name), False)}
    return frozenset(kernels - {devices.CPU} if sent_on else kernels)
