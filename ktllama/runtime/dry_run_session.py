"""Dry runs one after another in one child process: a planner makes several, and most of one is the child's start.

The child starts when the session is made and works on its first request as soon as it can, so whoever makes the session
early has it ready when the first placement is.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from ktllama.errors import LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime import dry_run_log, preconditions
from ktllama.runtime.child_session import ChildSession
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.dry_run import DryRun, last_words, raise_error, read_reply
from ktllama.runtime.log_capture import CONTEXT_MARK, LogLine


class DryRunSession(ChildSession):
    """One child for dry runs over ``devices`` (names of settings, the CPU goes without saying). Close it at the end.

    ``explicit_devices`` must exist as they are; with ``stand_ins`` the CPU stands in for others that are missing.

    Raises:
        LlamaCppError: when llama.cpp is missing or is another version.
    """

    def __init__(
        self, devices: Sequence[str], *, explicit_devices: Collection[str] = (), stand_ins: bool = True
    ) -> None:
        self._checked: set[str] = set()
        super().__init__("ktllama.runtime.dry_run_child", "--session", doing="during the dry run")
        self._send({"devices": list(devices), "explicit": list(explicit_devices), "stand_ins": stand_ins})

    def run(self, model_path: str | os.PathLike[str], settings: LlamaSettings, context: ContextOptions) -> DryRun:
        """Let llama.cpp place the complete (or sparse) file ``model_path`` by ``settings``.

        Raises:
            LlamaCppError: when llama.cpp refuses the model or the context, or dies; ``log`` holds its last lines.
            ModelFileError: for metadata that llama.cpp would abort over.
            DeviceError: when a device is missing and may not be stood in for.
        """
        (done,) = self.run_contexts(model_path, settings, [context])
        if isinstance(done, LlamaCppError):
            raise done
        return done

    def run_contexts(
        self, model_path: str | os.PathLike[str], settings: LlamaSettings, contexts: Sequence[ContextOptions]
    ) -> tuple[DryRun | LlamaCppError, ...]:
        """Like :meth:`run` with one load of the model for all ``contexts``; a context that is refused is an error."""
        path = os.fspath(model_path)
        if path not in self._checked:
            preconditions.check_file(path)
            self._checked.add(path)
        begins = self._log_bytes()
        self._send(
            {
                "model_path": path,
                "settings": asdict(settings),
                "contexts": [asdict(context) for context in contexts],
            }
        )
        reply = self._receive(begins)
        lines = self._lines(begins)
        of_model, *of_contexts = _split(lines)
        raise_error(reply, of_model)
        return tuple(
            _outcome({**reply, **made}, of_model, said)
            for made, said in zip(reply["contexts"], of_contexts, strict=True)
        )

    def __enter__(self) -> DryRunSession:
        return self


def _split(lines: list[LogLine]) -> list[list[LogLine]]:
    """What was logged before the first context, and for each context."""
    parts: list[list[LogLine]] = [[]]
    for line in lines:
        if line.text == CONTEXT_MARK:
            parts.append([])
        else:
            parts[-1].append(line)
    return parts


def _outcome(reply: dict[str, Any], of_model: list[LogLine], of_context: list[LogLine]) -> DryRun | LlamaCppError:
    if reply.get("error") is not None:
        return LlamaCppError(reply["reason"], log=last_words(of_context))
    return read_reply(reply, dry_run_log.parse([*of_model, *of_context]))
