"""The child process that times operations: ``python -m ktllama.runtime.op_timing_child``.

A line of JSON a request and a reply, until its input ends.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
from typing import Any

from ktllama.errors import LlamaCppError
from ktllama.runtime import library as llama_library
from ktllama.runtime.op_graphs import Device
from ktllama.runtime.op_timing import time_attention, time_copy, time_matrices


def main() -> int:
    """Serve requests."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # whatever C code prints to standard output must not get into a reply
    reply_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    library = llama_library.load_low_level_only()
    with reply_to:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                with Device(library, request["device"], request["n_threads"]) as device:
                    reply = {"found": _time(device, request)}
            except LlamaCppError as error:
                reply = {"error": error.reason}
            json.dump(reply, reply_to)
            reply_to.write("\n")
            reply_to.flush()
    return 0


def _time(device: Device, request: dict[str, Any]) -> Any:
    if request["what"] == "matrix":
        return [dataclasses.asdict(times) for times in time_matrices(device, request["type"])]
    if request["what"] == "attention":
        return time_attention(device, request["type"], request["kind"])
    return time_copy(device)


if __name__ == "__main__":
    sys.exit(main())
