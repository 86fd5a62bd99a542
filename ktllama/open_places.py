"""Rules that leave a place open: only ``ktllama plan`` decides it, so elsewhere each is an error with the command to
run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ktllama import devices
from ktllama.devices import DeviceMap
from ktllama.diagnostics import Diagnostic
from ktllama.lower import emit
from ktllama.ruleset.rules import Ruleset
from ktllama.units import size_word

#: Where the planned rules go, in the command that is proposed.
_OUTPUT = "planned.yaml"


def check_open(
    ruleset: Ruleset, model_words: tuple[str, ...], device_map: DeviceMap, budgets: Mapping[str, int]
) -> Iterator[Diagnostic]:
    """A finding for every rule that says ``auto``; the first says what to run.

    ``model_words`` are the options that name the model on a command line.
    """
    told = False
    for rule in ruleset.rules:
        if devices.AUTO not in (rule.generate_device, rule.prefill_device):
            continue
        message = "'auto' leaves this place to the planner too"
        if not told:
            command = " ".join(map(emit.shell_word, _words(ruleset.file, model_words, device_map, budgets)))
            message = f"'auto' leaves the place to the planner: `{command}` decides it; or name a device"
        told = True
        position = rule.position("replace.kwargs.generate_device")
        yield Diagnostic(code="auto-device", severity="error", message=message, position=position)


def _words(file: str, model_words: tuple[str, ...], device_map: DeviceMap, budgets: Mapping[str, int]) -> Iterator[str]:
    yield from ("ktllama", "plan", "--rules", file, *model_words)
    gpus = [f"{device}={size_word(n_bytes)}" for device, n_bytes in budgets.items() if device != devices.CPU]
    yield from ("--vram", ",".join(gpus) or "detected")
    host = budgets.get(devices.CPU)
    yield from ("--ram", "detected" if host is None else size_word(host))
    for pair in device_map.chosen.items():
        yield from ("--device-map", "=".join(pair))
    yield from ("-o", _OUTPUT)
