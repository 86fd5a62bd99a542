"""A machine whose speeds are those that were measured, where they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ktllama.measuring.measure import ATTENTION, CPU
from ktllama.measuring.speeds import DeviceSpeeds, Kind, Overheads, Speeds
from ktllama.model.kv_cache import is_mla
from ktllama.model.model_file import TOKEN_EMBEDDING, ModelFile
from ktllama.planner.machine import Machine, Processor
from ktllama.runtime.op_timing import HEADS, MatrixTimes

#: llama.cpp's name for host buffers whose weights were repacked for faster kernels.
_REPACKED = "CPU_REPACK"


def kind_of(model: ModelFile) -> Kind:
    """Which of the measured kinds of model this one is like."""
    if not model.integer("expert_count"):
        return "dense"
    return "mla-moe" if is_mla(model) else "gqa-moe"


def best_threads(speeds: Speeds, model: ModelFile) -> int | None:
    """The number of threads with which the host would decode fastest if it had the whole model; None if unknown.

    A layer's graph is taken to be as long as that of the measured kind.
    """

    def seconds(n_threads: int) -> float:
        host = speeds.of(CPU, n_threads)
        used = model.integer("expert_used_count") / max(1, model.integer("expert_count"))
        total = 0.0
        for tensor in model.tensors:
            by_buffer = host.matrices.get(tensor.type)
            if not by_buffer or tensor.name == TOKEN_EMBEDDING:
                continue
            times, chosen = _kernel(by_buffer, repacks=True), "_exps." in tensor.name
            total += tensor.n_bytes * (used * (times.experts or times.decode) if chosen else times.decode)
        overheads = host.overheads.get(kind_of(model))
        return total + (overheads.layer * model.n_layers + overheads.token if overheads else 0.0)

    known = [n_threads for n_threads in speeds.threads_of(CPU) if speeds.of(CPU, n_threads).has_matrices]
    return min(known, key=seconds, default=None)


def measured_machine(
    machine: Machine,
    speeds: Speeds,
    model: ModelFile,
    n_threads: int,
    *,
    llama_names: Mapping[str, str] | None = None,
    kv_type: str = "f16",
    repacks: bool = True,
) -> Machine:
    """``machine`` with measured speeds for ``model`` in place of assumed ones, as far as they are known.

    ``llama_names`` are llama.cpp's names of the GPUs (rule name → name); a GPU that was not measured keeps what was
    assumed. With ``repacks`` the host's weights are in repacked buffers where llama.cpp has kernels for them.
    """
    kind = kind_of(model)
    host = speeds.of(CPU, n_threads)
    if not host.has_matrices:
        return machine
    names = llama_names or {}
    of_gpus = {gpu.name: speeds.of_gpu(names.get(gpu.name, gpu.name), n_threads) for gpu in machine.gpus}
    links = [one.copy for one in of_gpus.values() if one.copy]
    crossings = [one.crossing for one in of_gpus.values() if one.crossing is not None]
    return replace(
        machine,
        cpu=_measured(machine.cpu, host, model, kv_type, repacks=repacks),
        gpus=tuple(
            _measured(gpu, of_gpus[gpu.name], model, kv_type, repacks=False, kernels_of=host) for gpu in machine.gpus
        ),
        link_bandwidth=min(links, default=machine.link_bandwidth),
        crossing_seconds=max(crossings, default=machine.crossing_seconds),
        token_seconds=_token_seconds(host, list(of_gpus.values()), kind),
        measured=True,
    )


def _measured(
    processor: Processor,
    found: DeviceSpeeds,
    model: ModelFile,
    kv_type: str,
    *,
    repacks: bool,
    kernels_of: DeviceSpeeds | None = None,
) -> Processor:
    """``processor`` with what was found; a stand-in has the host's plain kernels."""
    if kernels_of is not None and found.overheads and not found.has_matrices:
        found = replace(found, matrices=kernels_of.matrices, attention=kernels_of.attention)
    if not found.has_matrices:
        return processor
    used = {name: _kernel(by_buffer, repacks=repacks) for name, by_buffer in found.matrices.items() if by_buffer}
    overheads = found.overheads.get(kind_of(model)) or next(
        iter(found.overheads.values()), Overheads(node=0.0, token=0.0, layer=0.0)
    )
    # what reads fastest is nearest to what the memory gives; of types that were not measured it is the bound
    return replace(
        processor,
        bandwidth=max(1 / times.decode for times in used.values()),
        default_flops=min(times.prefill_flops for times in used.values()),
        flops={name: times.prefill_flops for name, times in used.items()},
        read_seconds={name: times.decode for name, times in used.items()},
        expert_seconds={name: times.experts or times.decode for name, times in used.items()},
        attention_seconds=_attention_seconds(found, model, kv_type),
        node_seconds=overheads.node,
    )


def _attention_seconds(found: DeviceSpeeds, model: ModelFile, kv_type: str) -> float:
    """Seconds an operation with heads of the model's size: a head's time is taken to be linear in its values."""
    known = {
        sum(HEADS[name][2:]): seconds
        for name in ATTENTION[kind_of(model)]
        if (seconds := found.attention.get(f"{kv_type} {name}")) is not None
    }
    if len(known) < 2:
        return next(iter(known.values()), 0.0)
    (few, slow), (many, fast) = sorted(known.items())[:: len(known) - 1]
    of_head = max(0.0, (slow - fast) / (1 / few - 1 / many))  # seconds a head and token, beside its values
    n_values = model.integer("attention.key_length") + model.integer("attention.value_length")
    return max(0.0, fast - of_head / many) + of_head / (n_values or many)


def _kernel(by_buffer: Mapping[str, MatrixTimes], *, repacks: bool) -> MatrixTimes:
    if repacks and _REPACKED in by_buffer:
        return by_buffer[_REPACKED]
    return next((times for name, times in by_buffer.items() if name != _REPACKED), next(iter(by_buffer.values())))


def _token_seconds(host: DeviceSpeeds, gpus: list[DeviceSpeeds], kind: Kind) -> float:
    known = [one.overheads[kind].token for one in (host, *gpus) if kind in one.overheads]
    return max(known, default=0.0)
