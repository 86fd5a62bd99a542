"""llama.cpp settings as one value: what every emitter prints and the runtime applies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Target = Literal["python", "llama-server", "ik_llama.cpp"]
LoadMode = Literal["auto", "none", "mmap", "mlock"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorOverride:
    """Tensors whose names ``std::regex_search`` finds ``pattern`` in go to llama.cpp's device ``device``."""

    pattern: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSettings:
    """The model and context parameters that a placement needs; names are llama.cpp's.

    ``devices`` lists llama.cpp device names, one a run of layers, and may repeat a device or name ``CPU``
    (only the runtime can pass that); an empty tuple means no device but the CPU at all.
    ``tensor_split`` holds the number of layers of each run, the output layer counted as a layer.
    ``op_offload``: large batches run host-resident operations on a GPU. ``no_host``: host weights are put in
    repacked CPU buffers instead of pinned ones. ``load_mode`` none reads the file into memory, which pinned buffers
    need; ``auto`` is llama.cpp's choice, mostly mmap.
    """

    n_gpu_layers: int
    devices: tuple[str, ...] = ()
    tensor_split: tuple[int, ...] = ()
    tensor_overrides: tuple[TensorOverride, ...] = ()
    op_offload: bool = False
    no_host: bool = True
    load_mode: LoadMode = "auto"
