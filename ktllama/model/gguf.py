"""Reads the header of GGUF files: metadata and tensor infos, split files as one model.

The gguf package's ``GGUFReader`` decodes every token of the vocabulary, which takes seconds for DeepSeek-R1.
This reader walks over long arrays, reads no tensor data, and imports nothing slow.

Whatever the file holds, the outcome is a :class:`ModelFile` or a :class:`ModelFileError`. The rules are those of
``gguf_init_from_reader`` and ``llama_model_loader`` (``ggml/src/gguf.cpp``, ``src/llama-model-loader.cpp`` of the
llama.cpp in llama-cpp-python 0.3.36), and a few bounds of our own that keep time and memory small.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, NoReturn

from ktllama.errors import ModelFileError
from ktllama.model.model_file import MetadataArray, MetadataValue, ModelFile, Tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32  # bytes; GGUF_DEFAULT_ALIGNMENT

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS in src/llama-hparams.h
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME, without the terminating zero
MAX_KEY_BYTES = 65_535  # the GGUF specification
_MAX_INT64 = 2**63 - 1

# Ours. DeepSeek-R1 has about 60 keys, 1,086 tensors and a header of 5 MB.
MAX_KEYS = 4096
MAX_TENSORS = 262_144
MAX_HEADER_BYTES = 128 * 1024**2
MAX_KEPT_ITEMS = 4096
_CHUNK_BYTES = 4 * 1024**2
_MAX_SHOWN = 80  # characters of a name in a message

_U32 = Struct("<I")
_U64 = Struct("<Q")

# enum gguf_type: scalars by number, with their struct codes.
SCALAR_CODES: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_SCALARS = {number: Struct("<" + code) for number, code in SCALAR_CODES.items()}
STRING = 8
ARRAY = 9

_SPLIT_NAME = re.compile(r"(?P<prefix>.+)-(?P<part>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class TensorType:
    """A ggml type: ``block_items`` values take ``block_bytes`` bytes; a row holds whole blocks."""

    number: int
    name: str
    block_items: int
    block_bytes: int


#: Every type of the pinned llama.cpp by its name (``ggml/include/ggml.h`` and ``type_traits`` in ``ggml/src/ggml.c``).
TENSOR_TYPES: Mapping[str, TensorType] = {
    name: TensorType(number, name, block_items, block_bytes)
    for number, name, block_items, block_bytes in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 36),
        (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292), (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50), (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136), (24, "I8", 1, 1), (25, "I16", 1, 2),
        (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8), (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66), (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18), (42, "Q2_0", 64, 18),
    )
}  # fmt: skip
_TYPES_BY_NUMBER = {tensor_type.number: tensor_type for tensor_type in TENSOR_TYPES.values()}


def read(path: str | os.PathLike[str], *, header_only: bool = False) -> ModelFile:
    """Read the header of a GGUF model. Given the first of its split files, read all of them as one.

    Metadata is the first file's. Arrays of more than ``MAX_KEPT_ITEMS`` items keep only their length. Strings that
    are not UTF-8 keep their odd bytes as ``\\xNN``. ``header_only`` accepts files whose tensor data is cut off or
    absent. Offsets and alignment are checked as llama.cpp does: each tensor right after the one before.

    Raises:
        ModelFileError: for a file that cannot be read, is no GGUF file, is damaged, incomplete or no model.
    """
    first = _read_part(os.fspath(path), 0, header_only=header_only)
    parts = (first, *_other_parts(first, header_only=header_only))
    tensors = _joined_tensors(parts)
    architecture = _architecture(first)
    return ModelFile(
        name=_name(first),
        architecture=architecture,
        metadata=first.metadata,
        tensors=tensors,
        paths=tuple(part.path for part in parts),
    )


def tensor_bytes(type_name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor without padding. ``shape[0]`` is the contiguous dimension.

    Raises:
        KeyError: for a type that the pinned llama.cpp does not have.
        ValueError: when a row is not made of whole blocks.
    """
    tensor_type = TENSOR_TYPES[type_name]
    if shape[0] % tensor_type.block_items:
        raise ValueError(
            f"has rows of {shape[0]:,} values; type {type_name} needs a multiple of {tensor_type.block_items}"
        )
    return math.prod(shape) // tensor_type.block_items * tensor_type.block_bytes


