"""From settings to llama.cpp's parameter structures, with everything they point to kept alive.

Structures: ``llama_model_params`` and ``llama_context_params`` in ``include/llama.h``, read through llama-cpp-python.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Any

from ktllama.errors import LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.model.kv_cache import CACHE_TYPES
from ktllama.model.tensor_types import TENSOR_TYPES
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.device_binding import CPU
from ktllama.runtime.library import Library

#: ``enum llama_load_mode``
_LOAD_MODES = {"auto": -1, "none": 0, "mmap": 1, "mlock": 2}
_FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}


class _TensorOverride(ctypes.Structure):
    """``llama_model_tensor_buft_override``, which llama-cpp-python leaves opaque."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


class ModelParams:
    """``llama_model_params`` as ``value``. llama.cpp keeps pointers into the arrays while the model lives."""

    def __init__(self, value: Any, kept_alive: tuple[object, ...]) -> None:
        self.value = value
        self._kept_alive = kept_alive


def model_params(
    library: Library,
    settings: LlamaSettings,
    handles: Mapping[str, int],
    *,
    load_mode: str | None = None,
    no_alloc: bool = False,
    progress: Callable[[float], bool | None] | None = None,
) -> ModelParams:
    """Model parameters for ``settings``; ``handles`` gives the device of every device name in them.

    ``progress`` gets the loaded share, 0 to 1; returning False cancels the load.

    Raises:
        LlamaCppError: when llama.cpp cannot express the settings.
    """
    check_settings(library, settings)
    value = library.api.llama_model_default_params()
    # an array that begins with NULL: no device but the CPU, where a NULL pointer would mean "all there are"
    devices = (ctypes.c_void_p * (len(settings.devices) + 1))(*[handles[name] for name in settings.devices], None)
    split = (ctypes.c_float * library.api.llama_max_devices())(*settings.tensor_split)
    overrides = _overrides(library, settings, handles)
    callback = _progress_callback(library, progress)
    value.devices = ctypes.cast(devices, ctypes.c_void_p)
    value.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    value.n_gpu_layers = settings.n_gpu_layers
    value.split_mode = library.api.LLAMA_SPLIT_MODE_LAYER
    value.load_mode = _LOAD_MODES[load_mode or settings.load_mode]
    value.tensor_split = split
    value.use_extra_bufts = True
    value.no_host = settings.no_host
    value.no_alloc = no_alloc
    if callback is not None:
        value.progress_callback = callback
    return ModelParams(value, (devices, split, overrides, callback))


def context_params(library: Library, settings: LlamaSettings, options: ContextOptions) -> Any:
    """``llama_context_params`` for ``options``, and for the settings' ``op_offload``.

    Raises:
        LlamaCppError: for a cache type that llama.cpp does not know.
    """
    value = library.api.llama_context_default_params()
    value.n_ctx = options.n_ctx
    value.n_batch = options.n_batch
    value.n_ubatch = options.n_ubatch
    value.n_seq_max = options.n_seq_max
    value.kv_unified = options.kv_unified
    value.n_outputs_max = options.n_outputs_max
    value.type_k = _cache_type(options.type_k)
    value.type_v = _cache_type(options.type_v)
    value.flash_attn_type = _FLASH_ATTN[options.flash_attn]
    value.offload_kqv = True
    value.op_offload = settings.op_offload
    # llama.cpp's own default is 4 threads whatever the machine has, which is slow on fewer cores and on more
    value.n_threads = value.n_threads_batch = options.n_threads or _n_cpus()
    return value


def _n_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_settings(library: Library, settings: LlamaSettings) -> None:
    """Refuse settings that llama.cpp would abort on or misread.

    Raises:
        LlamaCppError: too many runs or overrides, run lengths that do not fit, or an override to a device that takes no
            part in the model.
    """
    n_runs, max_runs = len(settings.devices), library.api.llama_max_devices()
    n_overrides, max_overrides = len(settings.tensor_overrides), library.api.llama_max_tensor_buft_overrides()
    if n_runs > max_runs:
        raise LlamaCppError(f"the plan needs {n_runs} runs of layers; llama.cpp takes at most {max_runs}")
    if len(settings.tensor_split) not in (0, n_runs):
        raise LlamaCppError(f"{n_runs} runs of layers, but {len(settings.tensor_split)} run lengths in tensor_split")
    if n_overrides >= max_overrides:
        raise LlamaCppError(f"{n_overrides} tensor overrides; llama.cpp takes at most {max_overrides - 1}")
    for override in settings.tensor_overrides:
        if override.device != CPU and override.device not in settings.devices:
            raise LlamaCppError(
                f"the override '{override.pattern}' names {override.device}, which holds no layers: llama.cpp can only "
                f"use a device that is in the list of devices ({', '.join(settings.devices) or 'empty'})"
            )


def _overrides(library: Library, settings: LlamaSettings, handles: Mapping[str, int]) -> Any:
    listed = (_TensorOverride * (len(settings.tensor_overrides) + 1))()  # the last stays NULL
    for entry, override in zip(listed, settings.tensor_overrides, strict=False):
        entry.pattern = override.pattern.encode()
        entry.buft = library.call("ggml_backend_dev_buffer_type", handles[override.device])
    return listed


def _progress_callback(library: Library, progress: Callable[[float], bool | None] | None) -> Any:
    if progress is None:
        return None
    return library.api.llama_progress_callback(lambda share, _user_data: progress(share) is not False)


def _cache_type(name: str) -> int:
    if name not in CACHE_TYPES:
        raise LlamaCppError(f"'{name}' is no type that llama.cpp can keep a KV cache in")
    return TENSOR_TYPES[name.upper()].number
