"""Run the command as a user does, in this process."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from unittest import mock

from ktllama.cli.main import main


@dataclass(frozen=True, slots=True)
class Ran:
    """Exit status and what was written where."""

    status: int
    out: str
    err: str


def ktllama(*words: str, stdin: str = "") -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch("sys.argv", ["ktllama", *words]),
        mock.patch("sys.stdin", io.StringIO(stdin)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            return Ran(int(ended.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("the command did not end")
