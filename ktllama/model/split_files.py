"""Split files as one model: which files belong together, and whether they agree.

The rules are those of ``llama_split_path`` and ``llama_model_loader`` (``src/llama-model-loader.cpp`` of the llama.cpp
in llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath

from ktllama.errors import ModelFileError
from ktllama.model import gguf_header
from ktllama.model.byte_source import Location
from ktllama.model.gguf_header import Header
from ktllama.model.model_file import Tensor
from ktllama.model.wording import quoted, shown

_SPLIT_NAME = re.compile(r"(?P<prefix>.+)-(?P<part>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.ASCII | re.DOTALL)


def read_part(location: Location, file_index: int, *, header_only: bool) -> Header:
    """The header of one file.

    Raises:
        ModelFileError: for a file that cannot be read, is no GGUF file, is damaged or incomplete.
    """
    with location.open() as source:
        return gguf_header.parse(location.shown, source, file_index, header_only=header_only)


def other_parts(location: Location, first: Header, *, header_only: bool) -> Iterator[Header]:
    """The parts after ``first``, which is at ``location``. llama.cpp wants the first part, so do we.

    Raises:
        ModelFileError: when a part is missing, misnamed, or does not belong to the others.
    """
    count = _split_integer(first, "split.count", default=1)
    if count <= 1:
        named_count = position(location.file_name)[1]
        if named_count > 1:
            raise ModelFileError(
                first.path, f"is named as one of {named_count} parts, but its metadata has no split.count above 1"
            )
        return
    locations = _locations(location, first, count)
    _check_all_exist(locations)
    for index in range(1, count):
        part = read_part(locations[index], index, header_only=header_only)
        said = (_split_integer(part, "split.no") + 1, _split_integer(part, "split.count"))
        if said != (index + 1, count):
            raise ModelFileError(
                part.path, f"its metadata says part {said[0]} of {said[1]}, expected part {index + 1} of {count}"
            )
        yield part


def joined_tensors(parts: tuple[Header, ...]) -> tuple[Tensor, ...]:
    """The tensors of all parts, in their order.

    Raises:
        ModelFileError: when there are none, one is in two parts, or they are not as many as the first part says.
    """
    owners: dict[str, str] = {}
    for part in parts:
        for tensor in part.tensors:
            if tensor.name in owners:
                raise ModelFileError(part.path, f"tensor {quoted(tensor.name)} is also in {owners[tensor.name]}")
            owners[tensor.name] = part.path
    first = parts[0]
    if not owners:
        raise ModelFileError(first.path, "has no tensors; it holds a vocabulary at most, not a model")
    if len(parts) > 1:
        expected = _split_integer(first, "split.tensors.count")
        if expected != len(owners):
            raise ModelFileError(
                first.path, f"its parts hold {len(owners):,} tensors; split.tensors.count says {expected:,}"
            )
    return tuple(tensor for part in parts for tensor in part.tensors)


def stem(file_name: str) -> str:
    """A model's name by its file's: without the ending, and without the part of a split file."""
    split = _SPLIT_NAME.fullmatch(file_name)
    return split["prefix"] if split else PurePath(file_name).stem


def position(file_name: str) -> tuple[int, int]:
    """Which part of how many a file's name says it is, from 1."""
    split = _SPLIT_NAME.fullmatch(file_name)
    return (int(split["part"]), int(split["count"])) if split else (1, 1)


def _locations(location: Location, first: Header, count: int) -> list[Location]:
    """Where all parts are; they are named as ``llama_split_path`` names them."""
    number = _split_integer(first, "split.no") + 1
    if position(location.file_name) != (number, count):
        raise ModelFileError(
            first.path,
            f"is part {number} of {count}; its file name must end in {_suffix(number, count)}, "
            "and all parts must lie in one folder",
        )
    prefix = stem(location.file_name)
    if number != 1:
        shown_first = location.sibling(prefix + _suffix(1, count)).shown
        raise ModelFileError(first.path, f"is part {number} of {count}; give the first part instead: {shown_first}")
    return [location, *(location.sibling(prefix + _suffix(part, count)) for part in range(2, count + 1))]


def _suffix(part: int, count: int) -> str:
    return f"-{part:05d}-of-{count:05d}.gguf"


def _split_integer(part: Header, key: str, default: int | None = None) -> int:
    value = part.metadata.get(key, default)
    if type(value) is not int or not 0 <= value < 2**31:
        said = "is missing" if value is None else f"is {shown(value)}"
        raise ModelFileError(part.path, f"metadata key '{key}' {said}; expected a whole number")
    return value


def _check_all_exist(locations: list[Location]) -> None:
    missing = [location for location in locations if location.is_missing()]
    if missing:
        more = f" (and {len(missing) - 1:,} more parts)" if len(missing) > 1 else ""
        raise ModelFileError(
            missing[0].shown, f"no such file; it is one of the {len(locations):,} parts of this model{more}"
        )
