"""The base assignment: which layers llama.cpp itself puts on which device, before any override.

With L blocks, llama.cpp gives layers ``L + 1 - n_gpu_layers`` and up to its list of devices, split by
``tensor_split``; the output layer is layer L; everything before is on the CPU (src/llama-model.cpp,
``load_tensors``). A layer's KV cache, or its recurrent state, is on its base device, whatever the overrides say. So
the base assignment follows them, and tensors that belong elsewhere are overridden.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ktllama import devices
from ktllama.placing.ir import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base assignment. ``layers`` holds the device of blocks 0 to L-1 and of the output layer, L.

    ``runs`` are the (device, layers) pairs from layer ``L + 1 - n_gpu_layers`` on; only they reach llama.cpp's list
    of devices. ``misplaced`` maps blocks whose KV cache cannot be where it was planned to the planned device.
    """

    layers: tuple[str, ...]
    runs: tuple[tuple[str, int], ...]
    misplaced: Mapping[int, str]

    @property
    def n_gpu_layers(self) -> int:
        """How many layers, the output layer counted, are not simply left on the CPU."""
        return sum(count for _, count in self.runs)

    @property
    def cpu_run_layers(self) -> frozenset[int]:
        """Layers that are on the CPU by a run of their own rather than by being left there."""
        start = len(self.layers) - self.n_gpu_layers
        return frozenset(i for i in range(start, len(self.layers)) if self.layers[i] == devices.CPU)


def exact(placement: Placement) -> Base:
    """The base assignment with every KV cache in its place and the fewest runs; CPU runs are allowed."""
    return min(_candidates(placement), key=lambda base: _cost(base, placement))


def for_command_line(placement: Placement) -> Base:
    """The nearest base assignment that llama.cpp's command line accepts: no CPU after the first GPU layer.

    A CPU layer behind a GPU layer joins the GPU run before it, with its KV cache; its weights are overridden.
    """
    wanted = exact(placement)
    if not wanted.cpu_run_layers:
        return wanted
    layers: list[str] = []
    for device in wanted.layers:
        before = layers[-1] if layers else devices.CPU
        layers.append(before if device == devices.CPU else device)
    misplaced = {layer: device for layer, device in placement.layers.items() if layers[layer] != device}
    return Base(layers=tuple(layers), runs=_runs(layers), misplaced=misplaced)


def _candidates(placement: Placement) -> list[Base]:
    """Every way to fill in the layers without a KV cache or a state: MTP blocks, and the output layer."""
    trunk = _trunk(placement)
    n_free = placement.model.n_layers - len(trunk)
    wanted_output = placement.output_device or devices.CPU
    outputs = {wanted_output} if placement.ties_output else {wanted_output, trunk[-1] if trunk else wanted_output}
    found = []
    for output in sorted(outputs, key=lambda device: device != wanted_output):
        for mtp in (trunk[-1] if trunk else output, output):
            layers = [*trunk, *[mtp] * n_free, output]
            found.append(Base(layers=tuple(layers), runs=_runs(layers), misplaced={}))
    return found


def _trunk(placement: Placement) -> list[str]:
    """The device of every layer up to the last with a place; one that the file has nothing of is where the next is."""
    trunk: list[str] = []
    for layer, device in sorted(placement.layers.items()):
        trunk += [device] * (layer + 1 - len(trunk))
    return trunk


def _runs(layers: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Runs of equal devices behind the leading CPU layers."""
    grouped = [(device, len(list(group))) for device, group in itertools.groupby(layers)]
    return tuple(grouped[1:] if grouped and grouped[0][0] == devices.CPU else grouped)


def _cost(base: Base, placement: Placement) -> tuple[int, int, bool]:
    """CPU runs and repeated devices are dearest: each is one more scheduler backend with a compute buffer."""
    run_devices = [device for device, _ in base.runs]
    n_cpu_runs = run_devices.count(devices.CPU)
    n_repeated = len(run_devices) - len(set(run_devices))
    return (n_cpu_runs, n_repeated, base.layers[-1] != placement.output_device)
