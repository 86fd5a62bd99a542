"""Overrides: from the device that each tensor must be sent to, to llama.cpp's patterns, proven."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from ktllama import devices
from ktllama.devices import DeviceMap
from ktllama.lower.base import Base
from ktllama.lower.patterns import patterns_for, prove
from ktllama.lower.settings import TensorOverride
from ktllama.model.model_file import TOKEN_EMBEDDING
from ktllama.model.modules import block_of
from ktllama.placing.ir import Placement


def overrides_for(wanted: Mapping[str, str | None], device_map: DeviceMap) -> tuple[TensorOverride, ...]:
    """Patterns that send every tensor of ``wanted`` to its device, and leave those with None alone."""
    by_device: dict[str, set[str]] = defaultdict(set)
    for name, device in wanted.items():
        if device is not None:
            by_device[device].add(name)
    pairs = [
        (pattern, device)
        for device in sorted(by_device, key=devices.order)
        for pattern in patterns_for(frozenset(by_device[device]), wanted)
    ]
    prove(pairs, wanted)
    return tuple(TensorOverride(pattern=pattern, device=device_map.llama_name(device)) for pattern, device in pairs)


def base_device(name: str, base: Base) -> str:
    """Where llama.cpp puts a tensor that nothing overrides: its block's device, or the input's or output's."""
    block = block_of(name)
    if block is not None:
        return base.layers[block]
    return devices.CPU if name == TOKEN_EMBEDDING else base.layers[-1]


def devices_without_layers(placement: Placement, base: Base) -> list[str]:
    """GPUs that hold only overridden tensors, or only prefill for the CPU."""
    used = {tensor.device for tensor in placement.tensors.values()} | set(placement.prefill_devices)
    return sorted(used - {device for device, _ in base.runs} - {devices.CPU, devices.AUTO}, key=devices.order)
