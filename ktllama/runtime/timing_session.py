"""A placement that is measured: the child process that holds the model, and what it answers."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ktllama.errors import DeviceError, LlamaCppError, ModelFileError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime.child_session import ChildSession
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.timing import Timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What llama.cpp said when a model was loaded; devices are named as in the settings, sizes are bytes.

    ``buffers`` are the weights by llama.cpp's buffer type (``CPU_REPACK`` …), ``n_ctx`` what one sequence may hold,
    ``graph_nodes`` and ``graph_splits`` are (prefill, decode). ``stand_ins`` are devices that the CPU plays.
    """

    weights: Mapping[str, int]
    kv: Mapping[str, int]
    compute: Mapping[str, int]
    buffers: Mapping[str, int]
    flash_attention: bool | None
    graph_nodes: tuple[int, int] | None
    graph_splits: tuple[int, int] | None
    stand_ins: tuple[str, ...]
    n_ctx: int
    load_seconds: float


class TimingSession(ChildSession):
    """One child with the model loaded under ``settings``. Close it, or use it as a context manager.

    ``cpu_bytes``, the weights that stay in host memory, decides how a load mode of ``auto`` reads the file
    (:func:`ktllama.runtime.load.chosen_load_mode`).

    Raises:
        LlamaCppError: when llama.cpp is missing, refuses the model or the context, or dies; ``log`` has its last words.
        ModelFileError: when the file cannot be read, or llama.cpp would abort over it.
        DeviceError: when a device is missing and ``stand_ins`` is False, or the user chose it (``explicit_devices``).
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        settings: LlamaSettings,
        context: ContextOptions,
        *,
        explicit_devices: Collection[str] = (),
        stand_ins: bool = False,
        cpu_bytes: int | None = None,
    ) -> None:
        super().__init__("ktllama.runtime.timing_child", doing="while it was measured")
        try:
            reply = self._ask(
                {
                    "model_path": os.fspath(model_path),
                    "settings": asdict(settings),
                    "context": asdict(context),
                    "explicit": list(explicit_devices),
                    "stand_ins": stand_ins,
                    "cpu_bytes": cpu_bytes,
                }
            )
        except BaseException:
            self.close()
            raise
        self.loaded = _loaded(reply)

    def measure(self, depth: int, prefill_tokens: int, decode_tokens: int) -> Timed:
        """Read ``prefill_tokens`` after ``depth`` others, then decode ``decode_tokens`` after ``depth``.

        Raises:
            LlamaCppError: when llama.cpp cannot, or dies.
        """
        asked = {"depth": depth, "prefill_tokens": prefill_tokens, "decode_tokens": decode_tokens}
        return Timed(**self._ask(asked))

    def __enter__(self) -> TimingSession:
        return self

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self._send(message)
        reply = self._receive()
        kind = reply.get("error")
        if kind == "file":
            raise ModelFileError(reply["path"], reply["reason"], offset=reply["offset"])
        if kind == "device":
            raise DeviceError(reply["reason"])
        if kind is not None:
            raise LlamaCppError(reply["reason"], log=tuple(reply.get("log", ())))
        return reply


def _loaded(reply: Mapping[str, Any]) -> Loaded:
    pairs = {
        name: None if reply[name] is None else (int(reply[name][0]), int(reply[name][1]))
        for name in ("graph_nodes", "graph_splits")
    }
    return Loaded(**{**reply, **pairs, "stand_ins": tuple(reply["stand_ins"])})
