"""The devices that this build of llama.cpp has on this machine."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

from ktllama.runtime.library import Library, load

DeviceKind = Literal["cpu", "gpu", "igpu", "accel", "meta"]

#: ``enum ggml_backend_dev_type`` in ``ggml/include/ggml-backend.h``.
_KINDS: tuple[DeviceKind, ...] = ("cpu", "gpu", "igpu", "accel", "meta")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendDevice:
    """One device. Memory is in bytes and 0 where the device does not say.

    ``buffer_type`` is the name that llama.cpp's log gives to memory on the device; ``backend`` is the family
    (``CUDA``, ``RPC``, ``CPU`` …).
    """

    name: str
    description: str
    kind: DeviceKind
    backend: str
    memory_total: int
    memory_free: int
    buffer_type: str


def available(library: Library | None = None) -> tuple[BackendDevice, ...]:
    """Every device, in llama.cpp's order. RPC devices whose server has stopped are left out.

    Raises:
        LlamaCppError: when llama-cpp-python is missing or does not load.
    """
    library = library or load()
    handles = [library.call("ggml_backend_dev_get", index) for index in range(library.call("ggml_backend_dev_count"))]
    return tuple(_describe(library, handle) for handle in handles if not _is_retired(library, handle))


def handle_of(library: Library, name: str) -> int:
    """llama.cpp's handle of the device called ``name``, which must exist."""
    handle: int | None = library.call("ggml_backend_dev_by_name", name.encode())
    assert handle, name
    return handle


def buffer_device(library: Library, buffer_type: int) -> str:
    """The name of the device in whose memory buffers of a type lie.

    Pinned host buffers belong to a GPU's backend and lie in the CPU's memory; so do repacked ones.
    """
    device: int | None = library.call("ggml_backend_buft_get_device", buffer_type)
    if not device:
        return "CPU"
    is_own_memory = library.call("ggml_backend_dev_buffer_type", device) == buffer_type
    if not is_own_memory and library.call("ggml_backend_buft_is_host", buffer_type):
        return "CPU"
    return library.text("ggml_backend_dev_name", device)


def buffer_devices(library: Library) -> dict[str, str]:
    """Buffer type name → device name, for the buffers that every device offers."""
    found: dict[str, str] = {}
    for device in available(library):
        handle = handle_of(library, device.name)
        found.setdefault(device.buffer_type, device.name)
        host: int | None = library.call("ggml_backend_dev_host_buffer_type", handle)
        for extra in [*([host] if host else []), *extra_buffer_types(library, handle)]:
            found.setdefault(library.text("ggml_backend_buft_name", extra), buffer_device(library, extra))
    return found


def _describe(library: Library, handle: int) -> BackendDevice:
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    library.call("ggml_backend_dev_memory", handle, ctypes.byref(free), ctypes.byref(total))
    return BackendDevice(
        name=library.text("ggml_backend_dev_name", handle),
        description=library.text("ggml_backend_dev_description", handle),
        kind=_KINDS[library.call("ggml_backend_dev_type", handle)],
        backend=_backend(library, handle),
        memory_total=total.value,
        memory_free=free.value,
        buffer_type=library.text("ggml_backend_buft_name", library.call("ggml_backend_dev_buffer_type", handle)),
    )


def _backend(library: Library, handle: int) -> str:
    registry: int | None = library.call("ggml_backend_dev_backend_reg", handle)
    return library.text("ggml_backend_reg_name", registry) if registry else ""


def _is_retired(library: Library, handle: int) -> bool:
    # an RPC device's description is its endpoint (ggml-rpc.cpp, ggml_backend_rpc_add_server)
    return library.text("ggml_backend_dev_description", handle) in library.retired


def extra_buffer_types(library: Library, device: int) -> list[int]:
    """The device's extra buffer types, such as ``CPU_REPACK`` (ggml-backend.h, ggml_backend_dev_get_extra_bufts_t)."""
    registry: int | None = library.call("ggml_backend_dev_backend_reg", device)
    if not registry:
        return []
    address = library.call("ggml_backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return []
    prototype = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
    listed = prototype(address)(device)
    found: list[int] = []
    while listed and (pointer := listed[len(found)]):
        found.append(pointer)
    return found
