"""Where the bytes of a model's file come from: a disk here, a server in ``remote.py``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from ktllama.errors import ModelFileError

_CHUNK_BYTES = 4 * 1024**2


class ByteSource(Protocol):
    """An open file, read from its start onwards."""

    @property
    def size(self) -> int | None:
        """The file's length in bytes, or None where it is not known."""

    def read_at(self, offset: int, length: int) -> bytes:
        """At least ``length`` bytes from ``offset`` on, more where that is cheap, fewer only at the file's end.

        ``offset`` is where the last read ended.
        """


class Location(Protocol):
    """Where one file of a model is, and the files beside it."""

    @property
    def shown(self) -> str:
        """Its path or address as messages show it, without secrets."""

    @property
    def file_name(self) -> str:
        """Its own name, without folders."""

    def sibling(self, file_name: str) -> Location:
        """The file of that name in the same folder."""

    def is_missing(self) -> bool:
        """Whether it is known not to exist. Asks nobody far away."""

    def open(self) -> AbstractContextManager[ByteSource]:
        """Open it. Raises ModelFileError."""


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A file on disk, by its path."""

    shown: str

    @property
    def file_name(self) -> str:
        """Its own name, without folders."""
        return Path(self.shown).name

    def sibling(self, file_name: str) -> DiskFile:
        """The file of that name in the same folder."""
        return DiskFile(str(Path(self.shown).with_name(file_name)))

    def is_missing(self) -> bool:
        """Whether it does not exist."""
        return not Path(self.shown).exists()

    @contextmanager
    def open(self) -> Iterator[ByteSource]:
        """Open it; errors while it is read become ModelFileErrors too."""
        try:
            _check_regular(self.shown)
            with Path(self.shown).open("rb") as file:
                yield _DiskBytes(file, os.fstat(file.fileno()).st_size)
        except FileNotFoundError:
            raise ModelFileError(self.shown, "no such file") from None
        except OSError as error:
            raise ModelFileError(self.shown, f"cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _DiskBytes:
    _file: BinaryIO
    size: int

    def read_at(self, offset: int, length: int) -> bytes:
        assert offset == self._file.tell()
        return self._file.read(max(length, _CHUNK_BYTES))


def _check_regular(path: str) -> None:
    """Opening a FIFO would wait for a writer, and a device may act on being opened."""
    try:
        mode = Path(path).stat().st_mode
    except ValueError as error:  # a NUL character, or one that the file system cannot encode
        raise ModelFileError(path, "is no possible file name") from error
    if stat.S_ISDIR(mode):
        raise ModelFileError(path, "is a directory; expected a GGUF file")
    if not stat.S_ISREG(mode):
        raise ModelFileError(path, "is not a regular file; expected a GGUF file")
