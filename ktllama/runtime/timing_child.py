"""The child process of a measurement: ``python -m ktllama.runtime.timing_child``.

It loads one model under one placement, then measures on request until its input ends: a line of JSON a request and a
reply. llama.cpp aborts the process when an assertion of it fails, so every placement has a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
from typing import Any, TextIO

from ktllama.errors import DeviceError, LlamaCppError, ModelFileError
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.dry_run_child import settings_from_json
from ktllama.runtime.load import LoadedModel, load
from ktllama.runtime.timing import Timer


def main() -> int:
    """Load what the first line says, then serve the others."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # whatever C code prints to standard output must not get into a reply
    reply_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with reply_to:
        try:
            _serve(json.loads(sys.stdin.readline()), reply_to)
        except ModelFileError as error:
            _reply(reply_to, {"error": "file", "path": error.path, "reason": error.reason, "offset": error.offset})
        except DeviceError as error:
            _reply(reply_to, {"error": "device", "reason": error.reason})
        except LlamaCppError as error:
            _reply(reply_to, {"error": "llama.cpp", "reason": error.reason, "log": list(error.log)})
    return 0


def _serve(opening: dict[str, Any], reply_to: TextIO) -> None:
    started = time.perf_counter()
    loaded = load(
        opening["model_path"],
        settings_from_json(opening["settings"]),
        ContextOptions(**opening["context"]),
        explicit_devices=opening["explicit"],
        stand_ins=opening["stand_ins"],
        cpu_bytes=opening["cpu_bytes"],
    )
    with loaded:
        timer = Timer(loaded)
        timer.warm_up()
        _reply(reply_to, {**_about(loaded), "n_ctx": timer.n_ctx, "load_seconds": time.perf_counter() - started})
        for line in sys.stdin:
            _reply(reply_to, dataclasses.asdict(timer.measure(**json.loads(line))))


def _about(loaded: LoadedModel) -> dict[str, Any]:
    log = loaded.log()
    return {
        "weights": loaded.model_bytes(),
        "kv": loaded.kv_bytes(),
        "compute": loaded.compute_bytes(),
        "buffers": dict(log.model_bytes),
        "flash_attention": log.flash_attention,
        "graph_nodes": log.graph_nodes,
        "graph_splits": log.graph_splits,
        "stand_ins": [device.name for device in loaded.bound if device.stand_in],
    }


def _reply(reply_to: TextIO, value: dict[str, Any]) -> None:
    json.dump(value, reply_to)
    reply_to.write("\n")
    reply_to.flush()


if __name__ == "__main__":
    sys.exit(main())
