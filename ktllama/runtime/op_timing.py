"""What a device needs for the operations that tokens are made of, timed with ggml's own graphs.

Every figure is of the fastest of some runs after one that does not count: a machine may be disturbed, and never is
faster than it is. Matrices together are several times as large as the
last cache, as a model's weights are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ktllama.model.tensor_types import tensor_bytes
from ktllama.runtime.op_graphs import Device, Graph

#: A matrix of an attention or a small FFN: rows of K values, N of them; and one of an expert.
_ROW, _ROWS, _EXPERT_ROWS = 2048, 2048, 768
_N_EXPERTS, _N_USED = 16, 4
_PREFILL_TOKENS, _PREFILL_MATRICES = 128, 2
_CACHES = 4  # working set, in sizes of the last cache
_MIN_BYTES, _MAX_BYTES = 48 << 20, 512 << 20
_RUNS, _SLOW_RUNS = 7, 3
_COPIED_ROWS = 4096
_KV_TOKENS = 4096

#: Query heads, KV heads, values of a key and of a value: grouped queries with heads of two sizes, since a head costs
#: something whatever its size, and MLA's one latent head.
HEADS = {"gqa": (16, 4, 128, 128), "gqa-64": (16, 4, 64, 64), "mla": (16, 1, 576, 512)}


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixTimes:
    """Weights of one type in one kind of buffer: seconds a byte that decode reads of whole matrices and of chosen
    experts, and operations a second in prefill. None where the device has no kernel for it."""

    buffer: str
    decode: float
    experts: float | None
    prefill_flops: float


def time_matrices(device: Device, type_name: str) -> list[MatrixTimes]:
    """One entry for each kind of buffer that the device can multiply weights of ``type_name`` in."""
    found = []
    for name, buffer_type in device.buffer_types().items():
        decode = _decode_seconds(device, buffer_type, type_name)
        prefill = None if decode is None else _prefill_flops(device, buffer_type, type_name)
        if decode is None or prefill is None:
            continue
        experts = _experts_seconds(device, buffer_type, type_name)
        found.append(MatrixTimes(buffer=name, decode=decode, experts=experts, prefill_flops=prefill))
    return found


def time_attention(device: Device, type_name: str, kind: str) -> float | None:
    """Seconds an operation (multiply or add) of one token's attention over a long KV cache; None without a kernel."""
    heads, kv_heads, key, value = HEADS[kind]

    def build(graph: Graph) -> None:
        for _ in range(2):
            graph.attend(
                graph.activations(key, 1, heads),
                graph.cache(type_name, key, _KV_TOKENS, kv_heads),
                graph.cache(type_name, value, _KV_TOKENS, kv_heads),
                graph.mask(_KV_TOKENS, 64),
            )

    seconds = _fastest(device, None, build, _RUNS)
    return None if seconds is None else seconds / (2 * 2 * heads * (key + value) * _KV_TOKENS)


def time_copy(device: Device) -> float:
    """Bytes a second from host memory to the device."""
    with device.graph() as graph:
        large = graph.activations(_ROW, _COPIED_ROWS)
        graph.add(large, large)
        if not graph.prepare():
            return 0.0

        def copy() -> float:
            started = time.perf_counter()
            graph.write(large)
            return time.perf_counter() - started

        copy()
        seconds = min(copy() for _ in range(_SLOW_RUNS))
    return 4 * _ROW * _COPIED_ROWS / seconds


def last_cache_bytes(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """The size of this machine's largest cache, 0 where the system does not say."""
    sizes = [0]
    for path in caches.glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text[:-1].isdecimal() and text[-1:] in "KM":
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20}[text[-1]])
    return max(sizes)


def _working_bytes() -> int:
    return min(max(_CACHES * last_cache_bytes(), _MIN_BYTES), _MAX_BYTES)


def _decode_seconds(device: Device, buffer_type: int, type_name: str) -> float | None:
    n_bytes = tensor_bytes(type_name, (_ROW, _ROWS))
    n = max(1, _working_bytes() // n_bytes)

    def build(graph: Graph) -> None:
        one = graph.activations(_ROW, 1)
        for _ in range(n):
            graph.multiply(graph.weight(type_name, _ROW, _ROWS), one)

    seconds = _fastest(device, buffer_type, build, _RUNS)
    return None if seconds is None else seconds / (n * n_bytes)


def _experts_seconds(device: Device, buffer_type: int, type_name: str) -> float | None:
    n_bytes = tensor_bytes(type_name, (_ROW, _EXPERT_ROWS, _N_USED))
    n = max(1, _working_bytes() // (2 * n_bytes))

    def build(graph: Graph) -> None:
        one = graph.activations(_ROW, 1, 1)
        ids = graph.chosen([expert * _N_EXPERTS // _N_USED for expert in range(_N_USED)], 1)
        for _ in range(n):
            graph.multiply_chosen(graph.weight(type_name, _ROW, _EXPERT_ROWS, _N_EXPERTS), one, ids)

    seconds = _fastest(device, buffer_type, build, _RUNS)
    return None if seconds is None else seconds / (n * n_bytes)


def _prefill_flops(device: Device, buffer_type: int, type_name: str) -> float | None:
    def build(graph: Graph) -> None:
        many = graph.activations(_ROW, _PREFILL_TOKENS)
        for _ in range(_PREFILL_MATRICES):
            graph.multiply(graph.weight(type_name, _ROW, _ROWS), many)

    seconds = _fastest(device, buffer_type, build, _SLOW_RUNS)
    return None if seconds is None else 2 * _PREFILL_MATRICES * _PREFILL_TOKENS * _ROW * _ROWS / seconds


def _fastest(device: Device, buffer_type: int | None, build: Callable[[Graph], None], n_runs: int) -> float | None:
    with device.graph(buffer_type) as graph:
        build(graph)
        if not graph.prepare():
            return None
        graph.seconds()
        return min(graph.seconds() for _ in range(n_runs))
