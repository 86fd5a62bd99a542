"""The proof that llama.cpp does what a plan says: layer by layer, KV cache by KV cache, tensor by tensor.

A dry run lets llama.cpp place the model by the settings; this module compares what it did with the placement that the
settings were made from. Every tensor counts, so one expert block in the wrong memory is one line of the report.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ktllama.devices import DeviceMap
from ktllama.lower.settings import LlamaSettings
from ktllama.model.kv_cache import kv_bytes_per_token, n_cells, state_bytes
from ktllama.model.model_file import TOKEN_EMBEDDING, ModelFile
from ktllama.model.modules import block_of
from ktllama.placing.ir import Placement
from ktllama.placing.place import PER_LAYER_TENSORS
from ktllama.runtime.base_layers import base_devices
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.device_binding import CPU
from ktllama.runtime.dry_run import DryRun, dry_run
from ktllama.runtime.dry_run_log import SIZE_RESOLUTION_BYTES

NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One thing that is not where the plan put it; devices are llama.cpp's names."""

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many things of one kind were compared, and how many were as planned."""

    checked: int
    matched: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The outcome. Bytes are by device, devices by llama.cpp's names in the settings.

    ``layers`` counts blocks and the output; ``kv`` every block, whether it has a cache or a recurrent state or must
    have none; ``tensors`` every tensor of the file; ``overrides`` those that an override moved. ``weight_bytes`` is the
    plan's, ``kv_bytes`` (recurrent states included) arithmetic that was checked against llama.cpp's totals,
    ``compute_bytes`` llama.cpp's own.
    """

    layers: Tally
    kv: Tally
    tensors: Tally
    overrides: Tally
    mismatches: tuple[Mismatch, ...]
    weight_bytes: Mapping[str, int]
    kv_bytes: Mapping[str, int]
    compute_bytes: Mapping[str, int]
    dry_run: DryRun

    @property
    def ok(self) -> bool:
        """Whether everything is exactly as planned."""
        return not self.mismatches


def verify(
    placement: Placement,
    settings: LlamaSettings,
    model_path: str | os.PathLike[str],
    context: ContextOptions,
    *,
    device_map: DeviceMap | None = None,
    stand_ins: bool = True,
) -> Verification:
    """Let llama.cpp place the model by ``settings`` in a dry run, and compare with ``placement``.

    ``device_map`` is the one that the settings were made with; devices that it names must exist on this machine.
    Other missing GPUs are stood in for by the CPU, unless ``stand_ins`` is False.

    Raises:
        LlamaCppError: when llama.cpp is missing, refuses the model or dies.
        DeviceError: when a device is missing and may not be stood in for.
    """
    device_map = device_map or DeviceMap()
    done = dry_run(
        model_path, settings, context, explicit_devices=tuple(device_map.chosen.values()), stand_ins=stand_ins
    )
    return compare(placement, settings, context, done, device_map)


def compare(
    placement: Placement, settings: LlamaSettings, context: ContextOptions, done: DryRun, device_map: DeviceMap
) -> Verification:
    """Compare a dry run with the placement that its settings were made from."""
    base = base_devices(settings, placement.model.n_layers)
    planned = planned_devices(placement, device_map)
    planned_kv = {layer: device_map.llama_name(device) for layer, device in placement.kv.items()}
    layers = _compare_maps("layer", dict(enumerate(base)), done.layers)
    planned_states = {layer: device_map.llama_name(device) for layer, device in placement.recurrent.items()}
    kv = {
        **_compare_maps("KV cache of layer", _every_layer(planned_kv, placement.model), done.kv),
        **_compare_maps("recurrent state of layer", planned_states, done.recurrent),
    }
    tensors = dict(compare_tensors(planned, _found_tensors(placement, done, base)))
    overrides = dict(_compare_overrides(planned, done))
    kv_bytes = _kv_bytes(placement.model, planned_kv, context, done)
    states_bytes = _state_bytes(placement.model, planned_states, context)
    return Verification(
        layers=_tally(layers),
        kv=_tally(kv),
        tensors=_tally(tensors),
        overrides=_tally(overrides),
        mismatches=(
            *(found for compared in (layers, kv, tensors) for found in compared.values() if found),
            *(found for name, found in overrides.items() if found and not tensors.get(name)),
            *_compare_kv_total(placement.model, kv_bytes, done),
            *_compare_state_total(states_bytes, done),
        ),
        weight_bytes=_weight_bytes(placement, device_map),
        kv_bytes=_sum(kv_bytes, states_bytes or {}),
        compute_bytes=done.compute_bytes,
        dry_run=done,
    )


