"""A child process that answers requests, a line of JSON each way, until its input ends.

llama.cpp aborts the process when an assertion of it fails, so whatever may meet one runs in a child: its death is an
error here, with what it last said.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any, NoReturn

from ktllama.errors import LlamaCppError
from ktllama.runtime import child_process
from ktllama.runtime.dry_run import how_it_ended, last_words, log_line
from ktllama.runtime.library import require_pinned_version
from ktllama.runtime.log_capture import LogLine

_STOP_SECONDS = 20.0


class ChildSession:
    """One child that runs ``module``; ``doing`` ends the sentence that says it died. Close it at the end.

    Raises:
        LlamaCppError: when llama.cpp is missing or is another version.
    """

    def __init__(self, module: str, *arguments: str, doing: str) -> None:
        require_pinned_version()
        self._doing = doing
        self._log: IO[bytes] = tempfile.TemporaryFile(prefix="ktllama-")  # noqa: SIM115  # closed with the session
        self._child = subprocess.Popen(
            child_process.command(module, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=child_process.environment(GGML_NO_BACKTRACE="1"),  # else ggml starts a debugger on itself
        )

    def close(self) -> None:
        """End the child. Safe to call twice."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, and receive said so or nobody asked
            self._child.stdin.close()
        try:
            self._child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._log.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        """Send a request.

        Raises:
            LlamaCppError: when the child has died.
        """
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            self._raise_death(0)

    def _receive(self, begins: int = 0) -> dict[str, Any]:
        """The child's next reply; if it died, the error quotes its log from byte ``begins`` on.

        Raises:
            LlamaCppError: when the child has died.
        """
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._raise_death(begins)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _log_bytes(self) -> int:
        return os.fstat(self._log.fileno()).st_size

    def _lines(self, begins: int) -> list[LogLine]:
        """What the child logged from byte ``begins`` on."""
        # pread: the file's position is the child's too, which writes on
        said = os.pread(self._log.fileno(), self._log_bytes() - begins, begins)
        return [log_line(text) for text in said.decode(errors="replace").splitlines()]

    def _raise_death(self, begins: int) -> NoReturn:
        code = self._child.wait()
        raise LlamaCppError(f"llama.cpp {how_it_ended(code)} {self._doing}", log=last_words(self._lines(begins)))
