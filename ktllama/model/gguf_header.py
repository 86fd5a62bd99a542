"""Parses the header of one GGUF file: metadata and tensor infos, from any source of bytes.

The rules are those of ``gguf_init_from_reader`` (``ggml/src/gguf.cpp`` of the llama.cpp in llama-cpp-python 0.3.36),
and a few bounds of our own that keep time and memory small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct

from ktllama.errors import ModelFileError
from ktllama.model.byte_source import ByteSource
from ktllama.model.gguf_cursor import U64, Cursor
from ktllama.model.model_file import MetadataArray, MetadataValue, Tensor
from ktllama.model.tensor_types import TYPES_BY_NUMBER, padded, tensor_bytes
from ktllama.model.wording import quoted, shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32  # bytes; GGUF_DEFAULT_ALIGNMENT

MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME, without the terminating zero
MAX_KEY_BYTES = 65_535  # the GGUF specification
_MAX_INT64 = 2**63 - 1

# Ours. DeepSeek-R1 has about 60 keys and 1,086 tensors.
MAX_KEYS = 4096
MAX_TENSORS = 262_144
MAX_KEPT_ITEMS = 4096

# enum gguf_type: scalars by number, with their struct codes.
SCALAR_CODES: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_SCALARS = {number: Struct("<" + code) for number, code in SCALAR_CODES.items()}
STRING = 8
ARRAY = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header of one file, called ``path`` in messages. ``data_offset``: bytes before its tensor data."""

    path: str
    metadata: dict[str, MetadataValue]
    tensors: tuple[Tensor, ...]
    data_offset: int


def parse(path: str, source: ByteSource, file_index: int, *, header_only: bool) -> Header:
    """Read the header of one file, called ``path`` in messages; its tensors belong to split file ``file_index``.

    Raises:
        ModelFileError: for bytes that are no GGUF header, or a file too short for its tensors unless ``header_only``.
    """
    cursor = Cursor(path, source)
    _check_magic(cursor)
    _check_version(cursor)
    n_tensors = cursor.count("tensors", smallest_bytes=24, limit=MAX_TENSORS)
    n_keys = cursor.count("metadata keys", smallest_bytes=13, limit=MAX_KEYS)
    metadata = _metadata(cursor, n_keys)
    alignment = _alignment(cursor.path, metadata)
    tensors = _tensors(cursor, n_tensors, file_index, alignment)
    if tensors and not header_only:
        _check_complete(cursor, tensors, alignment)
    data_offset = padded(cursor.position, alignment)
    return Header(path=cursor.path, metadata=metadata, tensors=tensors, data_offset=data_offset)


def _check_magic(cursor: Cursor) -> None:
    begins = cursor.peek(7)
    if cursor.file_bytes == 0:
        raise ModelFileError(cursor.path, "is empty; expected a GGUF file")
    if begins == b"version":
        raise ModelFileError(
            cursor.path, "is a Git LFS pointer, not the model; run 'git lfs pull' or download the file itself"
        )
    if not begins.startswith(MAGIC[: len(begins)]):
        raise ModelFileError(cursor.path, f"is not a GGUF file: it begins with {begins[:4]!r}, expected {MAGIC!r}")
    cursor.take(len(MAGIC), "the magic number")


def _check_version(cursor: Cursor) -> None:
    at = cursor.position
    version = cursor.u32("the GGUF version")
    if version in VERSIONS:
        return
    if version & 0xFFFF == 0 and version:  # as gguf.cpp tells it
        cursor.fail("is a big-endian GGUF file; only little-endian files can be read", at)
    hint = "; convert the model again with a current llama.cpp" if version == 1 else ""
    cursor.fail(f"has GGUF version {version:,}; versions 2 and 3 can be read{hint}", at)


def _check_complete(cursor: Cursor, tensors: tuple[Tensor, ...], alignment: int) -> None:
    if cursor.file_bytes is None:
        return
    last = tensors[-1]
    expected = padded(cursor.position, alignment) + last.offset + last.n_bytes
    if cursor.file_bytes < expected:
        missing = expected - cursor.file_bytes
        raise ModelFileError(
            cursor.path,
            f"is incomplete: {cursor.file_bytes:,} of {expected:,} bytes, {missing:,} are missing; download it again",
        )


# --- Metadata ---------------------------------------------------------------------------------------------------------


def _metadata(cursor: Cursor, n_keys: int) -> dict[str, MetadataValue]:
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


def _value(cursor: Cursor, what: str) -> MetadataValue:
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


def _array(cursor: Cursor, what: str) -> MetadataArray:
    at = cursor.position
    item_type = cursor.u32(what)
    if item_type == ARRAY:
        cursor.fail(f"{what} is an array of arrays, which llama.cpp does not read either", at)
    if item_type != STRING and item_type not in _SCALARS:
        cursor.fail(f"{what} has the unknown item type {item_type}", at)
    item_bytes = U64.size if item_type == STRING else _SCALARS[item_type].size
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


def _values(cursor: Cursor, what: str, item_type: int, n_items: int) -> tuple[bool | int | float | str, ...]:
    if item_type == STRING:
        return tuple(cursor.text(what) for _ in range(n_items))
    return cursor.unpack(Struct(f"<{n_items}{SCALAR_CODES[item_type]}"), what)


def _alignment(path: str, metadata: Mapping[str, MetadataValue]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 0 < value < 2**32 or value & (value - 1):
        raise ModelFileError(path, f"general.alignment is {shown(value)}; expected a power of two below 2^32")
    return value


# --- Tensor infos -----------------------------------------------------------------------------------------------------


def _tensors(cursor: Cursor, n_tensors: int, file_index: int, alignment: int) -> tuple[Tensor, ...]:
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


def _tensor(cursor: Cursor, index: int, file_index: int, *, expected_offset: int) -> Tensor:
    name = _tensor_name(cursor, index)
    what = f"tensor {quoted(name)}"
    shape = _shape(cursor, what)
    type_name, n_bytes = _type_and_bytes(cursor, what, shape)
    at = cursor.position
    offset = cursor.u64(what)
    if offset != expected_offset:  # llama.cpp takes neither gaps nor overlaps: gguf.cpp, "has offset"
        cursor.fail(f"{what} has offset {offset:,}, expected {expected_offset:,}, right after the tensor before", at)
    return Tensor(name=name, shape=shape, type=type_name, n_bytes=n_bytes, offset=offset, file_index=file_index)


def _tensor_name(cursor: Cursor, index: int) -> str:
    at = cursor.position
    name = cursor.name(f"the name of tensor {index}", MAX_TENSOR_NAME_BYTES)
    if not name:
        cursor.fail(f"tensor {index} has an empty name", at)
    if not name.isprintable():
        cursor.fail(f"tensor name {quoted(name)} holds unprintable characters", at)
    return name


def _shape(cursor: Cursor, what: str) -> tuple[int, ...]:
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


def _type_and_bytes(cursor: Cursor, what: str, shape: tuple[int, ...]) -> tuple[str, int]:
    at = cursor.position
    number = cursor.u32(what)
    tensor_type = TYPES_BY_NUMBER.get(number)
    if tensor_type is None:
        cursor.fail(f"{what} has type number {number}, which the supported llama.cpp does not have", at)
    try:
        n_bytes = tensor_bytes(tensor_type.name, shape)
    except ValueError as error:
        cursor.fail(f"{what} {error}", at)
    if n_bytes > _MAX_INT64:
        cursor.fail(f"{what} has the shape {list(shape)}, which is more bytes than ggml can count", at)
    return tensor_type.name, n_bytes
