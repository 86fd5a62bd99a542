"""What llama.cpp itself costs for each token beside reading weights, found with models that have next to none.

Two models of one kind that differ in their number of layers give the time of a layer's graph nodes, and what is left of
the smaller one is the token's own. Layers that alternate between the host and a device give what a crossing costs.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ktllama.errors import LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.measuring.sample_models import Shape, sample, write
from ktllama.measuring.speeds import Kind, Overheads
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.timing_session import Loaded, TimingSession

_FEW, _MANY = 3, 14  # layers; with the output 15 runs, and the host: GGML_SCHED_MAX_BACKENDS
_TOKENS, _REPETITIONS = 24, 5
_DEPTH = 8

#: Kind of model, an architecture of it, and experts a layer.
_KINDS: tuple[tuple[Kind, str, int], ...] = (
    ("mla-moe", "deepseek2", 8),
    ("gqa-moe", "qwen3moe", 8),
    ("dense", "llama", 0),
)

_SHAPES: Mapping[Kind, Shape] = {
    kind: Shape(
        architecture=architecture,
        n_layers=_FEW,
        n_embd=256,
        n_heads=4,
        n_kv_heads=2,
        head=64,
        ffn=256,
        expert_ffn=64,
        n_experts=n_experts,
        n_used=6,
        n_vocab=512,
        matrix_type="Q8_0",
        expert_type="Q8_0",
        output_type="Q8_0",
        q_rank=64,
        kv_rank=64,
        rope=32,
        context=512,
    )
    for kind, architecture, n_experts in _KINDS
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Decode of one small model: seconds a token, and what its load said."""

    seconds: float
    loaded: Loaded

    @property
    def n_nodes(self) -> int:
        """Nodes of the graph that decodes a token."""
        assert self.loaded.graph_nodes is not None
        return self.loaded.graph_nodes[1]


def time_overheads(kind: Kind, device: str, n_threads: int, folder: Path, *, stand_ins: bool = False) -> Overheads:
    """The overheads of ``kind`` on ``device`` (llama.cpp's name); models are written to ``folder``.

    Raises:
        LlamaCppError: when llama.cpp refuses a model or dies.
        DeviceError: when the device is missing and may not be stood in for.
    """
    few, many = (
        _decode(kind, n_layers, _all_on(device, n_layers), n_threads, folder, stand_ins=stand_ins)
        for n_layers in (_FEW, _MANY)
    )
    more = max(0.0, many.seconds - few.seconds)
    node = more / (many.n_nodes - few.n_nodes)
    return Overheads(node=node, token=max(0.0, few.seconds - node * few.n_nodes), layer=more / (_MANY - _FEW))


def time_crossing(device: str, n_threads: int, folder: Path, *, stand_ins: bool = False) -> float:
    """Seconds that a decoded token needs for one change between the host and ``device``.

    Raises:
        LlamaCppError: when llama.cpp refuses a model or dies.
        DeviceError: when the device is missing and may not be stood in for.
    """
    runs = [device if index % 2 else "CPU" for index in range(_MANY + 1)]
    mixed = LlamaSettings(n_gpu_layers=_MANY + 1, devices=tuple(runs), tensor_split=(1,) * len(runs))
    alternating, on_host, on_device = (
        _decode("dense", _MANY, settings, n_threads, folder, stand_ins=stand_ins)
        for settings in (mixed, _all_on("CPU", _MANY), _all_on(device, _MANY))
    )
    splits = alternating.loaded.graph_splits
    if splits is None or splits[1] < 2:
        raise LlamaCppError(f"llama.cpp made one graph of layers that alternate between the host and {device}")
    return max(0.0, alternating.seconds - (on_host.seconds + on_device.seconds) / 2) / (splits[1] - 1)


def _all_on(device: str, n_layers: int) -> LlamaSettings:
    if device == "CPU":
        return LlamaSettings(n_gpu_layers=0)
    return LlamaSettings(n_gpu_layers=n_layers + 1, devices=(device,), tensor_split=(n_layers + 1,))


def _decode(
    kind: Kind, n_layers: int, settings: LlamaSettings, n_threads: int, folder: Path, *, stand_ins: bool
) -> Sampled:
    path = folder / f"{kind}-{n_layers}.gguf"
    if not path.exists():
        write(sample(replace(_SHAPES[kind], n_layers=n_layers)), path)
    context = ContextOptions(n_ctx=256, n_batch=64, n_ubatch=64, n_threads=n_threads)
    with TimingSession(path, settings, context, stand_ins=stand_ins, cpu_bytes=0) as session:
        found = [session.measure(_DEPTH, 0, _TOKENS) for _ in range(_REPETITIONS)]
        seconds = statistics.median(one.decode_seconds / one.decode_tokens for one in found)
        return Sampled(seconds=seconds, loaded=session.loaded)