def planned_devices(placement: Placement, device_map: DeviceMap) -> dict[str, frozenset[str]]:
    """Loaded tensor → the devices that the plan wants it on: two for an embedding that is also the output elsewhere."""
    planned = {
        name: frozenset({device_map.llama_name(tensor.device)})
        for name, tensor in placement.tensors.items()
        if tensor.loaded
    }
    if placement.ties_output and placement.output_device is not None:
        planned[TOKEN_EMBEDDING] |= {device_map.llama_name(placement.output_device)}
    return planned


def compare_tensors(
    planned: Mapping[str, frozenset[str]], found: Mapping[str, frozenset[str]]
) -> Iterator[tuple[str, Mismatch | None]]:
    """Compare every tensor of the plan, and every one that llama.cpp loaded without a plan.

    llama.cpp hands some tensors of no block (``rope_freqs.weight`` and its like) to every layer, with a copy on each
    device that has layers: no plan can name their place and none is wrong, so only their presence counts.
    """
    for name in dict.fromkeys((*planned, *found)):
        wanted, got = planned.get(name, frozenset()), found.get(name, frozenset())
        matches = wanted == got or (name in PER_LAYER_TENSORS and wanted and got)
        yield name, None if matches else _mismatch(f"tensor {name}", wanted, got)


def _tally(compared: Mapping[str, Mismatch | None]) -> Tally:
    return Tally(checked=len(compared), matched=sum(mismatch is None for mismatch in compared.values()))


def _every_layer(planned_kv: Mapping[int, str], model: ModelFile) -> dict[int, str]:
    return {layer: planned_kv.get(layer, NOTHING) for layer in range(model.n_layers)}


def _compare_maps(noun: str, expected: Mapping[int, str], found: Mapping[int, str]) -> dict[str, Mismatch | None]:
    """Compare two maps from layers to devices; a layer that one of them lacks is on ``nothing`` there."""
    compared: dict[str, Mismatch | None] = {}
    for layer in sorted(expected.keys() | found.keys()):
        what = f"{noun} {layer}"
        wanted, got = expected.get(layer, NOTHING), found.get(layer, NOTHING)
        compared[what] = None if wanted == got else Mismatch(what=what, expected=wanted, found=got)
    return compared