def padded(n_bytes: int, alignment: int) -> int:
    """``n_bytes`` rounded up to a multiple of ``alignment``."""
    return -(-n_bytes // alignment) * alignment


# --- One file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    path: str
    metadata: dict[str, MetadataValue]
    tensors: tuple[Tensor, ...]


def _read_part(path: str, file_index: int, *, header_only: bool) -> _Part:
    try:
        _check_regular(path)
        with Path(path).open("rb") as file:
            cursor = _Cursor(path, file, os.fstat(file.fileno()).st_size)
            return _parse(cursor, file_index, header_only=header_only)
    except FileNotFoundError:
        raise ModelFileError(path, "no such file") from None
    except OSError as error:
        raise ModelFileError(path, f"cannot be read: {error.strerror}") from error


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


def _parse(cursor: _Cursor, file_index: int, *, header_only: bool) -> _Part:
    _check_magic(cursor)
    _check_version(cursor)
    n_tensors = cursor.count("tensors", smallest_bytes=24, limit=MAX_TENSORS)
    n_keys = cursor.count("metadata keys", smallest_bytes=13, limit=MAX_KEYS)
    metadata = _metadata(cursor, n_keys)
    alignment = _alignment(cursor.path, metadata)
    tensors = _tensors(cursor, n_tensors, file_index, alignment)
    if tensors and not header_only:
        _check_complete(cursor, tensors, alignment)
    return _Part(path=cursor.path, metadata=metadata, tensors=tensors)


def _check_magic(cursor: _Cursor) -> None:
    if cursor.file_bytes == 0:
        raise ModelFileError(cursor.path, "is empty; expected a GGUF file")
    begins = cursor.peek(7)
    if begins == b"version":
        raise ModelFileError(
            cursor.path, "is a Git LFS pointer, not the model; run 'git lfs pull' or download the file itself"
        )
    if not begins.startswith(MAGIC[: len(begins)]):
        raise ModelFileError(cursor.path, f"is not a GGUF file: it begins with {begins[:4]!r}, expected {MAGIC!r}")
    cursor.take(len(MAGIC), "the magic number")


def _check_version(cursor: _Cursor) -> None:
    at = cursor.position
    version = cursor.u32("the GGUF version")
    if version in VERSIONS:
        return
    if version & 0xFFFF == 0 and version:  # as gguf.cpp tells it
        cursor.fail("is a big-endian GGUF file; only little-endian files can be read", at)
    hint = "; convert the model again with a current llama.cpp" if version == 1 else ""
    cursor.fail(f"has GGUF version {version:,}; versions 2 and 3 can be read{hint}", at)


def _check_complete(cursor: _Cursor, tensors: tuple[Tensor, ...], alignment: int) -> None:
    last = tensors[-1]
    expected = padded(cursor.position, alignment) + last.offset + last.n_bytes
    if cursor.file_bytes < expected:
        missing = expected - cursor.file_bytes
        raise ModelFileError(
            cursor.path,
            f"is incomplete: {cursor.file_bytes:,} of {expected:,} bytes, {missing:,} are missing; download it again",
        )


# --- Metadata ---------------------------------------------------------------------------------------------------------


def _metadata(cursor: _Cursor, n_keys: int) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for index in range(n_keys):
        at = cursor.position
        key = cursor.name(f"the name of metadata key {index}", MAX_KEY_BYTES)
        if not key:
            cursor.fail(f"metadata key {index} has an empty name", at)
        if key in metadata:
            cursor.fail(f"metadata key {quoted(key)} is there twice", at)
        metadata[key] = _value(cursor, f"metadata key {quoted(key)}")
    return metadata


def _value(cursor: _Cursor, what: str) -> MetadataValue:
    at = cursor.position
    value_type = cursor.u32(what)
    if value_type == ARRAY:
        return _array(cursor, what)
    if value_type == STRING:
        return cursor.text(what)
    if value_type not in _SCALARS:
        cursor.fail(f"{what} has the unknown value type {value_type}", at)
    (value,) = cursor.unpack(_SCALARS[value_type], what)
    return value  # type: ignore[no-any-return]


def _array(cursor: _Cursor, what: str) -> MetadataArray:
    at = cursor.position
    item_type = cursor.u32(what)
    if item_type == ARRAY:
        cursor.fail(f"{what} is an array of arrays, which llama.cpp does not read either", at)
    if item_type != STRING and item_type not in _SCALARS:
        cursor.fail(f"{what} has the unknown item type {item_type}", at)
    item_bytes = _U64.size if item_type == STRING else _SCALARS[item_type].size
    at = cursor.position
    n_items = cursor.u64(what)
    cursor.expect(n_items * item_bytes, f"{what} with {n_items:,} items", at)
    if n_items <= MAX_KEPT_ITEMS:
        return MetadataArray(item_type=item_type, n_items=n_items, values=_values(cursor, what, item_type, n_items))
    if item_type == STRING:
        cursor.skip_strings(n_items, what)
    else:
        cursor.skip(n_items * item_bytes, what)
    return MetadataArray(item_type=item_type, n_items=n_items)


def _values(cursor: _Cursor, what: str, item_type: int, n_items: int) -> tuple[bool | int | float | str, ...]:
    if item_type == STRING:
        return tuple(cursor.text(what) for _ in range(n_items))
    return cursor.unpack(Struct(f"<{n_items}{SCALAR_CODES[item_type]}"), what)


def _alignment(path: str, metadata: Mapping[str, MetadataValue]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 0 < value < 2**32 or value & (value - 1):
        raise ModelFileError(path, f"general.alignment is {_shown(value)}; expected a power of two below 2^32")
    return value


# --- Tensor infos -----------------------------------------------------------------------------------------------------


def _tensors(cursor: _Cursor, n_tensors: int, file_index: int, alignment: int) -> tuple[Tensor, ...]:
    tensors: list[Tensor] = []
    names: set[str] = set()
    offset = 0
    for index in range(n_tensors):
        at = cursor.position
        tensor = _tensor(cursor, index, file_index, expected_offset=offset)
        if tensor.name in names:
            cursor.fail(f"tensor {quoted(tensor.name)} is there twice", at)
        names.add(tensor.name)
        tensors.append(tensor)
        offset += padded(tensor.n_bytes, alignment)
    return tuple(tensors)


def _tensor(cursor: _Cursor, index: int, file_index: int, *, expected_offset: int) -> Tensor:
    name = _tensor_name(cursor, index)
    what = f"tensor {quoted(name)}"
    shape = _shape(cursor, what)
    type_name, n_bytes = _type_and_bytes(cursor, what, shape)
    at = cursor.position
    offset = cursor.u64(what)
    if offset != expected_offset:  # llama.cpp takes neither gaps nor overlaps: gguf.cpp, "has offset"
        cursor.fail(f"{what} has offset {offset:,}, expected {expected_offset:,}, right after the tensor before", at)
    return Tensor(name=name, shape=shape, type=type_name, n_bytes=n_bytes, offset=offset, file_index=file_index)


def _tensor_name(cursor: _Cursor, index: int) -> str:
    at = cursor.position
    name = cursor.name(f"the name of tensor {index}", MAX_TENSOR_NAME_BYTES)
    if not name:
        cursor.fail(f"tensor {index} has an empty name", at)
    if not name.isprintable():
        cursor.fail(f"tensor name {quoted(name)} holds unprintable characters", at)
    return name


def _shape(cursor: _Cursor, what: str) -> tuple[int, ...]:
    at = cursor.position
    n_dimensions = cursor.u32(what)
    if n_dimensions > MAX_DIMENSIONS:
        cursor.fail(f"{what} has {n_dimensions:,} dimensions; ggml has at most {MAX_DIMENSIONS}", at)
    shape = tuple(cursor.u64(what) for _ in range(n_dimensions)) or (1,)
    if 0 in shape:
        cursor.fail(f"{what} has the shape {list(shape)}; every dimension must be at least 1", at)
    if math.prod(shape) > _MAX_INT64:
        cursor.fail(f"{what} has the shape {list(shape)}, which is more values than ggml can count", at)
    return shape


def _type_and_bytes(cursor: _Cursor, what: str, shape: tuple[int, ...]) -> tuple[str, int]:
    at = cursor.position
    number = cursor.u32(what)
    tensor_type = _TYPES_BY_NUMBER.get(number)
    if tensor_type is None:
        cursor.fail(f"{what} has type number {number}, which the supported llama.cpp does not have", at)
    try:
        n_bytes = tensor_bytes(tensor_type.name, shape)
    except ValueError as error:
        cursor.fail(f"{what} {error}", at)
    if n_bytes > _MAX_INT64:
        cursor.fail(f"{what} has the shape {list(shape)}, which is more bytes than ggml can count", at)
    return tensor_type.name, n_bytes


# --- Split files ------------------------------------------------------------------------------------------------------


def _other_parts(first: _Part, *, header_only: bool) -> Iterator[_Part]:
    """The parts after ``first``, named as ``llama_split_path`` names them. llama.cpp wants the first part, so do we."""
    named = _SPLIT_NAME.fullmatch(Path(first.path).name)
    count = _split_integer(first, "split.count", default=1)
    named_count = int(named["count"]) if named else 1
    if count <= 1:
        if named_count > 1:
            raise ModelFileError(
                first.path, f"is named as one of {named_count} parts, but its metadata has no split.count above 1"
            )
        return
    number = _split_integer(first, "split.no") + 1
    if not named or (int(named["part"]), named_count) != (number, count):
        raise ModelFileError(
            first.path,
            f"is part {number} of {count}; its file name must end in {_split_suffix(number, count)}, "
            "and all parts must lie in one folder",
        )
    prefix = named["prefix"]
    paths = [str(Path(first.path).with_name(prefix + _split_suffix(part, count))) for part in range(1, count + 1)]
    if number != 1:
        raise ModelFileError(first.path, f"is part {number} of {count}; give the first part instead: {paths[0]}")
    _check_all_exist(paths)
    for index in range(1, count):
        part = _read_part(paths[index], index, header_only=header_only)
        said = (_split_integer(part, "split.no") + 1, _split_integer(part, "split.count"))
        if said != (index + 1, count):
            raise ModelFileError(
                part.path, f"its metadata says part {said[0]} of {said[1]}, expected part {index + 1} of {count}"
            )
        yield part


def _split_suffix(part: int, count: int) -> str:
    return f"-{part:05d}-of-{count:05d}.gguf"


def _split_integer(part: _Part, key: str, default: int | None = None) -> int:
    value = part.metadata.get(key, default)
    if type(value) is not int or not 0 <= value < 2**31:
        said = "is missing" if value is None else f"is {_shown(value)}"
        raise ModelFileError(part.path, f"metadata key '{key}' {said}; expected a whole number")
    return value


def _check_all_exist(paths: list[str]) -> None:
    missing = [path for path in paths if not Path(path).exists()]
    if missing:
        more = f" (and {len(missing) - 1:,} more parts)" if len(missing) > 1 else ""
        raise ModelFileError(missing[0], f"no such file; it is one of the {len(paths):,} parts of this model{more}")


def _joined_tensors(parts: tuple[_Part, ...]) -> tuple[Tensor, ...]:
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


# --- What makes it a model --------------------------------------------------------------------------------------------


def _architecture(part: _Part) -> str:
    value = part.metadata.get("general.architecture")
    if not isinstance(value, str) or not value or not value.isprintable():
        said = "is missing" if value is None else f"is {_shown(value)}"
        raise ModelFileError(part.path, f"general.architecture {said}; expected a name such as 'deepseek2'")
    n_layers = part.metadata.get(f"{value}.block_count")
    if type(n_layers) is not int or not 1 <= n_layers <= MAX_LAYERS:
        said = "is missing" if n_layers is None else f"is {_shown(n_layers)}"
        raise ModelFileError(
            part.path, f"metadata key {quoted(value + '.block_count')} {said}; expected 1 to {MAX_LAYERS} layers"
        )
    return value


def _name(part: _Part) -> str:
    name = part.metadata.get("general.name")
    if isinstance(name, str) and name.strip() and name.isprintable():
        return name
    split = _SPLIT_NAME.fullmatch(Path(part.path).name)
    return split["prefix"] if split else Path(part.path).stem


def quoted(name: str) -> str:
    """``name`` in quotes, fit for a message: unprintable characters escaped, cut where it gets long."""
    shown = name if len(name) <= _MAX_SHOWN else name[:_MAX_SHOWN] + "…"
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown) + "'"


def _shown(value: MetadataValue) -> str:
    if isinstance(value, MetadataArray):
        return f"an array of {value.n_items:,} items"
    return quoted(value) if isinstance(value, str) else str(value)


# --- The bytes --------------------------------------------------------------------------------------------------------


class _Cursor:
    """A position in the bytes of a header. Every read is checked against the file's size before it is made."""

    __slots__ = ("_data", "_file", "file_bytes", "path", "position")

    def __init__(self, path: str, file: BinaryIO, file_bytes: int) -> None:
        self.path = path
        self.file_bytes = file_bytes
        self.position = 0
        self._file = file
        self._data = b""

    def fail(self, reason: str, offset: int) -> NoReturn:
        raise ModelFileError(self.path, reason, offset=offset)

    def expect(self, n_bytes: int, what: str, offset: int | None = None) -> None:
        """Make sure that the file can hold ``n_bytes`` more, without reading them."""
        left = self.file_bytes - self.position  # negative after a string that reaches past the file's end
        if n_bytes > left:
            at = min(self.position if offset is None else offset, self.file_bytes)
            self.fail(f"is cut off or damaged: it ends within {what}", at)

    def peek(self, n_bytes: int) -> bytes:
        """The next bytes, fewer at the file's end."""
        self._load(min(self.position + n_bytes, self.file_bytes), "the beginning")
        return self._data[self.position : self.position + n_bytes]

    def take(self, n_bytes: int, what: str) -> bytes:
        start = self.position
        self.skip(n_bytes, what)
        return self._data[start : self.position]

    def skip(self, n_bytes: int, what: str) -> None:
        self.expect(n_bytes, what)
        self._load(self.position + n_bytes, what)
        self.position += n_bytes

    # Any: the item's type depends on the struct's format.
    def unpack(self, layout: Struct, what: str) -> tuple[Any, ...]:
        start = self.position
        self.skip(layout.size, what)
        return layout.unpack_from(self._data, start)

    def u32(self, what: str) -> int:
        return int(self.unpack(_U32, what)[0])

    def u64(self, what: str) -> int:
        return int(self.unpack(_U64, what)[0])

    def count(self, what: str, *, smallest_bytes: int, limit: int) -> int:
        """How many ``what`` follow, each of which takes at least ``smallest_bytes``."""
        at = self.position
        n_items = self.u64(f"the number of {what}")
        self.expect(n_items * smallest_bytes, f"a header with {n_items:,} {what}", at)
        if n_items > limit:
            self.fail(f"has {n_items:,} {what}; at most {limit:,} are read", at)
        return n_items

    def name(self, what: str, max_bytes: int) -> str:
        at = self.position
        n_bytes = self.u64(what)
        self.expect(n_bytes, what, at)
        if n_bytes > max_bytes:
            self.fail(f"{what} is {n_bytes:,} bytes long; at most {max_bytes:,} are allowed", at)
        try:
            return self.take(n_bytes, what).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8", at)

    def text(self, what: str) -> str:
        return self.take(self.u64(what), what).decode("utf-8", errors="backslashreplace")

    def skip_strings(self, n_items: int, what: str) -> None:
        """Walk over strings by their lengths: the one loop that a large vocabulary makes long."""
        unpack_length = _U64.unpack_from
        position, left = self.position, n_items
        while left:
            data = self._data
            try:
                while left:
                    position += 8 + unpack_length(data, position)[0]
                    left -= 1
            except (struct.error, OverflowError):
                self.position = position
                self.expect(8, what)
                self._load(position + 8, what)
        self.position = position
        self.expect(0, what)

    def _load(self, end: int, what: str) -> None:
        """Hold the file's bytes up to ``end``, which :meth:`expect` has checked."""
        if end <= len(self._data):
            return
        if end > MAX_HEADER_BYTES:
            self.fail(f"is damaged: with {what} its header is over {MAX_HEADER_BYTES:,} bytes", self.position)
        self._data += self._file.read(max(end - len(self._data), _CHUNK_BYTES))
        if end > len(self._data):  # it shrank since we asked for its size
            self.file_bytes = len(self._data)
            self.fail("became shorter while it was read", len(self._data))
