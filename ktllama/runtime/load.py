"""A real load, in this process: the model's weights, its context, and what llama.cpp said about them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any

from ktllama.errors import LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime import dry_run_log, preconditions
from ktllama.runtime import library as llama_library
from ktllama.runtime.attachment import Attachment
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.device_binding import CPU, BoundDevice
from ktllama.runtime.device_list import buffer_devices
from ktllama.runtime.dry_run_log import LoadLog
from ktllama.runtime.library import Library
from ktllama.runtime.log_capture import ERROR, INFO, WARN, LogCapture, LogLine
from ktllama.runtime.params import ModelParams, context_params, model_params
from ktllama.runtime.sparse_copy import split_paths

_SHOWN_LINES = 8

#: How llama.cpp calls the buffers of a mapped file, after their device (``ggml_backend_cpu_buffer_from_ptr_type``).
MAPPED = "_Mapped"

#: Weights on the CPU may take this share of the free memory before they are mapped instead of read.
_READ_SHARE = 0.9


class LoadedModel:
    """A model and a context. Close it, or use it as a context manager; it frees both and stops the stand-ins.

    ``model`` and ``context`` are llama.cpp's handles. ``lines`` is the log of the load, ``recent`` the last warnings
    and errors since.
    """

    def __init__(
        self, library: Library, attachment: Attachment, settings: LlamaSettings, options: ContextOptions
    ) -> None:
        self.library = library
        self.settings = settings
        self.options = options
        self.model: Any = None
        self.context: Any = None
        self.lines: list[LogLine] = []
        self.recent: deque[LogLine] = deque(maxlen=_SHOWN_LINES)
        self.eval_callback: Any = None
        self._attachment = attachment
        self._params: ModelParams | None = None
        self._capture = LogCapture(library, self._keep)
        self._buffers = buffer_devices(library)

    @property
    def bound(self) -> tuple[BoundDevice, ...]:
        """What each device name of the settings is on this machine."""
        return self._attachment.bound

    @property
    def stand_in_pid(self) -> int | None:
        """The process id of the stand-ins, if there are any."""
        return self._attachment.stand_in_pid

    @property
    def vocab(self) -> Any:
        """llama.cpp's vocabulary handle."""
        return self.library.api.llama_model_get_vocab(self.model)

    def log(self) -> LoadLog:
        """What llama.cpp's log says about this load; buffers keep llama.cpp's names."""
        return dry_run_log.parse(self.lines)

    def settings_name(self, device: str) -> str:
        """The settings' name of a llama.cpp device, or its own name when the settings do not mention it."""
        return next((bound.name for bound in self.bound if bound.backend_name == device), device)

    def buffer_holder(self, buffer_type: str) -> str:
        """The settings' name of the device that buffers called ``buffer_type`` in the log lie on."""
        offered = buffer_type.removesuffix(MAPPED)
        fallback = CPU if offered.endswith("_Host") else offered
        return self.settings_name(self._buffers.get(offered, fallback))

    def model_bytes(self) -> dict[str, int]:
        """Bytes of weights by device as llama.cpp printed them, to 0.01 MiB a buffer."""
        return self._by_device(self.log().model_bytes)

    def kv_bytes(self) -> dict[str, int]:
        """Bytes of KV cache by device as llama.cpp printed them, to 0.01 MiB a buffer."""
        return self._by_device(self.log().kv_bytes)

    def compute_bytes(self) -> dict[str, int]:
        """Bytes of compute buffers by device as llama.cpp printed them, to 0.01 MiB a buffer."""
        return self._by_device(self.log().compute_bytes)

    def close(self) -> None:
        """Free the context and the model, then stop the stand-ins. Safe to call twice."""
        api = self.library.api
        if self.context:
            api.llama_free(self.context)
            self.context = None
        if self.model:
            api.llama_model_free(self.model)
            self.model = None
        self._capture.stop()
        self._attachment.close()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self, path: Path, load_mode: str, progress: Callable[[float], bool | None] | None) -> None:
        """Load the weights and make the context; called once, by :func:`load`."""
        api = self.library.api
        self._params = model_params(
            self.library, self.settings, self._attachment.handles, load_mode=load_mode, progress=progress
        )
        self.model = api.llama_model_load_from_file(os.fsencode(path), self._params.value)
        if not self.model:
            raise LlamaCppError(f"llama.cpp refused to load {path}", log=self._last_lines())
        params = context_params(self.library, self.settings, self.options)
        if self.eval_callback is not None:
            params.cb_eval = self.eval_callback
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise LlamaCppError(
                f"llama.cpp refused to make a context of {self.options.n_ctx} tokens", log=self._last_lines()
            )

    def _keep(self, line: LogLine) -> None:
        if self.context is None:
            self.lines.append(line)
        elif line.level >= WARN:
            self.recent.append(line)

    def _by_device(self, sizes: Any) -> dict[str, int]:
        total: dict[str, int] = {}
        for buffer_type, n_bytes in sizes.items():
            device = self.buffer_holder(buffer_type)
            total[device] = total.get(device, 0) + n_bytes
        return total

    def _last_lines(self) -> tuple[str, ...]:
        errors = [line.text for line in self.lines if line.level >= ERROR and line.text]
        return tuple((errors or [line.text for line in self.lines if line.level >= INFO])[-_SHOWN_LINES:])


