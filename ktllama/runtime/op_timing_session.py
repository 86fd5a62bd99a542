"""Times operations of llama.cpp's devices in a child process."""

from __future__ import annotations

from typing import Any

from ktllama.errors import LlamaCppError
from ktllama.runtime.child_session import ChildSession
from ktllama.runtime.op_timing import MatrixTimes


class OpTimingSession(ChildSession):
    """One child. Devices are llama.cpp's names, ``n_threads`` counts for the CPU only. Close it at the end.

    Raises:
        LlamaCppError: when llama.cpp is missing or is another version; from every method when it dies.
    """

    def __init__(self) -> None:
        super().__init__("ktllama.runtime.op_timing_child", doing="while its operations were timed")

    def matrices(self, device: str, n_threads: int, type_name: str) -> tuple[MatrixTimes, ...]:
        """:func:`ktllama.runtime.op_timing.time_matrices`; empty where the device has no kernel for the type."""
        found = self._ask({"device": device, "n_threads": n_threads, "what": "matrix", "type": type_name})
        return tuple(MatrixTimes(**times) for times in found)

    def attention(self, device: str, n_threads: int, type_name: str, kind: str) -> float | None:
        """:func:`ktllama.runtime.op_timing.time_attention`."""
        asked = {"device": device, "n_threads": n_threads, "what": "attention", "type": type_name, "kind": kind}
        found = self._ask(asked)
        return None if found is None else float(found)

    def copy(self, device: str) -> float:
        """:func:`ktllama.runtime.op_timing.time_copy`."""
        return float(self._ask({"device": device, "n_threads": 1, "what": "copy"}))

    def __enter__(self) -> OpTimingSession:
        return self

    def _ask(self, request: dict[str, Any]) -> Any:
        self._send(request)
        reply = self._receive()
        if "error" in reply:
            raise LlamaCppError(reply["error"])
        return reply["found"]
