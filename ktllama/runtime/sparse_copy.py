"""Copies of model files that hold the header only, for files whose tensor data are missing.

llama.cpp refuses a file that ends before its tensors do, even when it is not going to read them. A sparse file of the
right length, with the header in front, satisfies it and takes almost no disk.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ktllama.errors import LlamaCppError
from ktllama.runtime.library import Library, gguf_header

#: No header is longer; whatever follows within it is copied along.
_MAX_HEADER_BYTES = 256 * 1024 * 1024

#: The name of a split file (``llama_split_path`` in ``src/llama.cpp``).
_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def split_paths(first: Path) -> tuple[Path, ...]:
    """All files of the model whose first file is ``first``: llama.cpp finds the others by name."""
    found = _SPLIT_NAME.fullmatch(first.name)
    if found is None:
        return (first,)
    numbers = range(1, int(found["count"]) + 1)
    return tuple(first.with_name(f"{found['stem']}-{number:05d}-of-{found['count']}.gguf") for number in numbers)


def copy_headers(library: Library, first: Path, directory: Path) -> Path:
    """Copy every file of a model, header only and at full length, into ``directory``; the copy of the first.

    Raises:
        LlamaCppError: when a file is missing, or is no GGUF header, or the directory cannot take it.
    """
    for source in split_paths(first):
        try:
            _copy_header(library, source, directory / source.name)
        except OSError as error:
            raise LlamaCppError(f"{source}: cannot make a sparse copy in {directory}: {error}") from error
    return directory / first.name


def full_bytes(library: Library, path: Path) -> int:
    """The length that a file must have for all tensors that its header lists."""
    with gguf_header(library, str(path)) as header:
        start: int = library.call("gguf_get_data_offset", header)
        ends = (
            library.call("gguf_get_tensor_offset", header, index) + library.call("gguf_get_tensor_size", header, index)
            for index in range(library.call("gguf_get_n_tensors", header))
        )
        return start + max(ends, default=0)


def _copy_header(library: Library, source: Path, target: Path) -> None:
    n_bytes = full_bytes(library, source)
    with source.open("rb") as original, target.open("wb") as copy:
        copy.write(original.read(_MAX_HEADER_BYTES))
        copy.truncate(max(n_bytes, os.fstat(copy.fileno()).st_size))
