"""Settings for apps that load models through llama-cpp-python themselves.

llama-cpp-python has no arguments for tensor overrides and devices. Every load goes through
``llama_cpp.llama_cpp.llama_model_load_from_file(path, params)``; while :func:`applied` is active, that function fills
in the parameters first. The caller's own function is put back when the last active block ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ktllama.errors import KtllamaError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime import library as llama_library
from ktllama.runtime.attachment import Attachment
from ktllama.runtime.library import Library
from ktllama.runtime.params import model_params

_HOOKED = "llama_model_load_from_file"


class SettingsConflictError(KtllamaError):
    """The caller passed a placement option of its own against the settings."""

    def __init__(self, option: str, given: object, wanted: object) -> None:
        self.option = option
        self.given = given
        self.wanted = wanted
        super().__init__(option, given, wanted)

    def __str__(self) -> str:
        return (
            f"{self.option}={self.given} was passed to llama-cpp-python, but the rules need {self.option}="
            f"{self.wanted}; leave it out, or load outside of ktllama.applied()"
        )


@contextmanager
def applied(settings: LlamaSettings) -> Iterator[None]:
    """Within the block, models that this thread (or task) loads through llama-cpp-python are placed by ``settings``.

    The context's ``op_offload`` is not a matter of the load: pass ``**settings.llama_kwargs()`` to ``Llama``.

    Raises:
        LlamaCppError: when llama.cpp is missing or cannot express the settings.
        DeviceError: when a device of the settings is not in this build.
        SettingsConflictError: from the load, when the caller passed ``n_gpu_layers`` or ``tensor_split`` against them.
    """
    library = llama_library.load()
    attachment = Attachment(library, settings)
    try:
        _HOOK.enter(library)
        token = _ACTIVE.set((settings, attachment))
        try:
            yield
        finally:
            _ACTIVE.reset(token)
            _HOOK.leave(library)
    finally:
        attachment.close()


_ACTIVE: ContextVar[tuple[LlamaSettings, Attachment] | None] = ContextVar("ktllama_settings", default=None)


class _Hook:
    """Puts the function in place for the first block and takes it away after the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_blocks = 0
        self._original: Callable[[bytes, Any], Any] | None = None

    def enter(self, library: Library) -> None:
        with self._lock:
            if self._n_blocks == 0:
                self._original = getattr(library.api, _HOOKED)
                setattr(library.api, _HOOKED, _loading(library, self._original))
            self._n_blocks += 1

    def leave(self, library: Library) -> None:
        with self._lock:
            self._n_blocks -= 1
            if self._n_blocks == 0:
                setattr(library.api, _HOOKED, self._original)
                self._original = None


_HOOK = _Hook()


def _loading(library: Library, original: Callable[[bytes, Any], Any]) -> Callable[[bytes, Any], Any]:
    def llama_model_load_from_file(path_model: bytes, params: Any, /) -> Any:
        active = _ACTIVE.get()
        if active is not None:
            _fill_in(library, params, *active)
        return original(path_model, params)

    return llama_model_load_from_file


def _fill_in(library: Library, params: Any, settings: LlamaSettings, attachment: Attachment) -> None:
    defaults = library.api.llama_model_default_params()
    if params.n_gpu_layers not in (0, defaults.n_gpu_layers, settings.n_gpu_layers):
        raise SettingsConflictError("n_gpu_layers", params.n_gpu_layers, settings.n_gpu_layers)
    if params.tensor_split:
        n_devices = library.api.llama_max_devices()
        given = tuple(share for share in params.tensor_split[:n_devices] if share)
        if given and given != tuple(float(share) for share in settings.tensor_split if share):
            raise SettingsConflictError("tensor_split", list(given), list(settings.tensor_split))
    placed = model_params(library, settings, attachment.handles)
    for name in ("devices", "tensor_buft_overrides", "n_gpu_layers", "split_mode", "tensor_split", "no_host"):
        setattr(params, name, getattr(placed.value, name))
    # llama.cpp keeps pointers into the arrays while the model lives, and llama-cpp-python keeps params that long
    params.ktllama_kept_alive = placed
