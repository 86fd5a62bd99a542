"""Where llama.cpp puts whole layers for given settings: its own arithmetic, repeated.

Source: ``llama_model_base::load_tensors`` in ``src/llama-model.cpp`` (llama-cpp-python 0.3.36). It works in 32-bit
floats, and so does this: a run boundary may hang on the last bit.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right

from ktllama.errors import LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime.device_binding import CPU


def base_devices(settings: LlamaSettings, n_layers: int) -> tuple[str, ...]:
    """The device of every block, MTP blocks included, and of the output layer as item ``n_layers``.

    A layer's KV cache lies there too, and so does each of its tensors that no override names.

    Raises:
        LlamaCppError: for several devices without ``tensor_split``, which llama.cpp would fill by free memory.
    """
    n_devices = len(settings.devices)
    n_gpu_layers = settings.n_gpu_layers if settings.n_gpu_layers >= 0 else n_layers + 1
    start = max(n_layers + 1 - n_gpu_layers, 0)
    n_active = min(n_gpu_layers, n_layers + 1) if n_devices else 0
    if not n_active:
        return (CPU,) * (n_layers + 1)
    splits = _split_points(settings)

    def device(layer: int) -> str:
        if layer < start or layer - start >= n_active:
            return CPU
        return settings.devices[bisect_right(splits, _float((layer - start) / n_active))]

    return tuple(device(layer) for layer in range(n_layers + 1))


def _split_points(settings: LlamaSettings) -> list[float]:
    """The cumulated shares of the devices, the last one 1."""
    shares = settings.tensor_split
    if len(settings.devices) == 1:
        return [1.0]
    if not any(shares):
        raise LlamaCppError("several devices without tensor_split: llama.cpp would split the layers by free memory")
    total = 0.0
    points = []
    for share in shares:
        total = _float(total + share)
        points.append(total)
    return [_float(point / total) for point in points]


def _float(value: float) -> float:
    """``value`` rounded to 32 bits."""
    return ctypes.c_float(value).value
