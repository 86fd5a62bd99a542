"""Device names as rules write them (``cpu``, ``cuda``, ``cuda:1``, ``xpu:0``, ``auto``) and as llama.cpp does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ktllama.errors import DeviceError

CPU = "cpu"
AUTO = "auto"

#: What each kind of device in a rule is called by llama.cpp when nothing else is said.
LLAMA_PREFIXES: Mapping[str, str] = {"cuda": "CUDA", "xpu": "SYCL", "npu": "CANN"}

_RULE_DEVICE = re.compile(r"(cpu|auto|cuda|xpu|npu)(?::(0|[1-9][0-9]{0,3}))?", re.ASCII)
_LLAMA_DEVICE = re.compile(r"[A-Za-z][A-Za-z_]*[0-9]*(?:\[[^\s,=\[\]]+\])?", re.ASCII)


def canonical(name: str) -> str:
    """``cuda`` → ``cuda:0``; ``cpu`` and ``auto`` stay.

    Raises:
        ValueError: for anything that is no device name.
    """
    found = _RULE_DEVICE.fullmatch(name)
    if found is None:
        raise ValueError(name)
    kind, number = found.group(1), found.group(2)
    if kind in (CPU, AUTO):
        if number not in (None, "0") or (kind == AUTO and number is not None):
            raise ValueError(name)
        return kind
    return f"{kind}:{number or 0}"


def order(name: str) -> tuple[bool, str, int]:
    """Sort key: GPUs by kind and number, the CPU last."""
    kind, _, number = name.partition(":")
    return (kind == CPU, kind, int(number or 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMap:
    """From device names of rules to device names of llama.cpp. ``chosen`` holds what the user said."""

    chosen: Mapping[str, str] = field(default_factory=dict)

    def llama_name(self, device: str) -> str:
        """llama.cpp's name of a canonical device, e.g. ``cuda:1`` → ``CUDA1``; ``auto`` has none and stays."""
        if device in self.chosen:
            return self.chosen[device]
        if device in (CPU, AUTO):
            return "CPU" if device == CPU else AUTO
        kind, _, number = device.partition(":")
        return f"{LLAMA_PREFIXES[kind]}{number}"


def parse_device_map(pairs: Iterable[str]) -> DeviceMap:
    """Read ``cuda:0=Vulkan1`` pairs.

    Raises:
        DeviceError: for a pair of another shape, a device named twice, or two devices on one.
    """
    chosen: dict[str, str] = {}
    for pair in pairs:
        rule_name, equals, llama_name = pair.partition("=")
        try:
            device = canonical(rule_name)
        except ValueError:
            raise DeviceError(
                f"--device-map {pair!r}: '{rule_name}' is no device of a rule; expected cpu, cuda:N, xpu:N or npu:N"
            ) from None
        if device in (CPU, AUTO):
            raise DeviceError(f"--device-map {pair!r}: '{device}' cannot be mapped")
        if not equals or not _LLAMA_DEVICE.fullmatch(llama_name):
            raise DeviceError(f"--device-map {pair!r}: expected RULE_DEVICE=LLAMA_DEVICE, for example cuda:0=Vulkan1")
        if llama_name.upper() == "CPU":
            raise DeviceError(f"--device-map {pair!r}: the CPU is no GPU; write cpu in the rules instead")
        if device in chosen:
            raise DeviceError(f"--device-map: '{device}' is mapped twice, to {chosen[device]} and {llama_name}")
        if llama_name in chosen.values():
            raise DeviceError(f"--device-map: two devices are mapped to {llama_name}")
        chosen[device] = llama_name
    return DeviceMap(chosen=chosen)
