"""ik_llama.cpp: its layer arithmetic, which is llama.cpp's of 2024, and its command line.

Read in its src/llama.cpp (``llm_load_tensors``, ``llama_kv_cache_init``), src/llama-load-tensors.cpp and
common/common.cpp; docs/ik_llama.md names the commits and says why each flag is emitted. With L blocks, ``-ngl N``
offloads the last ``min(N, L)`` blocks, and the output layer only where N is L + 1.
"""

from __future__ import annotations

import itertools
import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ktllama import devices
from ktllama.devices import DeviceMap
from ktllama.diagnostics import Diagnostic
from ktllama.layers import layer_ranges
from ktllama.lower.base import Base
from ktllama.lower.overrides import base_device, devices_without_layers, overrides_for
from ktllama.lower.settings import LlamaSettings, LoadMode
from ktllama.model.model_file import TOKEN_EMBEDDING
from ktllama.placing.ir import Placement
from ktllama.placing.place import PER_LAYER_TENSORS

_OFFLOAD_NOTHING = "-1,0"
_FASTEST_MLA = "3"
_ATTENTION_MIB = "512"
_LOAD_MODES = {"none": "--no-mmap", "mlock": "--mlock"}


@dataclass(frozen=True, slots=True, kw_only=True)
class IkPlan:
    """Settings for ik_llama.cpp, the base assignment behind them, and what they cannot say.

    ``base.runs`` hold the offloaded blocks, and the output layer where it is offloaded with them.
    """

    settings: LlamaSettings
    base: Base
    diagnostics: tuple[Diagnostic, ...]


def plan(placement: Placement, device_map: DeviceMap, load_mode: LoadMode = "auto") -> IkPlan:
    """The settings under which ik_llama.cpp does what ``placement`` says, as far as its command line can."""
    base, found = _base(placement)
    listed = [*base.runs, *((device, 0) for device in devices_without_layers(placement, base))]
    settings = LlamaSettings(
        n_gpu_layers=base.n_gpu_layers,
        devices=tuple(device_map.llama_name(device) for device, _ in listed),
        tensor_split=tuple(count for _, count in listed),
        tensor_overrides=overrides_for(_overridden_devices(placement, base), device_map),
        op_offload=placement.stream_experts,
        no_host=False,  # it has no such switch
        load_mode=load_mode,
    )
    return IkPlan(settings=settings, base=base, diagnostics=tuple(found))


def _base(placement: Placement) -> tuple[Base, list[Diagnostic]]:
    trunk = [placement.layers[layer] for layer in sorted(placement.layers)]
    wanted = [*trunk, *[trunk[-1] if trunk else devices.CPU] * (placement.model.n_layers - len(trunk))]
    blocks, folded = _foldable(wanted)
    found = _repeated(folded)
    runs = [(device, len(list(group))) for device, group in itertools.groupby(blocks) if device != devices.CPU]
    output = placement.output_device or devices.CPU
    offloaded = devices.CPU
    if output != devices.CPU and runs and devices.CPU not in blocks:
        offloaded = output if output not in {device for device, _ in runs} else runs[-1][0]
        if offloaded == runs[-1][0]:
            runs[-1] = (offloaded, runs[-1][1] + 1)
        else:
            runs.append((offloaded, 1))
    if placement.ties_output and offloaded != output:
        found.append(_output_elsewhere(output, offloaded))
    layers = (*blocks, offloaded)
    misplaced = {layer: device for layer, device in placement.layers.items() if layers[layer] != device}
    return Base(layers=layers, runs=tuple(runs), misplaced=misplaced), found


def _foldable(wanted: list[str]) -> tuple[list[str], dict[str, list[int]]]:
    """The blocks with no CPU layer behind a GPU layer and no return to a GPU, and the blocks that wanted to return."""
    blocks: list[str] = []
    seen: set[str] = set()
    folded: dict[str, list[int]] = defaultdict(list)
    for layer, device in enumerate(wanted):
        before = blocks[-1] if blocks else devices.CPU
        if device == before or device == devices.CPU:
            chosen = before
        elif device in seen:
            chosen = before
            folded[device].append(layer)
        else:
            chosen = device
            seen.add(device)
        blocks.append(chosen)
    return blocks, folded


def _overridden_devices(placement: Placement, base: Base) -> dict[str, str | None]:
    wanted: dict[str, str | None] = {}
    for name, tensor in placement.tensors.items():
        stays = tensor.device == base_device(name, base) or name in PER_LAYER_TENSORS
        wanted[name] = None if stays else tensor.device
    return wanted


def to_argv(settings: LlamaSettings, placement: Placement, model_path: str) -> list[str]:
    """The words of ik_llama.cpp's llama-server command."""
    words = ["llama-server", "--model", model_path, "--n-gpu-layers", str(settings.n_gpu_layers)]
    if settings.devices:
        words += ["--device", ",".join(settings.devices)]
    if len(settings.devices) > 1:
        words += ["--split-mode", "layer"]
        if any(settings.tensor_split):
            words += ["--tensor-split", ",".join(str(count) for count in settings.tensor_split)]
    if settings.tensor_overrides:
        pairs = (f"{override.pattern}={override.device}" for override in settings.tensor_overrides)
        words += ["--override-tensor", ",".join(pairs)]
    kept = _kept_on_cpu(placement)
    if any(kept.values()) and not settings.op_offload:
        words += ["--offload-policy", _OFFLOAD_NOTHING]
    if _is_mla(placement):
        words += ["--mla-use", _FASTEST_MLA, "--attention-max-batch", _ATTENTION_MIB]
    if kept["experts"] and not settings.op_offload:
        words.append("--run-time-repack")
    if settings.load_mode in _LOAD_MODES:
        words.append(_LOAD_MODES[settings.load_mode])
    return words


def to_command_line(settings: LlamaSettings, placement: Placement, model_path: str) -> str:
    """One line for a POSIX shell."""
    return shlex.join(to_argv(settings, placement, model_path))


def _kept_on_cpu(placement: Placement) -> Mapping[str, bool]:
    """Whether the CPU holds routed experts, and whether it holds other weights than the embeddings."""
    kept = [name for name, tensor in placement.tensors.items() if tensor.device == devices.CPU and tensor.loaded]
    return {
        "experts": any("_exps." in name for name in kept),
        "weights": any(name != TOKEN_EMBEDDING for name in kept),
    }


def _is_mla(placement: Placement) -> bool:
    """Whether the model has multi-head latent attention."""
    return placement.model.integer("attention.kv_lora_rank") > 0


def _repeated(folded: Mapping[str, list[int]]) -> list[Diagnostic]:
    return [
        Diagnostic(
            code="repeated-device",
            severity="warning",
            message=f"layer {layer_ranges(layers)} returns to {device}, which earlier layers left: ik_llama.cpp's list "
            "of devices names each GPU once, so these layers keep their weights there but not their KV cache",
        )
        for device, layers in folded.items()
    ]


def _output_elsewhere(output: str, offloaded: str) -> Diagnostic:
    return Diagnostic(
        code="output-not-expressible",
        severity="warning",
        message=f"the output belongs on {output} and goes to {offloaded}: the model ties it to token_embd.weight, "
        "whose copy cannot be overridden by itself, and ik_llama.cpp offloads the output only after all blocks",
    )
