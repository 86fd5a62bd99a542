"""Settings for apps that load models through llama-cpp-python themselves, without a change in the app.

llama-cpp-python has no arguments for tensor overrides and devices. Every load goes through
``llama_cpp.llama_cpp.llama_model_load_from_file(path, params)`` and every context comes from
``llama_init_from_model(model, params)`` there. While a block is active, both names hold functions that fill in the
parameters first, for the blocks' model files only; when the last block ends, llama-cpp-python's own functions are put
back. The second one is needed because ``op_offload`` belongs to the context, and many apps have no way to pass it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktllama.errors import ModelFileError
from ktllama.lower.settings import LlamaSettings
from ktllama.model import gguf
from ktllama.ruleset.rules import Ruleset
from ktllama.runtime import library as llama_library
from ktllama.runtime.attachment import Attachment
from ktllama.runtime.conflicts import PlacementConflictError, Wanted, first_difference
from ktllama.runtime.library import Library
from ktllama.runtime.params import ModelParams, model_params
from ktllama.translation import Options, translate

_LOAD = "llama_model_load_from_file"
_INIT = "llama_init_from_model"

#: What of ``llama_model_params`` is the placement's; the rest stays as the caller has it.
_PLACED_FIELDS = ("devices", "tensor_buft_overrides", "n_gpu_layers", "split_mode", "tensor_split", "no_host")


@contextmanager
def placement(
    rules: str | os.PathLike[str] | Ruleset,
    model_path: str | os.PathLike[str],
    *,
    options: Options | None = None,
    stand_ins: bool = False,
) -> Iterator[None]:
    """Within the block, llama-cpp-python loads the model at ``model_path`` as ``rules`` say, whoever loads it.

    The file decides, not the thread: a load of that file (under any of its names) is placed in every thread, so that
    apps may load lazily in a worker. Other files are left alone, so a draft or an embedding model loads as ever.
    Blocks may be nested and may overlap in threads. A model keeps its placement after the block.

    ``stand_ins`` lets the CPU play GPUs that are missing, to try rules out; the stand-ins serve until the process ends,
    and llama.cpp counts them among its devices that long.

    Raises:
        RulesetError: when the rules have errors.
        RuleFileError, ModelFileError, UnsupportedModelError: when an input cannot be used.
        DeviceError: when the rules need a device that is not here.
        LlamaCppError: when llama.cpp is missing or cannot express the settings.
        PlacementConflictError: when an active block places the same file in another way.
        SettingsConflictError: from the load, when the caller passed ``n_gpu_layers``, ``split_mode``, ``main_gpu``,
            ``tensor_split``, ``offload_kqv`` or ``op_offload`` against the rules.
    """
    block = block_of_rules(rules, model_path, options=options, stand_ins=stand_ins)
    with _HOOK.active(block):
        yield


@contextmanager
def applied(settings: LlamaSettings, model_path: str | os.PathLike[str], *, stand_ins: bool = False) -> Iterator[None]:
    """Like :func:`placement`, with settings that were compiled before.

    Raises:
        ModelFileError: when the file cannot be read as a model.
        DeviceError, LlamaCppError, PlacementConflictError, SettingsConflictError: as :func:`placement` does.
    """
    path = os.fspath(model_path)
    n_layers = gguf.read(path, header_only=True).n_layers
    wanted = Wanted(settings=settings, source="ktllama.applied", model_path=path, n_layers=n_layers)
    with _HOOK.active(_block(wanted, stand_ins=stand_ins)):
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """How one model file is to be loaded, and the arrays and devices that llama.cpp needs while the model lives."""

    wanted: Wanted
    params: ModelParams
    attachment: Attachment

    def is_for(self, path: str | bytes) -> bool:
        """Whether ``path`` leads to the block's model file, by whatever name."""
        try:
            return Path(os.fsdecode(path)).samefile(self.wanted.model_path)
        except OSError:
            return False  # gone or never there: llama-cpp-python says so


def block_of_rules(
    rules: str | os.PathLike[str] | Ruleset,
    model_path: str | os.PathLike[str],
    *,
    options: Options | None,
    stand_ins: bool,
) -> Block:
    """Compile ``rules`` for the model file and bind the result to this machine's devices; raises as ``placement``."""
    path = os.fspath(model_path)
    done = translate(rules, path, options=options)
    wanted = Wanted(settings=done.settings, source=done.ruleset.file, model_path=path, n_layers=done.model.n_layers)
    return _block(wanted, explicit=tuple(done.options.device_map.chosen.values()), stand_ins=stand_ins)


@contextmanager
def placing(block: Block) -> Iterator[None]:
    """Within the block, a load of its file is placed in this thread (or task) only, whatever other blocks say."""
    with _HOOK.installed():
        token = _OWN.set(block)
        try:
            yield
        finally:
            _OWN.reset(token)


_OWN: ContextVar[Block | None] = ContextVar("ktllama_own_block", default=None)


