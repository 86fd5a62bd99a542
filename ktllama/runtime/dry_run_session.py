"""Dry runs one after another in one child process: a planner makes several, and most of one is the child's start.

The child starts when the session is made and works on its first request as soon as it can, so whoever makes the session
early has it ready when the first placement is.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

from ktllama.errors import LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime import child_process, dry_run_log
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.dry_run import DryRun, how_it_ended, last_words, log_line, raise_error, read_reply
from ktllama.runtime.library import require_pinned_version
from ktllama.runtime.log_capture import CONTEXT_MARK, LogLine

_STOP_SECONDS = 5.0


class DryRunSession:
    """One child for dry runs over ``devices`` (names of settings, the CPU goes without saying). Close it at the end.

    ``explicit_devices`` must exist as they are; with ``stand_ins`` the CPU stands in for others that are missing.

    Raises:
        LlamaCppError: when llama.cpp is missing or is another version.
    """

    def __init__(
        self, devices: Sequence[str], *, explicit_devices: Collection[str] = (), stand_ins: bool = True
    ) -> None:
        require_pinned_version()
        self._log = tempfile.TemporaryFile(prefix="ktllama-")  # noqa: SIM115  # closed with the session
        self._child = subprocess.Popen(
            child_process.command("ktllama.runtime.dry_run_child", "--session"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=child_process.environment(GGML_NO_BACKTRACE="1"),  # else ggml starts a debugger on itself
        )
        self._send({"devices": list(devices), "explicit": list(explicit_devices), "stand_ins": stand_ins})

    def run(self, model_path: str | os.PathLike[str], settings: LlamaSettings, context: ContextOptions) -> DryRun:
        """Let llama.cpp place the complete (or sparse) file ``model_path`` by ``settings``.

        Raises:
            LlamaCppError: when llama.cpp refuses the model or the context, or dies; ``log`` holds its last lines.
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
        begins = self._log_bytes()
        self._send(
            {
                "model_path": os.fspath(model_path),
                "settings": asdict(settings),
                "contexts": [asdict(context) for context in contexts],
            }
        )
        reply, lines = self._receive(begins)
        of_model, *of_contexts = _split(lines)
        raise_error(reply, of_model)
        return tuple(
            _outcome({**reply, **made}, of_model, said)
            for made, said in zip(reply["contexts"], of_contexts, strict=True)
        )

    def close(self) -> None:
        """End the child. Safe to call twice."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, and _receive said so or nobody asked
            self._child.stdin.close()
        try:
            self._child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._log.close()

    def __enter__(self) -> DryRunSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            self._raise_death(0)

    def _receive(self, begins: int) -> tuple[dict[str, Any], list[LogLine]]:
        """The child's next reply, and what it logged from byte ``begins`` on."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._raise_death(begins)
        return json.loads(line), self._lines(begins)

    def _raise_death(self, begins: int) -> None:
        code = self._child.wait()
        raise LlamaCppError(f"llama.cpp {how_it_ended(code)} during the dry run", log=last_words(self._lines(begins)))

    def _log_bytes(self) -> int:
        return os.fstat(self._log.fileno()).st_size

    def _lines(self, begins: int) -> list[LogLine]:
        # pread: the file's position is the child's too, which writes on
        said = os.pread(self._log.fileno(), self._log_bytes() - begins, begins)
        return [log_line(text) for text in said.decode(errors="replace").splitlines()]


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
