"""llama.cpp's ``llama-fit-params``: what it fits to smaller cards than there are, and what it says a placement takes.

Its devices are stand-ins over RPC, which report the host's memory as free. A card of ``budget`` bytes is emulated by
the margin that must stay free of that: free − budget + margin. A budget larger than the host makes it negative, which
the tool takes too (``std::stoull`` and the product wrap, and it reads that as ``int64_t``; ``common/arg.cpp`` and
``common/fit.cpp``).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ktllama.lower.settings import LlamaSettings, TensorOverride
from ktllama.runtime.context_options import ContextOptions

MIB = 1 << 20
_SECONDS = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class FitParams:
    """The tool at ``path``, with stand-ins served at ``endpoint``, for the file ``model``."""

    path: str
    endpoint: str
    model: Path

    def fit(self, budgets: Sequence[int], margin: int, context: ContextOptions, n_layers: int) -> LlamaSettings | None:
        """The settings that it finds for cards of ``budgets`` bytes; None where it fails or takes too long."""
        said = _said(self.command(budgets, margin, context))
        line = next((line for line in reversed(said.splitlines()) if line.startswith("-c ")), None)
        return None if line is None else _settings(shlex.split(line), len(budgets), n_layers)

    def command(self, budgets: Sequence[int], margin: int, context: ContextOptions) -> list[str]:
        """The command that fits."""
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        targets = ",".join(str(-((budget - margin - free) // MIB)) for budget in budgets)
        devices = ",".join(f"RPC{index}" for index in range(len(budgets)))
        return [*self._words(context), "--device", devices, "--fit-target", targets]

    def accounted(self, settings: LlamaSettings, context: ContextOptions) -> dict[str, int]:
        """MiB by device of ``settings`` (tensors, caches and compute buffers, each rounded down), by its print."""
        said = _said([*self._words(context), *self._placed_words(settings), "--fit-print", "on"])
        rows = [line.split() for line in said.splitlines() if re.fullmatch(r"(RPC\d+|Host)( \d+){3} ?", line)]
        return {_named(name): sum(map(int, sizes)) for name, *sizes in rows}

    def _placed_words(self, settings: LlamaSettings) -> Iterator[str]:
        assert "CPU" not in settings.devices
        yield from ("--n-gpu-layers", str(settings.n_gpu_layers))
        yield from ("--device", ",".join(device.replace("CUDA", "RPC") for device in settings.devices) or "none")
        if len(settings.devices) > 1:
            yield from ("--tensor-split", ",".join(map(str, settings.tensor_split)))
        if settings.tensor_overrides:
            yield "--override-tensor"
            yield ",".join(f"{one.pattern}={self._buffer(one.device)}" for one in settings.tensor_overrides)

    def _buffer(self, device: str) -> str:
        return f"{device.replace('CUDA', 'RPC')}[{self.endpoint}]" if device.startswith("CUDA") else device

    def _words(self, context: ContextOptions) -> list[str]:
        return [
            *(self.path, "--model", str(self.model), "--rpc", self.endpoint),
            *("--ctx-size", str(context.n_ctx), "--batch-size", str(context.n_batch)),
            *("--ubatch-size", str(context.n_ubatch), "--flash-attn", context.flash_attn),
        ]


def _said(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS).stdout
    except subprocess.TimeoutExpired:
        return ""


def _settings(words: Sequence[str], n_gpus: int, n_layers: int) -> LlamaSettings:
    """What ``-ngl N -ts A,B -ot PATTERN=BUFFER,…`` is; without a split layers go evenly to devices that are alike."""
    said = dict(zip(words[::2], words[1::2], strict=True))
    n_gpu_layers = int(said["-ngl"])
    overrides = [word.rpartition("=") for word in said.get("-ot", "").split(",") if word]
    split = [int(count) for count in said["-ts"].split(",")] if "-ts" in said else [1] * n_gpus
    return LlamaSettings(
        n_gpu_layers=n_layers + 1 if n_gpu_layers < 0 else n_gpu_layers,
        devices=tuple(f"CUDA{index}" for index in range(n_gpus)),
        tensor_split=(*split, *[0] * (n_gpus - len(split))),  # zeros at the end are left out
        tensor_overrides=tuple(
            TensorOverride(pattern=pattern, device=_named(buffer)) for pattern, _, buffer in overrides
        ),
    )


def _named(buffer: str) -> str:
    """``RPC1[…]`` → ``CUDA1``, as the same stand-in is called in a dry run."""
    return re.sub(r"^RPC(\d+)(\[.*)?$", r"CUDA\1", buffer).replace("Host", "CPU")
