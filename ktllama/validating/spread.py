"""Placements without a rule file: all on the CPU, or the layers spread evenly over some devices."""

from __future__ import annotations

from ktllama import devices
from ktllama.errors import DeviceError
from ktllama.model import gguf
from ktllama.ruleset import loader
from ktllama.ruleset.rules import Ruleset
from ktllama.translation import Options, Translation, translate
from ktllama.units import counted


def placed(rules: str | None, spread: str | None, model: str, options: Options) -> Translation:
    """The model at ``model`` under a rule file, spread over devices (``cuda:0,cuda:1,cpu``), or on the CPU.

    Raises:
        DeviceError: for a list with what is no device, or more devices than layers.
        KtllamaError: as :func:`ktllama.translation.translate` does.
    """
    if rules is not None:
        return translate(rules, model, options=options)
    read = gguf.read(model)
    made = on_the_cpu() if spread is None else over(spread, read.n_layers)
    return translate(made, read, options=options)


def on_the_cpu() -> Ruleset:
    """Rules that put everything on the CPU."""
    return loader.loads(_rule("", devices.CPU), "none (all on the CPU)")


def over(spread: str, n_layers: int) -> Ruleset:
    """Rules that give each of the devices an equal run of layers; what follows the layers is with the last.

    Raises:
        DeviceError: for a list with what is no device, or more devices than layers.
    """
    names = _names(spread)
    if len(names) > n_layers:
        raise DeviceError(f"--devices {spread!r}: {len(names)} devices for {counted(n_layers, 'layer')}")
    bounds = [round(index * n_layers / len(names)) for index in range(len(names) + 1)]
    listed = []
    for device, first, end in zip(names[:-1], bounds, bounds[1:], strict=False):
        layers = "|".join(str(layer) for layer in range(first, end))
        listed.append(_rule(rf"^model\.layers\.({layers})(\.|$)", device))
    return loader.loads("".join([*listed, _rule("", names[-1])]), f"--devices {spread}")


def _names(spread: str) -> list[str]:
    names = []
    for name in spread.split(","):
        try:
            names.append(devices.canonical(name.strip()))
        except ValueError:
            names.append(devices.AUTO)
        if names[-1] == devices.AUTO:
            raise DeviceError(f"--devices {spread!r}: {name!r} is no device; expected cpu, cuda:N, xpu:N or npu:N")
    return names


def _rule(name: str, device: str) -> str:
    kwargs = f"{{generate_device: '{device}', prefill_device: '{device}'}}"
    return f"- match: {{name: '{name}'}}\n  replace: {{class: default, kwargs: {kwargs}}}\n"
