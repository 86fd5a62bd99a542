"""The llama.cpp library that llama-cpp-python opened, and the ggml functions that its binding leaves out.

ggml is called through the handle that llama-cpp-python holds: opening ``libggml.so`` again would load a second copy
whose devices the model never sees. Function signatures: ``ggml/include/ggml-backend.h``, ``ggml-rpc.h``, ``gguf.h``
and ``ggml.h`` of the llama.cpp that llama-cpp-python 0.3.36 vendors.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ktllama.errors import LlamaCppError

PINNED_VERSION = "0.3.36"

INSTALL = f"pip install llama-cpp-python=={PINNED_VERSION}"
INSTALL_WITH_RPC = (
    "CMAKE_ARGS=-DGGML_RPC=ON pip install --force-reinstall --no-binary llama-cpp-python --no-cache-dir "
    f"llama-cpp-python=={PINNED_VERSION}"
)

_POINTER = ctypes.c_void_p
_TEXT = ctypes.c_char_p
_SIZE = ctypes.c_size_t


class _GgufInitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class _GgmlInitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


#: function → (result type, argument types)
_PROTOTYPES: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_backend_dev_count": (_SIZE, ()),
    "ggml_backend_dev_get": (_POINTER, (_SIZE,)),
    "ggml_backend_dev_by_name": (_POINTER, (_TEXT,)),
    "ggml_backend_dev_name": (_TEXT, (_POINTER,)),
    "ggml_backend_dev_description": (_TEXT, (_POINTER,)),
    "ggml_backend_dev_type": (ctypes.c_int, (_POINTER,)),
    "ggml_backend_dev_memory": (None, (_POINTER, ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE))),
    "ggml_backend_dev_buffer_type": (_POINTER, (_POINTER,)),
    "ggml_backend_dev_host_buffer_type": (_POINTER, (_POINTER,)),
    "ggml_backend_dev_backend_reg": (_POINTER, (_POINTER,)),
    "ggml_backend_reg_name": (_TEXT, (_POINTER,)),
    "ggml_backend_reg_dev_count": (_SIZE, (_POINTER,)),
    "ggml_backend_reg_dev_get": (_POINTER, (_POINTER, _SIZE)),
    "ggml_backend_reg_get_proc_address": (_POINTER, (_POINTER, _TEXT)),
    "ggml_backend_register": (None, (_POINTER,)),
    "ggml_backend_buft_name": (_TEXT, (_POINTER,)),
    "ggml_backend_buft_is_host": (ctypes.c_bool, (_POINTER,)),
    "ggml_backend_buft_get_device": (_POINTER, (_POINTER,)),
    "ggml_backend_buft_get_alignment": (_SIZE, (_POINTER,)),
    "ggml_backend_buft_get_alloc_size": (_SIZE, (_POINTER, _POINTER)),
    "ggml_backend_buffer_get_type": (_POINTER, (_POINTER,)),
    "ggml_get_name": (_TEXT, (_POINTER,)),
    "ggml_backend_tensor_get": (None, (_POINTER, _POINTER, _SIZE, _SIZE)),
    "ggml_backend_rpc_add_server": (_POINTER, (_TEXT,)),
    "ggml_backend_rpc_start_server": (None, (_TEXT, _TEXT, _SIZE, _SIZE, ctypes.POINTER(_POINTER))),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, (_POINTER, _POINTER)),
    "ggml_backend_dev_init": (_POINTER, (_POINTER, _TEXT)),
    "ggml_backend_free": (None, (_POINTER,)),
    "ggml_backend_synchronize": (None, (_POINTER,)),
    "ggml_backend_graph_compute": (ctypes.c_int, (_POINTER, _POINTER)),
    "ggml_backend_cpu_set_n_threads": (None, (_POINTER, ctypes.c_int)),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, (_POINTER, _POINTER)),
    "ggml_backend_buffer_free": (None, (_POINTER,)),
    "ggml_backend_tensor_set": (None, (_POINTER, _POINTER, _SIZE, _SIZE)),
    "ggml_init": (_POINTER, (_GgmlInitParams,)),
    "ggml_free": (None, (_POINTER,)),
    "ggml_tensor_overhead": (_SIZE, ()),
    "ggml_graph_overhead_custom": (_SIZE, (_SIZE, ctypes.c_bool)),
    "ggml_new_graph_custom": (_POINTER, (_POINTER, _SIZE, ctypes.c_bool)),
    "ggml_build_forward_expand": (None, (_POINTER, _POINTER)),
    "ggml_new_tensor_4d": (_POINTER, (_POINTER, ctypes.c_int, *(ctypes.c_int64,) * 4)),
    "ggml_nbytes": (_SIZE, (_POINTER,)),
    "ggml_add": (_POINTER, (_POINTER, _POINTER, _POINTER)),
    "ggml_mul_mat": (_POINTER, (_POINTER, _POINTER, _POINTER)),
    "ggml_mul_mat_id": (_POINTER, (_POINTER, _POINTER, _POINTER, _POINTER)),
    "ggml_flash_attn_ext": (_POINTER, (*(_POINTER,) * 5, *(ctypes.c_float,) * 3)),
    "gguf_init_from_file": (_POINTER, (_TEXT, _GgufInitParams)),
    "gguf_free": (None, (_POINTER,)),
    "gguf_get_data_offset": (_SIZE, (_POINTER,)),
    "gguf_get_n_tensors": (ctypes.c_int64, (_POINTER,)),
    "gguf_get_tensor_offset": (_SIZE, (_POINTER, ctypes.c_int64)),
    "gguf_get_tensor_size": (_SIZE, (_POINTER, ctypes.c_int64)),
}


class Library:
    """llama-cpp-python's low-level module as ``api``, and ggml's functions by :meth:`call`.

    There is one per process (:func:`load`), because llama.cpp's list of devices belongs to the process: a device once
    registered cannot be taken back. ``retired`` names the RPC endpoints whose server has stopped; asking a device
    behind one of them anything aborts the process, so the device list leaves them out.
    """

    def __init__(self, api: types.ModuleType) -> None:
        self.api: Any = api
        self.retired: set[str] = set()
        self._functions: dict[str, Callable[..., Any]] = {}
        self._log_callback: Any = None
        self.log_receiver: Callable[[int, bytes, object], None] | None = None
        self.set_log(None)
        api.llama_backend_init()

    def call(self, name: str, *arguments: object) -> Any:
        """Call a ggml function of the table above.

        Raises:
            LlamaCppError: when this build of llama.cpp does not have it.
        """
        return self.function(name)(*arguments)

    def function(self, name: str) -> Callable[..., Any]:
        """The ggml function ``name`` with its signature set."""
        bound = self._functions.get(name)
        if bound is None:
            bound = self._functions[name] = self._bind(name)
        return bound

    def set_log(self, receive: Callable[[int, bytes, object], None] | None) -> None:
        """Send llama.cpp's and ggml's log to ``receive`` (level, text, None), or nowhere; keeps the callback alive."""
        callback = self.api.llama_log_callback(receive or _discard)
        self.api.llama_log_set(callback, None)
        self._log_callback = callback
        self.log_receiver = receive

    def text(self, name: str, handle: int) -> str:
        """Call a ggml function that gives a name or a description of ``handle``."""
        found: bytes | None = self.call(name, handle)
        return (found or b"").decode(errors="replace")

    @property
    def supports_rpc(self) -> bool:
        """Whether llama.cpp was built with its RPC backend, which the GPU stand-ins need."""
        return bool(self.api.llama_supports_rpc())

    def require_rpc(self) -> None:
        """Raise a :class:`LlamaCppError` that says how to build llama.cpp with RPC, unless this build has it."""
        if not self.supports_rpc:
            raise LlamaCppError(
                "this build of llama-cpp-python has no RPC backend, so it cannot stand in for missing GPUs; "
                f"build one that has: {INSTALL_WITH_RPC}"
            )

    def _bind(self, name: str) -> Callable[..., Any]:
        try:
            function: Any = self.api._lib[name]  # indexing makes a fresh object: llama_cpp's own prototypes stay
        except AttributeError:
            if "_rpc_" in name:
                self.require_rpc()
            raise LlamaCppError(f"this build of llama.cpp does not export {name}") from None
        function.restype, function.argtypes = _PROTOTYPES[name][0], list(_PROTOTYPES[name][1])
        return function  # type: ignore[no-any-return]


@functools.cache
def load() -> Library:
    """The process's llama.cpp.

    Raises:
        LlamaCppError: when llama-cpp-python is not installed, does not load, or its structures are not the pinned
            version's.
    """
    library = Library(_import_api())
    _check_structures(library.api)
    return library


def load_low_level_only() -> Library:
    """Like :func:`load`, but without running ``llama_cpp/__init__.py``, which takes 0.2 s for modules that a child
    process of ours never uses. Later imports of ``llama_cpp.Llama`` in this process would fail.
    """
    if "llama_cpp" not in sys.modules and (spec := _find_package()):
        package = types.ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["llama_cpp"] = package
    return load()


def installed_version() -> str:
    """The version of the installed llama-cpp-python.

    Raises:
        LlamaCppError: when it is not installed.
    """
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        raise LlamaCppError(f"llama-cpp-python is not installed: {INSTALL}") from None


def require_pinned_version() -> None:
    """Refuse a llama-cpp-python whose log and structures ktllama was not checked against.

    Raises:
        LlamaCppError: when it is missing or another version.
    """
    found = installed_version()
    if found != PINNED_VERSION:
        raise LlamaCppError(
            f"llama-cpp-python {found} is installed; ktllama reads the log of {PINNED_VERSION}, and another version "
            f"words it differently: {INSTALL}"
        )


@contextmanager
def ggml_context(library: Library, n_tensors: int) -> Iterator[int]:
    """A ``ggml_context`` with room for ``n_tensors`` tensors and graphs of as many nodes; their data lies elsewhere."""
    n_bytes = n_tensors * library.call("ggml_tensor_overhead")
    n_bytes += 2 * library.call("ggml_graph_overhead_custom", n_tensors, False)
    handle: int | None = library.call("ggml_init", _GgmlInitParams(n_bytes, None, True))
    if not handle:
        raise LlamaCppError("ggml has no memory for a graph")
    try:
        yield handle
    finally:
        library.call("ggml_free", handle)


@contextmanager
def gguf_header(library: Library, path: str) -> Iterator[int]:
    """A ``gguf_context`` of the header at ``path``, whose tensor data may be missing.

    Raises:
        LlamaCppError: when it is no GGUF header.
    """
    handle: int | None = library.call("gguf_init_from_file", path.encode(), _GgufInitParams(True, None))
    if not handle:
        raise LlamaCppError(f"{path}: llama.cpp cannot read the header")
    try:
        yield handle
    finally:
        library.call("gguf_free", handle)


def _discard(_level: int, _text: bytes, _user_data: object) -> None:
    pass


def _find_package() -> Any:
    return importlib.util.find_spec("llama_cpp")


def _import_api() -> types.ModuleType:
    if "llama_cpp" not in sys.modules and _find_package() is None:
        raise LlamaCppError(f"llama-cpp-python is not installed: {INSTALL}")
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise LlamaCppError(f"llama-cpp-python is installed but does not load: {error}") from error


def _check_structures(api: Any) -> None:
    """llama.cpp's defaults read through the binding's structures: other values mean another layout."""
    model, context = api.llama_model_default_params(), api.llama_context_default_params()
    found = {
        "split_mode": model.split_mode,
        "use_extra_bufts": model.use_extra_bufts,
        "no_alloc": model.no_alloc,
        "n_batch": context.n_batch,
        "type_k": context.type_k,
        "offload_kqv": context.offload_kqv,
    }
    expected = {
        "split_mode": api.LLAMA_SPLIT_MODE_LAYER,
        "use_extra_bufts": True,
        "no_alloc": False,
        "n_batch": 2048,
        "type_k": api.GGML_TYPE_F16,
        "offload_kqv": True,
    }
    wrong = [f"{name} is {found[name]}, not {value}" for name, value in expected.items() if found[name] != value]
    if wrong:
        raise LlamaCppError(
            "llama-cpp-python's structures do not fit the llama.cpp library it opened "
            f"({'; '.join(wrong)}); reinstall: {INSTALL}"
        )