def load(
    model_path: str | os.PathLike[str],
    settings: LlamaSettings,
    context: ContextOptions,
    *,
    progress: Callable[[float], bool | None] | None = None,
    explicit_devices: Collection[str] = (),
    stand_ins: bool = False,
    cpu_bytes: int | None = None,
    eval_callback: Any = None,
) -> LoadedModel:
    """Load the model at ``model_path`` (the first file of a split one) by ``settings`` and make a context.

    ``progress`` gets the loaded share, 0 to 1, and cancels the load by returning False. ``cpu_bytes``, the weights that
    the plan leaves on the CPU, decides what a load mode of ``auto`` becomes (:func:`chosen_load_mode`).
    ``eval_callback``, a ``ggml_backend_sched_eval_callback``, sees the nodes of every graph that is computed. A failed
    assertion in llama.cpp ends this process: try a :func:`~ktllama.runtime.dry_run.dry_run` first.

    Raises:
        LlamaCppError: when llama.cpp is missing, or refuses the model or the context; ``log`` holds its last lines.
        ModelFileError: for metadata that llama.cpp would abort over.
        DeviceError: when a device is missing and ``stand_ins`` is False, or the user chose it (``explicit_devices``).
    """
    path = Path(model_path)
    if not path.is_file():
        raise LlamaCppError(f"{path}: no such file")
    preconditions.check_file(path)
    library = llama_library.load()
    loaded = LoadedModel(
        library,
        Attachment(library, settings, explicit=explicit_devices, stand_ins=stand_ins, n_threads=context.n_threads),
        settings,
        context,
    )
    loaded.eval_callback = eval_callback
    try:
        loaded.open(path, chosen_load_mode(path, settings, cpu_bytes), progress)
    except BaseException:
        loaded.close()
        raise
    return loaded


def chosen_load_mode(path: Path, settings: LlamaSettings, cpu_bytes: int | None = None) -> str:
    """How to read the weights: as the settings say, and for ``auto`` by the free memory.

    Weights that fit are read (``none``): they can then be repacked or pinned, nothing is paged out, and the sizes that
    llama.cpp prints are exact. Weights that do not fit are mapped, so that the system may drop and read them again.
    ``cpu_bytes`` are the bytes that stay in main memory; unknown, all of the model's files count.
    """
    if settings.load_mode != "auto":
        return settings.load_mode
    if cpu_bytes is None:
        cpu_bytes = sum(part.stat().st_size for part in split_paths(path) if part.exists())
    return "none" if cpu_bytes <= _READ_SHARE * free_memory_bytes() else "auto"


def free_memory_bytes() -> int:
    """Memory that processes may take without swapping; all of it where the system does not say what is free."""
    try:
        with Path("/proc/meminfo").open() as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
