"""Lower: from a placement to llama.cpp settings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ktllama import devices
from ktllama.devices import DeviceMap
from ktllama.diagnostics import Diagnostic
from ktllama.layers import layer_ranges
from ktllama.lower import ik_llama
from ktllama.lower.base import Base, exact, for_command_line
from ktllama.lower.overrides import base_device, devices_without_layers, overrides_for
from ktllama.lower.settings import LlamaSettings, LoadMode, Target
from ktllama.model.kv_cache import kv_bytes_per_token
from ktllama.model.model_file import TOKEN_EMBEDDING
from ktllama.model.modules import block_of
from ktllama.placing.ir import Placement
from ktllama.placing.place import PER_LAYER_TENSORS
from ktllama.units import format_bytes

#: llama_max_devices(), and llama_max_tensor_buft_overrides() less its end marker (src/llama.cpp of
#: llama-cpp-python 0.3.36).
MAX_DEVICES = 16
MAX_OVERRIDES = 4095

_CONTEXT_FOR_MESSAGES = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowering:
    """Settings, the base assignment behind them, and what could not be said for the target."""

    target: Target
    settings: LlamaSettings
    base: Base
    diagnostics: tuple[Diagnostic, ...]


def lower(
    placement: Placement,
    device_map: DeviceMap | None = None,
    target: Target = "python",
    load_mode: LoadMode = "auto",
) -> Lowering:
    """The settings that make llama.cpp do what ``placement`` says.

    For ``python`` they are exact. For ``llama-server`` and ``ik_llama.cpp`` a KV cache may end up beside its layer's
    neighbours; then ``diagnostics`` says which and how large.
    """
    device_map = device_map or DeviceMap()
    if target == "ik_llama.cpp":
        return _for_ik_llama(placement, device_map, load_mode)
    base = exact(placement) if target == "python" else for_command_line(placement)
    found = _collisions(placement, device_map)
    too_many = target == "python" and len(_device_list(placement, base)) > MAX_DEVICES
    if too_many:
        base = for_command_line(placement)
    listed = _device_list(placement, base)
    if len(listed) > MAX_DEVICES:
        found.append(_too_many_runs(len(listed)))
    found += _misplaced_kv(placement, base, too_many=too_many)
    overrides = overrides_for(_overridden_devices(placement, base), device_map)
    if len(overrides) > MAX_OVERRIDES:
        found.append(_too_many_overrides(len(overrides)))
    streams = placement.stream_experts
    settings = LlamaSettings(
        n_gpu_layers=base.n_gpu_layers,
        devices=tuple(device_map.llama_name(device) for device, _ in listed),
        tensor_split=tuple(count for _, count in listed),
        tensor_overrides=overrides,
        op_offload=streams,
        no_host=not streams,
        load_mode=load_mode,
    )
    found += _unpinned(placement, load_mode)
    return Lowering(target=target, settings=settings, base=base, diagnostics=tuple(found))


def _collisions(placement: Placement, device_map: DeviceMap) -> list[Diagnostic]:
    """Two devices of the rules that llama.cpp calls by one name."""
    used = {tensor.device for tensor in placement.tensors.values()} | set(placement.prefill_devices)
    by_name: dict[str, list[str]] = defaultdict(list)
    for device in sorted((used | set(placement.layers.values())) - {devices.AUTO}, key=devices.order):
        by_name[device_map.llama_name(device)].append(device)
    return [
        Diagnostic(
            code="device-collision",
            severity="error",
            message=f"{' and '.join(names)} are both {name} in llama.cpp; give each its own with --device-map",
        )
        for name, names in by_name.items()
        if len(names) > 1
    ]


def _unpinned(placement: Placement, load_mode: LoadMode) -> list[Diagnostic]:
    """llama.cpp pins weights for streaming only where it reads the file rather than maps it."""
    if not placement.stream_experts or load_mode == "none":
        return []
    n_bytes = sum(tensor.n_bytes for tensor in placement.tensors.values() if tensor.prefill_device is not None)
    return [
        Diagnostic(
            code="unpinned",
            severity="note",
            message=f"{format_bytes(n_bytes)} on the CPU are streamed to a GPU for long prompts, from mapped memory; "
            "with that much free RAM, --load-mode none pins them, which makes prefill faster",
        )
    ]


def _for_ik_llama(placement: Placement, device_map: DeviceMap, load_mode: LoadMode) -> Lowering:
    planned = ik_llama.plan(placement, device_map, load_mode)
    found = [
        *_collisions(placement, device_map),
        *planned.diagnostics,
        *_misplaced_kv(placement, planned.base, too_many=False, program="ik_llama.cpp"),
    ]
    if len(planned.settings.tensor_overrides) > MAX_OVERRIDES:
        found.append(_too_many_overrides(len(planned.settings.tensor_overrides)))
    return Lowering(target="ik_llama.cpp", settings=planned.settings, base=planned.base, diagnostics=tuple(found))


def _device_list(placement: Placement, base: Base) -> tuple[tuple[str, int], ...]:
    """The runs, and with no layers the other GPUs that hold tensors or prefill for the CPU."""
    return (*base.runs, *((device, 0) for device in devices_without_layers(placement, base)))


def _overridden_devices(placement: Placement, base: Base) -> Mapping[str, str | None]:
    """For every tensor the device it must be overridden to, or None.

    Layers of a CPU run are overridden to the CPU too: it brings back llama.cpp's choice among pinned, repacked and
    plain buffers, which a run does not have.
    """
    in_cpu_run = base.cpu_run_layers
    wanted: dict[str, str | None] = {}
    for name, tensor in placement.tensors.items():
        block = block_of(name)
        layer = len(base.layers) - 1 if block is None else block
        stays = tensor.device == base_device(name, base) and (layer not in in_cpu_run or name == TOKEN_EMBEDDING)
        wanted[name] = None if stays or name in PER_LAYER_TENSORS else tensor.device
    if placement.ties_output and base.layers[-1] != placement.output_device:
        wanted[TOKEN_EMBEDDING] = placement.output_device  # the output layer's copy has the same name
    return wanted


def _misplaced_kv(
    placement: Placement, base: Base, *, too_many: bool, program: str = "llama-server"
) -> list[Diagnostic]:
    why, remedy = (
        (f"the layers change device more than {MAX_DEVICES} times", "give neighbouring layers the same device")
        if too_many
        else (f"{program} takes no CPU layers behind GPU layers", "--target python puts it in its place")
    )
    found = []
    for device in sorted(set(base.misplaced.values()), key=devices.order):
        layers = sorted(layer for layer, planned in base.misplaced.items() if planned == device)
        chosen = sorted({base.layers[layer] for layer in layers}, key=devices.order)
        per_token = sum(kv_bytes_per_token(placement.model, layer) for layer in layers if layer in placement.kv)
        what = "KV cache" if placement.kv.keys() >= set(layers) else "KV cache or recurrent state"
        found.append(
            Diagnostic(
                code="kv-not-expressible",
                severity="warning",
                message=f"the {what} of layer {layer_ranges(layers)} belongs on {device}, but {why}: it goes to "
                f"{' and '.join(chosen)}, where it takes {format_bytes(per_token)} a token, "
                f"{format_bytes(per_token * _CONTEXT_FOR_MESSAGES)} at {_CONTEXT_FOR_MESSAGES} tokens (f16); {remedy}",
            )
        )
    return found


def _too_many_runs(count: int) -> Diagnostic:
    return Diagnostic(
        code="too-many-runs",
        severity="error",
        message=f"the layers change device so often that llama.cpp would need {count} entries "
        f"in its list of devices, and it takes at most {MAX_DEVICES}; give neighbouring layers the same device",
    )


def _too_many_overrides(count: int) -> Diagnostic:
    return Diagnostic(
        code="too-many-overrides",
        severity="error",
        message=f"the plan needs {count} override patterns and llama.cpp takes at most {MAX_OVERRIDES}; give "
        "neighbouring layers the same device",
    )
