"""One writer of a file at a time: who keeps figures in it reads it once and replaces it whole after each."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ktllama.errors import PathError


class InUseError(PathError):
    """A file that another process keeps figures in, or whose folder nothing can be written to."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other processes from holding ``path``, which need not exist; its folder is made.

    The lock is on a file beside it (flock(2)), since the file itself is replaced, and ends with the process.

    Raises:
        InUseError: when another process holds it, or its folder cannot be written to.
    """
    beside = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(beside)
    except BlockingIOError as fault:
        raise InUseError(str(path), "another ktllama tune writes to it: wait until that one is done") from fault
    except OSError as fault:
        raise InUseError(str(path), f"cannot be written: {fault.strerror}") from fault
    try:
        yield
    finally:
        beside.unlink(missing_ok=True)  # while it is locked, so that it is ours
        os.close(descriptor)


def _locked(beside: Path) -> int:
    """A descriptor of the file, locked, and still the one of that name: its last holder may have removed it."""
    while True:
        descriptor = os.open(beside, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if beside.exists() and os.path.samestat(os.fstat(descriptor), beside.stat()):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
