"""This machine's memories, as llama.cpp and the host say them."""

from __future__ import annotations

from collections.abc import Set
from itertools import count

from ktllama.devices import DeviceMap
from ktllama.errors import DeviceError
from ktllama.planner.budgets import Detected, host_memory
from ktllama.runtime.device_list import BackendDevice, available

#: llama.cpp's families of devices → what rules call them.
_RULE_KINDS = {"CUDA": "cuda", "ROCm": "cuda", "Vulkan": "cuda", "MUSA": "cuda", "SYCL": "xpu", "CANN": "npu"}


def detect(device_map: DeviceMap) -> Detected:
    """The GPUs of this llama.cpp build with the memory that is free on them, and the host's memory.

    Raises:
        BudgetError: when the host does not say how much memory it has.
        LlamaCppError: when llama.cpp is missing.
    """
    chosen = {llama: rule for rule, llama in device_map.chosen.items()}
    taken = set(device_map.chosen)
    vram: dict[str, int] = {}
    descriptions: dict[str, str] = {}
    names: dict[str, str] = {}
    for device in _gpus():
        name = chosen.get(device.name) or _free_name(_RULE_KINDS.get(device.backend, "cuda"), taken)
        assert name not in vram, name
        taken.add(name)
        vram[name], descriptions[name], names[name] = device.memory_free, device.description, device.name
    return Detected(vram=vram, descriptions=descriptions, ram=host_memory(), llama_names=names)


def device_map_of(detected: Detected, device_map: DeviceMap) -> DeviceMap:
    """``device_map`` with the detected GPUs in it that llama.cpp calls otherwise than it would be guessed.

    Raises:
        DeviceError: when a device of the map is not there.
    """
    missing = sorted(set(device_map.chosen.values()) - set(detected.llama_names.values()))
    if missing:
        raise DeviceError(f"--device-map: llama.cpp has no {missing[0]} here")
    plain = DeviceMap()
    renamed = {rule: llama for rule, llama in detected.llama_names.items() if plain.llama_name(rule) != llama}
    return DeviceMap(chosen={**renamed, **device_map.chosen})


def _free_name(kind: str, taken: Set[str]) -> str:
    """The first of a kind's names that neither the map gives to another device nor one before has."""
    return next(name for number in count() if (name := f"{kind}:{number}") not in taken)


def _gpus() -> list[BackendDevice]:
    """GPUs with memory of their own, in llama.cpp's order; integrated ones only where there is nothing else."""
    here = [device for device in available() if device.memory_free > 0]
    return [device for device in here if device.kind == "gpu"] or [device for device in here if device.kind == "igpu"]
