"""Placements made by hand, for tests that compare llama.cpp with a plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ktllama.lower.settings import LlamaSettings, TensorOverride
from ktllama.model.model_file import ModelFile
from ktllama.model.modules import block_of
from ktllama.placing.ir import Placement, TensorPlacement

RULE_DEVICES = {"CPU": "cpu", "CUDA0": "cuda:0", "CUDA1": "cuda:1"}


def runs(*pairs: tuple[str, int], overrides: Mapping[str, str] | None = None, streams: bool = False) -> LlamaSettings:
    """Settings that give each (device, layers) run its layers, from layer 0 to the output."""
    return LlamaSettings(
        n_gpu_layers=sum(n_layers for _, n_layers in pairs),
        devices=tuple(device for device, _ in pairs),
        tensor_split=tuple(n_layers for _, n_layers in pairs),
        tensor_overrides=tuple(
            TensorOverride(pattern=pattern, device=device) for pattern, device in (overrides or {}).items()
        ),
        op_offload=streams,
        no_host=not streams,
    )


def plan(
    model: ModelFile,
    layers: Sequence[str],
    overrides: Mapping[str, str] | None = None,
    *,
    n_mtp: int = 0,
) -> Placement:
    """The placement with layer i on ``layers[i]`` (the output last), and tensors that a pattern finds elsewhere.

    Devices are llama.cpp's names; the last ``n_mtp`` blocks are left on disk.
    """
    n_trunk = model.n_layers - n_mtp
    tensors = {}
    for tensor in model.tensors:
        block = block_of(tensor.name)
        base = layers[block] if block is not None else "CPU" if tensor.name == "token_embd.weight" else layers[-1]
        moved = (device for pattern, device in (overrides or {}).items() if re.search(pattern, tensor.name))
        tensors[tensor.name] = TensorPlacement(
            name=tensor.name,
            device=RULE_DEVICES[next(moved, base)],
            module=None,
            rule=None,
            n_bytes=tensor.n_bytes,
            loaded=block is None or block < n_trunk,
        )
    return Placement(
        model=model,
        tensors=tensors,
        kv={layer: RULE_DEVICES[layers[layer]] for layer in range(n_trunk)},
        stream_experts=False,
        output_device=RULE_DEVICES[layers[-1]],
    )


def with_tensor_on(placement: Placement, name: str, device: str) -> Placement:
    """``placement`` with one tensor planned for another rule device."""
    moved = replace(placement.tensors[name], device=device)
    return replace(placement, tensors={**placement.tensors, name: moved})