class _Hook:
    """Puts the two functions in place for the first block, takes them away after the last, and knows who is active."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_installed = 0
        self._originals: dict[str, Callable[..., Any]] = {}
        self._replacements: dict[str, Callable[..., Any]] = {}
        self._blocks: list[Block] = []
        self._models: dict[int, Wanted] = {}  # by llama.cpp's handle

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Keep the functions in place."""
        api = _library().api
        with self._lock:
            if self._n_installed == 0:
                self._install(api)
            self._n_installed += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_installed -= 1
                if self._n_installed == 0:
                    self._remove(api)

    @contextmanager
    def active(self, block: Block) -> Iterator[None]:
        """Place loads of the block's file in every thread."""
        with self.installed():
            with self._lock:
                self._refuse_conflict(block)
                self._blocks.append(block)
            try:
                yield
            finally:
                with self._lock:
                    self._blocks.remove(block)

    def find(self, path: str | bytes) -> Block | None:
        """The block that a load of ``path`` falls under here and now."""
        own = _OWN.get()
        if own is not None and own.is_for(path):
            return own
        with self._lock:
            blocks = tuple(reversed(self._blocks))
        return next((block for block in blocks if block.is_for(path)), None)

    def remember(self, model: int | None, wanted: Wanted | None) -> None:
        """Note how a model was placed; a handle that comes again is another model."""
        if model is None:
            return
        with self._lock:
            self._models.pop(model, None)
            if wanted is not None:
                self._models[model] = wanted

    def wanted_of(self, model: int) -> Wanted | None:
        """How ``model`` was placed, if it was."""
        with self._lock:
            return self._models.get(model)

    def _refuse_conflict(self, block: Block) -> None:
        for other in self._blocks:
            difference = first_difference(other.wanted.settings, block.wanted.settings)
            if difference is not None and other.is_for(block.wanted.model_path):
                first, second = other.wanted.source, block.wanted.source
                raise PlacementConflictError(block.wanted.model_path, first, second, difference)

    def _install(self, api: Any) -> None:
        self._originals = {name: getattr(api, name) for name in (_LOAD, _INIT)}
        self._replacements = {
            _LOAD: _loading(api, self._originals[_LOAD]),
            _INIT: _initialising(api, self._originals[_INIT]),
        }
        for name, replacement in self._replacements.items():
            setattr(api, name, replacement)

    def _remove(self, api: Any) -> None:
        for name, original in self._originals.items():
            # somebody else's function on top of ours stays; ours below it lets everything through
            if getattr(api, name) is self._replacements[name]:
                setattr(api, name, original)
        self._originals, self._replacements = {}, {}
        self._models.clear()


_HOOK = _Hook()


def _block(wanted: Wanted, *, explicit: Collection[str] = (), stand_ins: bool) -> Block:
    if not Path(wanted.model_path).is_file():
        raise ModelFileError(wanted.model_path, "no such file; placing a model needs the file that will be loaded")
    library = _library()
    attachment = Attachment(library, wanted.settings, explicit=explicit, stand_ins=stand_ins)
    if attachment.stand_in_pid is not None:
        _keep_for_good(attachment)
    return Block(
        wanted=wanted, params=model_params(library, wanted.settings, attachment.handles), attachment=attachment
    )


def _keep_for_good(attachment: Attachment) -> None:
    """Let stand-ins serve as long as the process lives.

    Models use them after their block and are freed as late as in the interpreter's last steps, and llama.cpp cannot
    forget a device: a call to a stand-in that has stopped hangs or ends the process. So the object is never freed; its
    worker ends when the process does.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(attachment))


def _loading(api: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    def llama_model_load_from_file(path_model: bytes, params: Any, /) -> Any:
        block = None if params.vocab_only else _HOOK.find(path_model)
        if block is not None:
            _fill_in(api, params, block)
        model = original(path_model, params)
        _HOOK.remember(model, None if block is None else block.wanted)
        return model

    return llama_model_load_from_file


def _initialising(api: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    def llama_init_from_model(model: int, params: Any, /) -> Any:
        wanted = _HOOK.wanted_of(model)
        if wanted is not None:
            wanted.check_context(api, params)
            params.op_offload = wanted.settings.op_offload
        return original(model, params)

    return llama_init_from_model


def _fill_in(api: Any, params: Any, block: Block) -> None:
    if getattr(params, "ktllama_kept_alive", None) is block:
        return  # a second layer of the hook, below somebody else's
    block.wanted.check_model(api, params)
    for name in _PLACED_FIELDS:
        setattr(params, name, getattr(block.params.value, name))
    if block.wanted.settings.load_mode != "auto":
        params.load_mode = block.params.value.load_mode
    # llama.cpp keeps pointers into the arrays while the model lives, and llama-cpp-python keeps params that long
    params.ktllama_kept_alive = block


def _library() -> Library:
    """llama.cpp, with the log where the app has it: ours is silent, and an app's ``verbose=True`` must stay."""
    if llama_library.load.cache_info().currsize:
        return llama_library.load()
    try:
        api: Any = importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError, AttributeError):
        return llama_library.load()  # says what is wrong
    callback, user_data = api.llama_log_callback(), ctypes.c_void_p()
    api.llama_log_get(ctypes.byref(callback), ctypes.byref(user_data))
    library = llama_library.load()
    api.llama_log_set(callback, user_data)
    return library
