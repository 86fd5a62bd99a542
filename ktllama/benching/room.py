"""Whether placements can stay loaded together: what they need of each memory, and what is free of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ktllama import devices
from ktllama.devices import DeviceMap
from ktllama.model.kv_cache import kv_bytes_per_token, n_cells, state_bytes
from ktllama.placing.ir import Placement
from ktllama.planner.memory import weight_bytes
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.load import free_memory_bytes
from ktllama.runtime.sparse_copy import split_paths

if TYPE_CHECKING:
    from ktllama.benching.comparison import Contender

#: Of the free host memory the loaded models together may take this share.
_LOADED_SHARE = 0.8

#: Of a GPU's free memory weights and caches may take this share where placements share it. llama.cpp's buffers, which
#: are known once it is loaded, come on top, and a placement that finds too little fails.
_GPU_SHARE = 0.5


def gpu_bytes(placement: Placement, context: ContextOptions, device_map: DeviceMap) -> dict[str, int]:
    """The weights and caches on every GPU, in bytes by llama.cpp's name of it."""
    found: dict[str, int] = defaultdict(int)
    for device, by_kind in weight_bytes(placement).items():
        found[device] += sum(by_kind.values())
    cells = n_cells(context.n_ctx, n_seq_max=context.n_seq_max, unified=context.kv_unified)
    for layer, device in placement.layers.items():
        found[device] += cells * kv_bytes_per_token(
            placement.model, layer, context.type_k, context.type_v, flash_attention=context.flash_attn != "off"
        )
        if layer in placement.recurrent:
            found[device] += state_bytes(placement.model, context.n_seq_max) or 0
    return {device_map.llama_name(device): n_bytes for device, n_bytes in found.items() if device != devices.CPU}


def fit_together(contenders: Sequence[Contender]) -> bool:
    """Whether all of ``contenders`` may stay loaded: on the host, and on each GPU that several of them use."""
    if len(contenders) == 1:
        return True
    wanted = sum(
        part.stat().st_size
        for contender in contenders
        for part in split_paths(Path(contender.model_path))
        if part.exists()
    )
    if wanted > _LOADED_SHARE * free_memory_bytes():
        return False
    shared = _needs_of_shared(contenders)
    return not shared or _fit_gpus(shared)


def _needs_of_shared(contenders: Sequence[Contender]) -> dict[str, list[int | None]]:
    """What each placement that uses it needs of a GPU, for those that several use; None where it is not known."""
    needs: dict[str, list[int | None]] = defaultdict(list)
    for contender in contenders:
        used = set(contender.settings.devices or ()) | set(contender.gpu_bytes or {})
        for name in used - {"CPU"}:
            needs[name].append(None if contender.gpu_bytes is None else contender.gpu_bytes.get(name, 0))
    return {name: found for name, found in needs.items() if len(found) > 1}


def _fit_gpus(needs: Mapping[str, Sequence[int | None]]) -> bool:
    from ktllama.runtime.device_list import available

    free = {device.name: device.memory_free for device in available()}  # what is missing the host stands in for
    return all(
        all(need is not None for need in found) and sum(need or 0 for need in found) <= _GPU_SHARE * free[name]
        for name, found in needs.items()
        if name in free
    )
