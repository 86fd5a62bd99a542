"""Reads the header of GGUF models: metadata and tensor infos, split files as one model.

The gguf package's ``GGUFReader`` decodes every token of the vocabulary, which takes seconds for DeepSeek-R1.
This reader walks over long arrays, reads no tensor data, and imports nothing slow.

Whatever the file holds, the outcome is a :class:`ModelFile` or a :class:`ModelFileError`. The parts: the bytes in
``byte_source`` and ``gguf_cursor``, one file in ``gguf_header``, several in ``split_files``.
"""

from __future__ import annotations

import os
import re

from ktllama.errors import ModelFileError
from ktllama.model import split_files
from ktllama.model.byte_source import DiskFile, Location
from ktllama.model.gguf_header import Header
from ktllama.model.model_file import ModelFile, Tensor
from ktllama.model.tensor_types import TENSOR_TYPES, TensorType, padded, tensor_bytes
from ktllama.model.wording import quoted, shown

__all__ = ["TENSOR_TYPES", "TensorType", "data_offsets", "padded", "quoted", "read", "read_from", "tensor_bytes"]

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS in src/llama-hparams.h
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS in src/llama-model.cpp is 512 or, in later ones, 1024

_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]*)\.", re.ASCII)


def read(path: str | os.PathLike[str], *, header_only: bool = False) -> ModelFile:
    """Read the header of a GGUF model. Given the first of its split files, read all of them as one.

    Metadata is the first file's. Arrays of more than 4096 items keep only their length. Strings that
    are not UTF-8 keep their odd bytes as ``\\xNN``. ``header_only`` accepts files whose tensor data is cut off or
    absent. Offsets and alignment are checked as llama.cpp does: each tensor right after the one before.

    Raises:
        ModelFileError: for a file that cannot be read, is no GGUF file, is damaged, incomplete or no model.
    """
    return read_from(DiskFile(os.fspath(path)), header_only=header_only)


def read_from(location: Location, *, header_only: bool = False) -> ModelFile:
    """Like :func:`read`, for a model whose first file may be anywhere."""
    first = split_files.read_part(location, 0, header_only=header_only)
    parts = (first, *split_files.other_parts(location, first, header_only=header_only))
    tensors = split_files.joined_tensors(parts)
    architecture = _architecture(first)
    _check_blocks(first, architecture, tensors)
    _check_count(first, f"{architecture}.expert_count", 0, MAX_EXPERTS)
    _check_count(first, f"{architecture}.nextn_predict_layers", 0, MAX_LAYERS)
    return ModelFile(
        name=_name(first, location.file_name),
        architecture=architecture,
        metadata=first.metadata,
        tensors=tensors,
        paths=tuple(part.path for part in parts),
    )


def data_offsets(model: ModelFile) -> tuple[int, ...]:
    """Where the tensor data begins in each of the model's split files, in bytes; the headers are read again.

    Raises:
        ModelFileError: for a file that cannot be read any more.
    """
    parts = (split_files.read_part(DiskFile(path), index, header_only=True) for index, path in enumerate(model.paths))
    return tuple(part.data_offset for part in parts)


def _architecture(header: Header) -> str:
    value = header.metadata.get("general.architecture")
    if not isinstance(value, str) or not value or not value.isprintable():
        said = "is missing" if value is None else f"is {shown(value)}"
        raise ModelFileError(header.path, f"general.architecture {said}; expected a name such as 'deepseek2'")
    n_layers = header.metadata.get(f"{value}.block_count")
    if type(n_layers) is not int or not 1 <= n_layers <= MAX_LAYERS:
        said = "is missing" if n_layers is None else f"is {shown(n_layers)}"
        raise ModelFileError(
            header.path, f"metadata key {quoted(value + '.block_count')} {said}; expected 1 to {MAX_LAYERS} layers"
        )
    return value


def _check_blocks(header: Header, architecture: str, tensors: tuple[Tensor, ...]) -> None:
    """Every block must be among the model's; llama.cpp refuses the file for tensors that it did not ask for."""
    n_layers = header.metadata[f"{architecture}.block_count"]
    assert isinstance(n_layers, int)
    for tensor in tensors:
        found = _BLOCK.match(tensor.name)
        if found and int(found.group(1)) >= n_layers:
            raise ModelFileError(
                header.path, f"tensor {quoted(tensor.name)} is in no layer of the model, which has {n_layers:,}"
            )


def _check_count(header: Header, key: str, first: int, last: int) -> None:
    """Where the key is there, it must be a number that what is built from it can have the size of."""
    value = header.metadata.get(key, first)
    if type(value) is not int or not first <= value <= last:
        raise ModelFileError(header.path, f"metadata key {quoted(key)} is {shown(value)}; expected {first} to {last}")


def _name(header: Header, file_name: str) -> str:
    name = header.metadata.get("general.name")
    if isinstance(name, str) and name.strip() and name.isprintable():
        return name
    return "".join(char if char.isprintable() else "_" for char in split_files.stem(file_name))
