"""Which device of this machine each device name of the settings means."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ktllama.errors import DeviceError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime.device_list import BackendDevice

CPU = "CPU"

_NUMBER = re.compile(r"([0-9]+)$", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundDevice:
    """A device name of the settings and the llama.cpp device that carries it.

    ``backend_name`` is empty while a stand-in for the device has not started yet; ``stand_in`` says that the device is
    not on this machine and a CPU process plays it.
    """

    name: str
    backend_name: str
    stand_in: bool = False


def device_names(settings: LlamaSettings) -> tuple[str, ...]:
    """Every device name that the settings mention, the CPU first, each once."""
    overridden = (override.device for override in settings.tensor_overrides)
    return tuple(dict.fromkeys((CPU, *settings.devices, *overridden)))


def resolve_devices(
    settings: LlamaSettings, available: Iterable[BackendDevice], explicit: Collection[str] = ()
) -> tuple[BoundDevice, ...]:
    """Bind every device name of ``settings``: by its exact name, else to the GPU of its number, else to a stand-in.

    ``explicit`` holds the names that the user chose (``--device-map``): for those only the exact device will do.
    No two names are bound to one device.

    Raises:
        DeviceError: when a device that the user chose does not exist here.
    """
    here = tuple(available)
    names = device_names(settings)
    by_name = {device.name for device in here}
    bound = {name: BoundDevice(name=name, backend_name=name) for name in names if name in by_name}
    if missing := [name for name in names if name in explicit and name not in bound]:
        raise DeviceError(_missing_text(missing, here))
    for name in names:
        if name not in bound:
            taken = {device.backend_name for device in bound.values()}
            bound[name] = _numbered(name, here, taken) or BoundDevice(name=name, backend_name="", stand_in=True)
    return tuple(bound[name] for name in names)


def require_real(bound: Iterable[BoundDevice], available: Iterable[BackendDevice]) -> None:
    """Refuse bindings that need stand-ins.

    Raises:
        DeviceError: naming the devices that this machine lacks and those that it has.
    """
    if missing := [device.name for device in bound if device.stand_in]:
        raise DeviceError(_missing_text(missing, tuple(available)))


def _numbered(name: str, here: tuple[BackendDevice, ...], taken: set[str]) -> BoundDevice | None:
    """The N-th GPU for a name that ends in N, discrete GPUs before integrated ones as llama.cpp prefers them."""
    number = _NUMBER.search(name)
    if number is None:
        return None
    gpus = [device for kind in ("gpu", "igpu") for device in here if device.kind == kind]
    index = int(number[1])
    if index >= len(gpus) or gpus[index].name in taken:
        return None
    return BoundDevice(name=name, backend_name=gpus[index].name)


def _missing_text(missing: list[str], here: tuple[BackendDevice, ...]) -> str:
    known = ", ".join(f"{device.name} ({device.description})" for device in here)
    noun = "device" if len(missing) == 1 else "devices"
    return f"llama.cpp has no {noun} {', '.join(missing)} here; it has {known}"
