"""Whether a real load put exactly the planned bytes into every device's memory.

llama.cpp prints the size of each buffer that it made. Here the sizes are computed from the plan, as
``ggml_backend_alloc_ctx_tensors_from_buft`` (``ggml/src/ggml-alloc.c``) adds them up: every tensor as its buffer type
stores it (CUDA pads quantized rows to 512 values, repacking may change the size), padded to the buffer's alignment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ktllama.devices import DeviceMap
from ktllama.errors import LlamaCppError
from ktllama.placing.ir import Placement
from ktllama.placing.place import PER_LAYER_TENSORS
from ktllama.runtime import tensor_map
from ktllama.runtime.device_list import buffer_device
from ktllama.runtime.dry_run_log import SIZE_RESOLUTION_BYTES
from ktllama.runtime.load import MAPPED, LoadedModel
from ktllama.runtime.tensor_map import LoadedTensor
from ktllama.runtime.verify import Mismatch, Tally, compare_tensors, planned_devices


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferCheck:
    """The outcome. Bytes are by device, devices by the settings' names.

    ``planned_bytes`` is what the plan's tensors take, a tied output included; ``found_bytes`` what llama.cpp printed.
    ``not_compared`` names the devices whose sizes say nothing: where llama.cpp maps the file it prints the mapped
    range, which spans other tensors too. Their tensors are checked one by one all the same.
    """

    tensors: Tally
    planned_bytes: Mapping[str, int]
    found_bytes: Mapping[str, int]
    not_compared: tuple[str, ...]
    mismatches: tuple[Mismatch, ...]

    @property
    def ok(self) -> bool:
        """Whether every tensor is on its planned device and every size that could be compared is right."""
        return not self.mismatches


def check_buffers(loaded: LoadedModel, placement: Placement, device_map: DeviceMap | None = None) -> BufferCheck:
    """Compare a loaded model's buffers with the placement that its settings were made from.

    The buffer of every tensor is looked up in llama.cpp's table, and the sizes that llama.cpp printed are compared with
    the plan's, as exactly as the 0.01 MiB that it prints.

    Raises:
        LlamaCppError: where llama.cpp's table cannot be read.
    """
    planned = planned_devices(placement, device_map or DeviceMap())
    tensors = tensor_map.read(loaded.library, loaded.model)
    if tensors is None:
        raise LlamaCppError("this build of llama.cpp does not let ktllama read its table of tensors")
    devices = _devices(loaded, tensors)
    found: dict[str, frozenset[str]] = {}
    for tensor, device in zip(tensors, devices, strict=True):
        found[tensor.name] = found.get(tensor.name, frozenset()) | {device}
    compared = dict(compare_tensors(planned, found))
    planned_bytes = _planned_bytes(planned, tensors, devices)
    found_bytes = loaded.model_bytes()
    mapped = {loaded.buffer_holder(name) for name in loaded.log().model_bytes if name.endswith(MAPPED)}
    return BufferCheck(
        tensors=Tally(checked=len(compared), matched=sum(mismatch is None for mismatch in compared.values())),
        planned_bytes=planned_bytes,
        found_bytes=found_bytes,
        not_compared=tuple(sorted(mapped)),
        mismatches=(
            *(mismatch for mismatch in compared.values() if mismatch),
            *_compare_sizes(planned_bytes, found_bytes, _resolution(loaded), mapped),
        ),
    )


def _devices(loaded: LoadedModel, tensors: tuple[LoadedTensor, ...]) -> tuple[str, ...]:
    """The settings' name of the device that holds each tensor of the table."""
    kinds = {tensor.buffer_type for tensor in tensors}
    names = {kind: loaded.settings_name(buffer_device(loaded.library, kind)) for kind in kinds}
    return tuple(names[tensor.buffer_type] for tensor in tensors)


def _planned_bytes(
    planned: Mapping[str, frozenset[str]], tensors: tuple[LoadedTensor, ...], devices: tuple[str, ...]
) -> dict[str, int]:
    """What the table's tensors take where the plan wants them; of several copies each counts where it is."""
    total: dict[str, int] = {}
    for tensor, device in zip(tensors, devices, strict=True):
        wanted = planned.get(tensor.name, frozenset())
        place = next(iter(wanted)) if len(wanted) == 1 and tensor.name not in PER_LAYER_TENSORS else device
        total[place] = total.get(place, 0) + tensor.alloc_bytes
    return total


def _resolution(loaded: LoadedModel) -> dict[str, float]:
    """How far the printed bytes of each device may be off, by rounding of every buffer's size."""
    total: dict[str, float] = {}
    for buffer_type, n_buffers in loaded.log().n_model_buffers.items():
        device = loaded.buffer_holder(buffer_type)
        total[device] = total.get(device, 0.0) + n_buffers * SIZE_RESOLUTION_BYTES
    return total


def _compare_sizes(
    planned: Mapping[str, int], found: Mapping[str, int], resolution: Mapping[str, float], skipped: Collection[str]
) -> Iterator[Mismatch]:
    for device in dict.fromkeys((*planned, *found)):
        wanted, got = planned.get(device, 0), found.get(device, 0)
        if device not in skipped and abs(wanted - got) > resolution.get(device, 0.0):
            yield Mismatch(what=f"weights on {device}", expected=f"{wanted} bytes", found=f"{got} bytes")
