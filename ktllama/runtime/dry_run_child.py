"""The child process of a dry run: ``python -m ktllama.runtime.dry_run_child``.

A request comes as JSON on standard input, the reply goes as JSON to standard output, llama.cpp's log to standard error,
one ``level<TAB>text`` a line as it comes: llama.cpp aborts the process when an assertion of it fails, and the last
lines say why.

With ``--session`` it serves until its input ends, one line of JSON a request and a reply. The first names the devices;
every other is a placement with any number of contexts, each of whose log begins with a line of ours.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from ktllama.errors import DeviceError, LlamaCppError
from ktllama.lower.settings import LlamaSettings, TensorOverride
from ktllama.runtime import library as llama_library
from ktllama.runtime import sparse_copy, tensor_map
from ktllama.runtime.attachment import Attachment, n_possible_stand_ins
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.device_list import available, buffer_device, buffer_devices
from ktllama.runtime.library import Library
from ktllama.runtime.log_capture import CONTEXT_MARK, NONE, LogCapture, LogLine
from ktllama.runtime.params import context_params, model_params
from ktllama.runtime.stand_ins import StandInServer


def main() -> int:
    """Serve one request, or with ``--session`` many."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a failed assertion is an answer, not worth a core file
    # whatever C code prints to standard output must not get into the reply
    reply_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with reply_to:
        if sys.argv[1:] == ["--session"]:
            _serve_session(reply_to)
        else:
            request = json.load(sys.stdin)
            json.dump(_answer(lambda: _serve(request)), reply_to)
    return 0


def _answer(serve: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The reply; what can go wrong is one too."""
    try:
        return serve()
    except DeviceError as error:
        return {"error": "device", "reason": error.reason}
    except LlamaCppError as error:
        return {"error": "llama.cpp", "reason": error.reason}


def _serve_session(reply_to: TextIO) -> None:
    opening = json.loads(sys.stdin.readline() or "{}")
    if not opening:
        return
    named = LlamaSettings(n_gpu_layers=0, devices=tuple(opening["devices"]))
    server = _early_server(named) if opening["stand_ins"] else None
    try:
        library = llama_library.load_low_level_only()
        LogCapture(library, _write)
        attached: list[Attachment] = []

        def serve(request: dict[str, Any]) -> dict[str, Any]:
            if not attached:
                attached.append(
                    Attachment(
                        library, named, explicit=opening["explicit"], stand_ins=opening["stand_ins"], server=server
                    )
                )
            settings = settings_from_json(request["settings"])
            contexts = [ContextOptions(**context) for context in request["contexts"]]
            reply = _place(library, Path(request["model_path"]), settings, contexts, attached[0])
            return {**reply, "bound": [dataclasses.asdict(device) for device in attached[0].bound]}

        for line in sys.stdin:
            request = json.loads(line)
            json.dump(_answer(lambda request=request: serve(request)), reply_to)  # type: ignore[misc]
            reply_to.write("\n")
            reply_to.flush()
    finally:
        if server is not None:
            server.stop()


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    settings = settings_from_json(request["settings"])
    options = ContextOptions(**request["context"])
    # started before it is known to be needed, so that both processes load the library at the same time
    server = _early_server(settings) if request["stand_ins"] else None
    try:
        library = llama_library.load_low_level_only()
        LogCapture(library, _write)
        with Attachment(
            library, settings, explicit=request["explicit"], stand_ins=request["stand_ins"], server=server
        ) as attached:
            path = _model_path(library, request)
            reply = _place(library, path, settings, [options], attached)
            reply |= reply.pop("contexts", [{}])[0]
            reply["bound"] = [dataclasses.asdict(device) for device in attached.bound]
            return reply
    finally:
        if server is not None:
            server.stop()


def settings_from_json(value: dict[str, Any]) -> LlamaSettings:
    """The settings that :func:`dataclasses.asdict` and JSON made lists and mappings of."""
    overrides = tuple(TensorOverride(**override) for override in value["tensor_overrides"])
    plain = {**value, "devices": tuple(value["devices"]), "tensor_split": tuple(value["tensor_split"])}
    return LlamaSettings(**{**plain, "tensor_overrides": overrides})


def _early_server(settings: LlamaSettings) -> StandInServer | None:
    n_devices = n_possible_stand_ins(settings)
    if not n_devices:
        return None
    server = StandInServer(n_devices)
    server.start()
    return server


def _model_path(library: Library, request: dict[str, Any]) -> Path:
    path = Path(request["model_path"])
    if not request["sparse_directory"]:
        return path
    return sparse_copy.copy_headers(library, path, Path(request["sparse_directory"]))


def _place(
    library: Library, path: Path, settings: LlamaSettings, contexts: Sequence[ContextOptions], attached: Attachment
) -> dict[str, Any]:
    """Let llama.cpp place the model and build contexts one after the other, without allocating anything."""
    api = library.api
    parameters = model_params(library, settings, attached.handles, load_mode="none", no_alloc=True)
    started = time.perf_counter()
    model = api.llama_model_load_from_file(os.fsencode(path), parameters.value)
    if not model:
        return {"error": "refused", "reason": f"llama.cpp refused to load {path}"}
    loaded = time.perf_counter() - started
    try:
        return {
            "contexts": [_make_context(library, model, settings, options, loaded) for options in contexts],
            "devices": [dataclasses.asdict(device) for device in available(library)],
            "buffers": buffer_devices(library),
            "tensors": _tensors(library, model),
        }
    finally:
        api.llama_model_free(model)


def _make_context(
    library: Library, model: int, settings: LlamaSettings, options: ContextOptions, loaded: float
) -> dict[str, Any]:
    """Make a context and free it; ``loaded`` are the seconds that the model took."""
    _write(LogLine(NONE, CONTEXT_MARK))
    started = time.perf_counter()
    made = library.api.llama_init_from_model(model, context_params(library, settings, options))
    if not made:
        return {"error": "refused", "reason": f"llama.cpp refused to make a context of {options.n_ctx} tokens"}
    library.api.llama_free(made)
    return {"seconds": loaded + time.perf_counter() - started}


def _tensors(library: Library, model: int) -> dict[str, list[str]] | None:
    """Tensor name → the devices that hold a copy of it."""
    loaded = tensor_map.read(library, model)
    if loaded is None:
        return None
    device_of = {
        buffer_type: buffer_device(library, buffer_type) for buffer_type in {tensor.buffer_type for tensor in loaded}
    }
    found: dict[str, list[str]] = {}
    for tensor in loaded:
        found.setdefault(tensor.name, []).append(device_of[tensor.buffer_type])
    return found


def _write(line: LogLine) -> None:
    os.write(2, f"{line.level}\t{line.text}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
