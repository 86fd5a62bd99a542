"""Small graphs of ggml's own operations on one device, to time what the device does with them.

Matrices lie in a buffer of a chosen type, so that what is timed are the kernels that llama.cpp uses for weights there.
Their bytes are constant: no kernel's time depends on them, as long as no number is subnormal.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from ktllama.errors import LlamaCppError
from ktllama.model.tensor_types import TENSOR_TYPES
from ktllama.runtime.device_list import extra_buffer_types, handle_of
from ktllama.runtime.library import Library, ggml_context

#: 0x2c2c is 0.065 as f16 and 2e-12 as bf16; four of them are 2e-12 as f32. None is subnormal, nor is what comes out.
_FILL = 0x2C
_MAX_TENSORS = 4096

_F32, _F16, _I32 = (TENSOR_TYPES[name].number for name in ("F32", "F16", "I32"))


class Device:
    """A device of llama.cpp that computes graphs. ``n_threads`` is for the CPU. Use it as a context manager."""

    def __init__(self, library: Library, name: str, n_threads: int) -> None:
        self.library = library
        self.name = name
        self.handle = handle_of(library, name)
        backend: int | None = library.call("ggml_backend_dev_init", self.handle, None)
        if not backend:
            raise LlamaCppError(f"llama.cpp cannot use {name}")
        self.backend = backend
        self.is_cpu = name == "CPU"
        if self.is_cpu:
            library.call("ggml_backend_cpu_set_n_threads", backend, n_threads)

    def buffer_types(self) -> dict[str, int]:
        """The buffers that weights may be in, by llama.cpp's name, the plain one first."""
        found = [self.library.call("ggml_backend_dev_buffer_type", self.handle)]
        found += extra_buffer_types(self.library, self.handle)
        return {self.library.text("ggml_backend_buft_name", one): one for one in found}

    @contextmanager
    def graph(self, buffer_type: int | None = None) -> Iterator[Graph]:
        """An empty graph, whose weights lie in buffers of ``buffer_type`` (None: the device's own)."""
        with ggml_context(self.library, _MAX_TENSORS) as weights, ggml_context(self.library, _MAX_TENSORS) as others:
            made = Graph(self, weights, others, buffer_type)
            try:
                yield made
            finally:
                made.free()

    def close(self) -> None:
        """Free what computes."""
        self.library.call("ggml_backend_free", self.backend)

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Graph:
    """Operations in a row. Make tensors and operations, then :meth:`prepare` once, then :meth:`seconds`."""

    def __init__(self, device: Device, weights: int, others: int, buffer_type: int | None) -> None:
        self._device = device
        self._call = device.library.call
        self._weights = weights
        self._others = others
        own = self._call("ggml_backend_dev_buffer_type", device.handle)
        self._types = {weights: buffer_type or own, others: own}
        self._buffers: list[int] = []
        self._filled: list[int] = []
        self._nodes: list[int] = []
        self._n_weights = 0
        self._result = ctypes.c_float()
        self._staged: dict[int, ctypes.Array[ctypes.c_uint8]] = {}
        self._ids: list[tuple[int, list[int]]] = []
        self._graph: int = self._call("ggml_new_graph_custom", others, _MAX_TENSORS, False)

    def weight(self, type_name: str, *shape: int) -> int:
        """A matrix, or several stacked; ``shape`` begins with the contiguous dimension."""
        return self._tensor(self._weights, TENSOR_TYPES[type_name].number, shape)

    def activations(self, *shape: int) -> int:
        """A tensor of floats."""
        return self._tensor(self._others, _F32, shape)

    def cache(self, type_name: str, *shape: int) -> int:
        """Keys or values of a KV cache."""
        return self._tensor(self._others, TENSOR_TYPES[type_name].number, shape)

    def mask(self, *shape: int) -> int:
        """An attention mask."""
        return self._tensor(self._others, _F16, shape)

    def chosen(self, experts: Sequence[int], n_tokens: int) -> int:
        """The experts that every one of ``n_tokens`` tokens uses."""
        n_used = len(experts) // n_tokens
        made: int = self._call("ggml_new_tensor_4d", self._others, _I32, n_used, n_tokens, 1, 1)
        self._ids.append((made, list(experts)))
        return made

    def multiply(self, weight: int, activations: int) -> int:
        """``weight`` times ``activations``."""
        return self._node(self._call("ggml_mul_mat", self._others, weight, activations))

    def multiply_chosen(self, experts: int, activations: int, ids: int) -> int:
        """Of stacked ``experts`` those that ``ids`` name, times ``activations``."""
        return self._node(self._call("ggml_mul_mat_id", self._others, experts, activations, ids))

    def add(self, one: int, other: int) -> int:
        """The sum of two tensors."""
        return self._node(self._call("ggml_add", self._others, one, other))

    def attend(self, query: int, keys: int, values: int, mask: int) -> int:
        """Attention in one operation."""
        return self._node(self._call("ggml_flash_attn_ext", self._others, query, keys, values, mask, 0.1, 0.0, 0.0))

    def prepare(self) -> bool:
        """Allocate and fill everything; False where the device has no memory, or no kernels for such weights there."""
        for context, kind in self._types.items():
            if context == self._weights and not self._n_weights:
                continue
            buffer: int | None = self._call("ggml_backend_alloc_ctx_tensors_from_buft", context, kind)
            if not buffer:
                return False
            self._buffers.append(buffer)
        if not all(self._call("ggml_backend_dev_supports_op", self._device.handle, node) for node in self._nodes):
            return False
        for tensor in self._filled:
            self._fill(tensor)
        for tensor, numbers in self._ids:
            values = (ctypes.c_int32 * len(numbers))(*numbers)
            self._call("ggml_backend_tensor_set", tensor, ctypes.addressof(values), 0, ctypes.sizeof(values))
        return True

    def seconds(self) -> float:
        """Time to compute the whole graph once."""
        backend = self._device.backend
        started = time.perf_counter()
        status = self._call("ggml_backend_graph_compute", backend, self._graph)
        # reading waits for what was queued before, also on another machine, where synchronize does not
        self._call("ggml_backend_tensor_get", self._nodes[-1], ctypes.addressof(self._result), 0, 4)
        took = time.perf_counter() - started
        if status != 0:
            raise LlamaCppError(f"{self._device.name} could not compute a graph (status {status})")
        return took

    def write(self, tensor: int) -> None:
        """Copy a tensor's bytes from the host to the device, as many as it has."""
        data = self._staging(tensor)
        self._call("ggml_backend_tensor_set", tensor, ctypes.addressof(data), 0, ctypes.sizeof(data))
        self._call("ggml_backend_synchronize", self._device.backend)

    def free(self) -> None:
        """Give the memory back."""
        for buffer in self._buffers:
            self._call("ggml_backend_buffer_free", buffer)
        self._buffers = []

    def _tensor(self, context: int, number: int, shape: Sequence[int]) -> int:
        sizes = (*shape, 1, 1, 1)[:4]
        made: int = self._call("ggml_new_tensor_4d", context, number, *sizes)
        self._filled.append(made)
        self._n_weights += context == self._weights
        return made

    def _node(self, made: int) -> int:
        self._nodes.append(made)
        self._call("ggml_build_forward_expand", self._graph, made)
        return made

    def _fill(self, tensor: int) -> None:
        """Constant bytes; a whole tensor at once, as repacking wants it."""
        n_bytes = int(self._call("ggml_nbytes", tensor))
        data = (ctypes.c_uint8 * n_bytes)()
        ctypes.memset(data, _FILL, n_bytes)
        self._call("ggml_backend_tensor_set", tensor, ctypes.addressof(data), 0, n_bytes)

    def _staging(self, tensor: int) -> ctypes.Array[ctypes.c_uint8]:
        """Host memory for a copy of a tensor, made once."""
        if tensor not in self._staged:
            self._staged[tensor] = (ctypes.c_uint8 * int(self._call("ggml_nbytes", tensor)))()
            ctypes.memset(self._staged[tensor], _FILL, ctypes.sizeof(self._staged[tensor]))
        return self._staged[tensor]