def _found_tensors(placement: Placement, done: DryRun, base: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """The devices that hold a copy of each tensor in memory.

    llama.cpp's own table says; where it cannot be read, the log does: an override's buffer, or else the base device.
    """
    if done.tensors is not None:
        return {name: frozenset(devices) for name, devices in done.tensors.items()}
    return {
        name: frozenset(done.overridden.get(name) or _base_of(name, base, ties_output=placement.ties_output))
        for name in placement.tensors
        if name in done.asked
    }


def _base_of(name: str, base: tuple[str, ...], *, ties_output: bool) -> frozenset[str]:
    """Where a tensor goes that no override names (``llm_tensor_info_for`` in ``src/llama-arch.cpp``)."""
    block = block_of(name)
    if block is not None:
        return frozenset({base[block]})
    if name == TOKEN_EMBEDDING:
        return frozenset({CPU, base[-1]}) if ties_output else frozenset({CPU})
    return frozenset({base[-1]})


def _compare_overrides(planned: Mapping[str, frozenset[str]], done: DryRun) -> Iterator[tuple[str, Mismatch | None]]:
    """Every tensor that the log says an override moved: it must have gone where it was planned."""
    for name, devices in done.overridden.items():
        if name not in done.asked:
            continue  # left on disk: llama.cpp never gets as far as a buffer for it
        wanted, got = planned.get(name, frozenset()), frozenset(devices)
        matches = wanted == got or name in PER_LAYER_TENSORS
        yield name, None if matches else _mismatch(f"override of {name}", wanted, got)


def _mismatch(what: str, wanted: frozenset[str], got: frozenset[str]) -> Mismatch:
    return Mismatch(what=what, expected=_listed(wanted), found=_listed(got))


def _listed(devices: frozenset[str]) -> str:
    return " and ".join(sorted(devices)) or NOTHING


def _weight_bytes(placement: Placement, device_map: DeviceMap) -> dict[str, int]:
    """The plan's bytes, the copy of a tied output included where it is on another device than the embedding."""
    total = {device_map.llama_name(device): n_bytes for device, n_bytes in placement.bytes_by_device().items()}
    output = placement.output_device
    if placement.ties_output and output is not None and output != placement.tensors[TOKEN_EMBEDDING].device:
        name = device_map.llama_name(output)
        total[name] = total.get(name, 0) + placement.tensors[TOKEN_EMBEDDING].n_bytes
    return total


def _kv_bytes(model: ModelFile, planned_kv: Mapping[int, str], context: ContextOptions, done: DryRun) -> dict[str, int]:
    """Bytes of the KV cache on each device, by arithmetic."""
    cells = n_cells(
        context.n_ctx,
        n_seq_max=context.n_seq_max,
        unified=context.kv_unified,
        n_ctx_train=model.integer("context_length"),
    )
    total: dict[str, int] = {}
    for layer, device in planned_kv.items():
        per_token = kv_bytes_per_token(
            model, layer, context.type_k, context.type_v, flash_attention=done.log.flash_attention is not False
        )
        total[device] = total.get(device, 0) + per_token * cells
    return total


def _state_bytes(model: ModelFile, planned_states: Mapping[int, str], context: ContextOptions) -> dict[str, int] | None:
    """Bytes of the recurrent states on each device, by arithmetic; None where the header does not tell their shape."""
    per_layer = state_bytes(model, context.n_seq_max)
    if per_layer is None:
        return {} if not planned_states else None
    total: dict[str, int] = {}
    for device in planned_states.values():
        total[device] = total.get(device, 0) + per_layer
    return total


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {device: first.get(device, 0) + second.get(device, 0) for device in (*first, *second)}


def _compare_kv_total(model: ModelFile, kv_bytes: Mapping[str, int], done: DryRun) -> Iterator[Mismatch]:
    """llama.cpp prints the size of each cache: one, or one for layers with a sliding window and one for the others."""
    caches = done.log.caches
    if sum(cache.n_layers for cache in caches) != len(done.kv):
        return  # there are caches of another kind, such as a sparse attention's index
    if model.hyperparameter("attention.key_length_swa") is not None:
        return  # heads of another width in the layers with a sliding window
    found, expected = sum(cache.k_bytes + cache.v_bytes for cache in caches), sum(kv_bytes.values())
    if abs(found - expected) > 2 * len(caches) * SIZE_RESOLUTION_BYTES:
        yield Mismatch(what="KV cache size", expected=f"{expected} bytes", found=f"{found} bytes")


def _compare_state_total(states_bytes: Mapping[str, int] | None, done: DryRun) -> Iterator[Mismatch]:
    found = done.log.state_bytes
    if states_bytes is None or found is None:
        return
    expected = sum(states_bytes.values())
    if abs(found - expected) > SIZE_RESOLUTION_BYTES:
        yield Mismatch(what="recurrent state size", expected=f"{expected} bytes", found=f"{found} bytes")
