"""From an assignment to a placement without ``auto``, and to a rule file that gives it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ktllama import devices
from ktllama.importing.assignment import Assignment as Wanted
from ktllama.importing.rule_writer import draft_rules, to_yaml
from ktllama.importing.wishes import wishes
from ktllama.model.model_file import TOKEN_EMBEDDING
from ktllama.model.modules import ModuleTree, block_of
from ktllama.placing.ir import Placement
from ktllama.placing.place import PER_LAYER_TENSORS
from ktllama.planner.cost import Assignment, parts_with_devices
from ktllama.planner.parts import ModelParts


def fill(placement: Placement, parts: ModelParts, assignment: Assignment, *, stream_to: str | None) -> Placement:
    """``placement`` with every ``auto`` decided. ``stream_to`` is the GPU that uses host weights in prefill, if any."""
    chosen = {name: device for part, device in parts_with_devices(parts, assignment) for name in part.tensors}
    layers = {layer.index: core for layer, core in zip(parts.layers, assignment.cores, strict=True)}
    last = max(layers)
    tensors = {}
    for name, placed in placement.tensors.items():
        device = placed.device if placed.device != devices.AUTO else chosen.get(name)
        if name in PER_LAYER_TENSORS:
            device = layers[0]
        elif device is None:  # left on disk: an MTP block, which is like the last layer
            device = chosen.get(_in_layer(name, last), layers[last])
        streams = stream_to and placed.loaded and device == devices.CPU and name != TOKEN_EMBEDDING
        tensors[name] = dataclasses.replace(placed, device=device, prefill_device=stream_to if streams else None)
    streaming = any(placed.prefill_device for placed in tensors.values())
    return dataclasses.replace(
        placement,
        tensors=tensors,
        kv={layer: layers[layer] for layer in placement.kv},
        recurrent={layer: layers[layer] for layer in placement.recurrent},
        output_device=assignment.output,
        stream_experts=streaming,
        prefill_devices=(stream_to,) if streaming and stream_to else (),
    )


def first_gpu(placement: Placement, gpus: Iterable[str]) -> str | None:
    """The GPU that llama.cpp lists first, to which it offloads operations on host weights
    (``ggml_backend_sched_backend_id_from_cur`` in ``ggml/src/ggml-backend.cpp``)."""
    of_layers = [*placement.layers.values(), placement.output_device]
    holding = {placed.device for placed in placement.tensors.values() if placed.loaded}
    return next(
        (device for device in of_layers if device not in (None, devices.CPU)),
        next((gpu for gpu in sorted(gpus, key=devices.order) if gpu in holding), None),
    )


def rules_text(placement: Placement, tree: ModuleTree, comments: Iterable[str]) -> str:
    """A rule file that gives ``placement``, with ``comments`` at its head."""
    assert placement.output_device is not None
    wanted = wishes(
        Wanted(
            model=placement.model,
            tensors={name: placed.device for name, placed in placement.tensors.items()},
            kv=placement.layers,
            output=placement.output_device,
            gpus=placement.prefill_devices,
            names={},
        ),
        tree,
    )
    stream_to = placement.prefill_devices[0] if placement.prefill_devices else None
    return to_yaml(draft_rules(wanted), stream_to=stream_to, comments=comments)


def differences(wanted: Placement, found: Placement) -> tuple[str, ...]:
    """Where two placements of one model differ, in words; tensors that every layer has a copy of are left out."""
    wrong = [
        f"{name} on {found.tensors[name].device} instead of {placed.device}"
        for name, placed in wanted.tensors.items()
        if placed.loaded and name not in PER_LAYER_TENSORS and found.tensors[name].device != placed.device
    ]
    wrong += [
        f"the cache of layer {layer} on {found.layers.get(layer)} instead of {device}"
        for layer, device in wanted.layers.items()
        if found.layers.get(layer) != device
    ]
    if wanted.output_device != found.output_device:
        wrong.append(f"the output on {found.output_device} instead of {wanted.output_device}")
    if wanted.stream_experts != found.stream_experts:
        wrong.append("prefill on another device")
    return tuple(wrong)


def _in_layer(name: str, layer: int) -> str:
    return f"blk.{layer}.{name.split('.', 2)[2]}" if block_of(name) is not None else name
