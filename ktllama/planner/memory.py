"""What a plan takes of every device's memory: tensors by arithmetic, KV caches where llama.cpp put them, its buffers.

Tensors are padded as llama.cpp pads them: each to the alignment of its buffer type
(``ggml_backend_alloc_ctx_tensors_from_buft`` in ``ggml/src/ggml-alloc.c``), and with CUDA quantized rows to 512 values
at the tensor's end (``ggml_backend_cuda_buffer_type_get_alloc_size`` in ``ggml/src/ggml-cuda/ggml-cuda.cu``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ktllama import devices
from ktllama.explaining.kinds import row_of
from ktllama.model.model_file import TOKEN_EMBEDDING, ModelFile, Tensor
from ktllama.model.tensor_types import TENSOR_TYPES, padded
from ktllama.placing.ir import Placement
from ktllama.placing.place import PER_LAYER_TENSORS
from ktllama.runtime.dry_run import DryRun

_HOST_ALIGNMENT = 32  # TENSOR_ALIGNMENT in ggml/src/ggml-impl.h
_GPU_ALIGNMENT = 128  # ggml_backend_cuda_buffer_type_get_alignment; others align to as much or less
_F32_BYTES = 4
_GPU_ROW_VALUES = 512  # MATRIX_ROW_PADDING

#: What weights are called in a plan, by the row in which ``explain`` draws them.
_KINDS: Mapping[str, str] = {
    "embedding": "embedding",
    "attention": "attention",
    "router": "norms and router",
    "attention-norm": "norms and router",
    "ffn-norm": "norms and router",
    "shared-experts": "shared experts",
    "routed-experts": "routed experts",
    "dense-ffn": "dense FFN",
    "norm": "norms and router",
    "output": "output",
}
KINDS = (
    "routed experts", "shared experts", "attention", "dense FFN", "norms and router", "embedding", "output", "other",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """One device's memory in bytes. ``budget`` None is without limit.

    ``weights`` is by kind (:data:`KINDS`), ``kv`` the caches and recurrent states, ``compute`` what llama.cpp's dry run
    said, and ``streaming`` what a real GPU needs besides where a stand-in was asked: a copy of the largest tensor that
    is streamed to it.
    """

    device: str
    budget: int | None
    margin: int
    weights: Mapping[str, int]
    kv: int
    compute: int
    streaming: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """What is there in bytes, by name and in order: the kinds of weights, and what llama.cpp needs beside them."""
        weights = {kind: self.weights.get(kind, 0) for kind in KINDS}
        return {**weights, "KV cache": self.kv, "compute buffer": self.compute, "streaming": self.streaming}

    @property
    def used(self) -> int:
        """Everything but the margin."""
        return sum(self.weights.values()) + self.kv + self.compute + self.streaming

    @property
    def fits(self) -> bool:
        """Whether the margin is left; a device that holds nothing needs none."""
        return self.free is None or self.free >= 0 or not self.used

    @property
    def free(self) -> int | None:
        """What is left beside the margin; negative where the plan does not fit."""
        return None if self.budget is None else self.budget - self.margin - self.used


def stored_bytes(tensor: Tensor, device: str) -> int:
    """Bytes that ``tensor`` takes in the memory of a canonical rule device."""
    if device == devices.CPU:
        return padded(tensor.n_bytes, _HOST_ALIGNMENT)
    known = TENSOR_TYPES[tensor.type]
    n_bytes, missing = tensor.n_bytes, -tensor.shape[0] % _GPU_ROW_VALUES
    if known.block_items > 1 and missing:
        n_bytes += missing // known.block_items * known.block_bytes
    return padded(n_bytes, _GPU_ALIGNMENT)


def weight_bytes(placement: Placement) -> dict[str, dict[str, int]]:
    """Bytes of loaded tensors by device and kind, with the copy that a tied output is."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    tensors = {tensor.name: tensor for tensor in placement.model.tensors}
    kinds: dict[str | None, str] = {}
    for name, placed in placement.tensors.items():
        if not placed.loaded:
            continue
        kind = kinds.get(placed.module) or kinds.setdefault(placed.module, _KINDS.get(row_of(placed.module), KINDS[-1]))
        # llama.cpp gives a copy of these to every device that has layers
        where = set(placement.layers.values()) if name in PER_LAYER_TENSORS else {placed.device}
        for device in where:
            found[device][kind] += stored_bytes(tensors[name], device)
    output = placement.output_device
    if placement.ties_output and output not in (None, devices.CPU):
        assert output is not None
        found[output]["output"] += stored_bytes(tensors[TOKEN_EMBEDDING], output)
    return {device: dict(by_kind) for device, by_kind in found.items()}


def padding_bytes(placement: Placement) -> int:
    """At most this many bytes are lost to padding on any GPU."""
    return sum(stored_bytes(tensor, "cuda:0") - tensor.n_bytes for tensor in placement.model.tensors)


def streamed_bytes(placement: Placement) -> int:
    """Bytes of the largest tensor that a GPU copies from the host to use it.

    The scheduler starts a new split, whose memory it can use again, with every such tensor
    (``ggml_backend_sched_split_graph`` in ``ggml/src/ggml-backend.cpp``), so one copy is there at a time.
    """
    tensors = {tensor.name: tensor for tensor in placement.model.tensors}
    return max(
        (
            stored_bytes(tensors[name], placement.prefill_devices[0])
            for name, placed in placement.tensors.items()
            if placed.prefill_device is not None and len(tensors[name].shape) > 1
        ),
        default=0,
    )


def handover_bytes(done: DryRun, model: ModelFile, n_ubatch: int) -> dict[str, int]:
    """What a dry run counts too much on devices that take over from another, by the settings' names of devices.

    llama.cpp's builder puts the first norm of a layer on the layer's device; the dry run resets that
    (``ggml_backend_sched_reserve_size`` in ``ggml/src/ggml-backend.cpp``), so besides the activations their norm is
    handed over too. With pipeline parallelism inputs are kept, in copies, so they are too much to the byte; without it
    they are freed, and what remains of the difference is not known.
    """
    if done.log.sched_copies < 2:
        return {}
    each = done.log.sched_copies * n_ubatch * model.integer("embedding_length") * _F32_BYTES
    found: dict[str, int] = {}
    for layer in sorted(done.layers)[1:-1]:  # the last is the output
        device = done.layers[layer]
        if device != done.layers[layer - 1]:
            found[device] = found.get(device, 0) + each
    return {device: n_bytes for device, n_bytes in found.items() if n_bytes < done.compute_bytes.get(device, 0)}
