"""Measured speeds for a plan: which of them, and whether there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ktllama.devices import DeviceMap
from ktllama.errors import KtllamaError
from ktllama.measuring import cache
from ktllama.measuring.machine import best_threads, measured_machine
from ktllama.measuring.speeds import Speeds
from ktllama.model.model_file import ModelFile
from ktllama.planner.machine import Machine
from ktllama.planner.wishes import ContextWishes
from ktllama.units import counted


class NotMeasuredError(KtllamaError):
    """Measured speeds were asked for and this machine has none, or none with so many threads; ``path`` is where they
    would be."""

    def __init__(self, path: str, n_threads: int | None = None) -> None:
        self.path = path
        self.n_threads = n_threads
        super().__init__(path, n_threads)

    def __str__(self) -> str:
        if self.n_threads is not None:
            return (
                f"this machine's speeds were not measured with {counted(self.n_threads, 'thread')} yet (they are not "
                f"in {self.path}): ktllama tune --threads {self.n_threads} measures them"
            )
        return f"this machine's speeds were not measured yet (there is no {self.path}): ktllama tune measures them"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSpeeds:
    """What a planner calls once it has the model. ``device_map`` gives llama.cpp's names of the GPUs.

    Where the wishes name no threads, those that decode fastest are taken.
    """

    speeds: Speeds
    device_map: DeviceMap = field(default_factory=DeviceMap)

    def __call__(self, model: ModelFile, machine: Machine, wishes: ContextWishes) -> tuple[Machine, ContextWishes]:
        """The machine with measured speeds, and the wishes with threads."""
        n_threads = wishes.n_threads or best_threads(self.speeds, model)
        if n_threads is None:
            return machine, wishes
        return self.of(model, machine, wishes, n_threads), replace(wishes, n_threads=n_threads)

    def of(self, model: ModelFile, machine: Machine, wishes: ContextWishes, n_threads: int) -> Machine:
        """The machine with the speeds of ``n_threads`` threads, or of the nearest number that was measured."""
        known = self.speeds.threads_of("CPU")
        nearest = min(known, key=lambda n: abs(n - n_threads), default=n_threads)
        names = {gpu.name: self.device_map.llama_name(gpu.name) for gpu in machine.gpus}
        found = measured_machine(machine, self.speeds, model, nearest, llama_names=names, kv_type=wishes.kv_type)
        return replace(found, measured_threads=nearest) if found.measured and nearest != n_threads else found


def kept(environment: Mapping[str, str]) -> tuple[Path, Speeds | None]:
    """This machine's file of speeds, and what is in it.

    Raises:
        SpeedsFileError: when it cannot be read.
        LlamaCppError: when llama-cpp-python is missing or does not load.
    """
    path = cache.path_of(cache.hardware(), cache.directory(environment))
    return path, cache.read(path)
