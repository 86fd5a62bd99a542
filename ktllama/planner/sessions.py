"""The dry runs of a plan: started as soon as the devices are known, since most of one is llama.cpp's start."""

from __future__ import annotations

from ktllama.devices import DeviceMap
from ktllama.planner.machine import Machine
from ktllama.runtime.dry_run_session import DryRunSession


def start(machine: Machine, device_map: DeviceMap, *, here: bool = True) -> DryRunSession:
    """A session over the GPUs of ``machine``; close it.

    Those that the map names must exist where the machine is the one that is ``here``; else the CPU stands in for them
    as it does for any other that is missing.

    Raises:
        LlamaCppError: when llama.cpp is missing or is another version.
    """
    names = [device_map.llama_name(gpu.name) for gpu in machine.gpus]
    return DryRunSession(names, explicit_devices=tuple(device_map.chosen.values()) if here else ())
