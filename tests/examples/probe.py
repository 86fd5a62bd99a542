"""Runs an example on a GPU stand-in and writes down where the tensors of every model that it loads really are.

``probe.py REPORT.json EXAMPLE.py ARGUMENT…``: the example knows nothing of either. REPORT gets one map from tensor to
device a model, as llama.cpp's own table has them.
"""

from __future__ import annotations

import ctypes
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import llama_cpp._internals

from ktllama.runtime import library as llama_library
from ktllama.runtime import tensor_map
from ktllama.runtime.device_list import buffer_device
from ktllama.runtime.stand_ins import StandInServer, register


def main(report: str, example: str, *arguments: str) -> None:
    library = llama_library.load()
    _report_models(library, Path(report))
    server = StandInServer(1)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))  # it must outlive models that are freed at the very end
    assert register(library, server.endpoint()) == ("RPC0",)
    sys.argv = [example, *arguments]
    runpy.run_path(example, run_name="__main__")


def _report_models(library: Any, report: Path) -> None:
    internals: Any = llama_cpp._internals
    initialise = internals.LlamaModel.__init__
    models: list[dict[str, str]] = []

    def initialise_and_report(self: Any, **keywords: Any) -> None:
        initialise(self, **keywords)
        tensors = tensor_map.read(library, self.model)
        assert tensors is not None
        models.append({tensor.name: buffer_device(library, tensor.buffer_type) for tensor in tensors})
        report.write_text(json.dumps(models))

    internals.LlamaModel.__init__ = initialise_and_report


if __name__ == "__main__":
    main(*sys.argv[1:])
