"""Writes a model's header as a GGUF file of full size that takes kilobytes of disk.

llama.cpp loads such a file with ``no_alloc`` (a dry run: every tensor is placed, none is read), so the placement of a
model can be tried without its weights. The tensor data is one hole: it reads as zeros.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import Struct, pack
from typing import BinaryIO

from ktllama.errors import ModelFileError
from ktllama.model.gguf_header import ARRAY, DEFAULT_ALIGNMENT, MAGIC, SCALAR_CODES, STRING, VERSIONS
from ktllama.model.model_file import TOKEN_EMBEDDING, MetadataArray, MetadataValue, ModelFile, Tensor
from ktllama.model.tensor_types import TENSOR_TYPES, padded

_U32 = Struct("<I")
_U64 = Struct("<Q")

# enum gguf_type
_UINT32, _INT32, _FLOAT32, _BOOL, _UINT64, _INT64, _FLOAT64 = 4, 5, 6, 7, 10, 11, 12
_MAX_FLOAT32 = (2 - 2**-23) * 2.0**127

#: The smallest vocabulary that can be made up: a beginning, an end, and something between.
MIN_VOCABULARY_SIZE = 3
_NORMAL, _CONTROL = 1, 3  # enum llama_token_type


def write(model: ModelFile, path: str | os.PathLike[str], *, vocabulary_size: int | None = None) -> None:
    """Write ``model`` as one sparse GGUF file (version 3) at ``path``, which must not exist.

    The tensors are laid out anew, one after the other, whatever files they came from; ``split.*`` keys are left out.
    Numbers get the types that llama.cpp asks for: integers u32 (i32 if negative, 64 bits if they must), floats f32.

    With ``vocabulary_size`` a byte-level BPE vocabulary of that many tokens replaces all ``tokenizer.*`` keys: the
    256 bytes, then pairs and triples of them with their merges, the last two tokens being its beginning and end.
    Without it, a vocabulary that the header reader did not keep is replaced by llama.cpp's ``none``, and
    ``<architecture>.vocab_size``, which llama.cpp then wants, is taken from the token embedding if it is missing.
    Other arrays that were not kept are left out.

    Raises:
        ModelFileError: when ``path`` exists or cannot be written. Nothing is left behind.
        ValueError: for a ``vocabulary_size`` below ``MIN_VOCABULARY_SIZE``.
    """
    metadata = _written_metadata(model, vocabulary_size)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int)  # checked when the header was read
    infos, data_bytes = _tensor_infos(model.tensors, alignment)
    header = b"".join(
        (
            MAGIC,
            pack("<IQQ", VERSIONS[-1], len(model.tensors), len(metadata)),
            *(_string(key) + _value(value) for key, value in metadata.items()),
            infos,
        )
    )
    _write_new(os.fspath(path), header, padded(len(header), alignment) + data_bytes)


def _write_new(path: str, header: bytes, full_bytes: int) -> None:
    try:
        with Path(path).open("xb") as file:
            _fill(file, header, full_bytes)
    except FileExistsError:
        raise ModelFileError(path, "already exists; give a path that does not") from None
    except OSError as error:
        raise ModelFileError(path, f"cannot be written: {error.strerror}") from error


def _fill(file: BinaryIO, header: bytes, full_bytes: int) -> None:
    try:
        file.write(header)
        file.flush()
        file.truncate(full_bytes)
    except (OSError, OverflowError) as error:
        Path(file.name).unlink()
        if isinstance(error, OverflowError):  # no 64-bit file size
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG)) from error
        raise


# --- Metadata ---------------------------------------------------------------------------------------------------------


def _written_metadata(model: ModelFile, vocabulary_size: int | None) -> dict[str, MetadataValue]:
    kept = {
        key: value
        for key, value in model.metadata.items()
        if not key.startswith("split.") and not (isinstance(value, MetadataArray) and value.values is None)
    }
    if vocabulary_size is not None:
        return _without_tokenizer(kept) | dict(_vocabulary(vocabulary_size))
    if "tokenizer.ggml.model" in kept and all(key in kept for key in model.metadata if key.startswith("tokenizer.")):
        return kept
    # llama_vocab::impl::load in src/llama-vocab.cpp: "none" makes dummy tokens, as many as vocab_size says.
    return _without_tokenizer(kept) | {"tokenizer.ggml.model": "none"} | _missing_vocabulary_size(model)


def _without_tokenizer(metadata: Mapping[str, MetadataValue]) -> dict[str, MetadataValue]:
    return {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")}


def _missing_vocabulary_size(model: ModelFile) -> dict[str, MetadataValue]:
    embedding = next((tensor for tensor in model.tensors if tensor.name == TOKEN_EMBEDDING), None)
    if embedding is None or model.hyperparameter("vocab_size") is not None:
        return {}
    return {f"{model.architecture}.vocab_size": embedding.shape[1]}


def _value(value: MetadataValue) -> bytes:
    if isinstance(value, MetadataArray):
        return _U32.pack(ARRAY) + _array(value)
    if isinstance(value, str):
        return _U32.pack(STRING) + _string(value)
    value_type = _scalar_type(value)
    return pack("<I" + SCALAR_CODES[value_type], value_type, value)


def _scalar_type(value: bool | int | float) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, float):
        return _FLOAT64 if math.isfinite(value) and abs(value) > _MAX_FLOAT32 else _FLOAT32
    if value < 0:
        return _INT32 if value >= -(2**31) else _INT64
    return _UINT32 if value < 2**32 else _UINT64


def _array(array: MetadataArray) -> bytes:
    assert array.values is not None
    head = pack("<IQ", array.item_type, array.n_items)
    if array.item_type == STRING:
        return head + b"".join(_string(str(value)) for value in array.values)
    return head + pack(f"<{array.n_items}{SCALAR_CODES[array.item_type]}", *array.values)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return _U64.pack(len(encoded)) + encoded


# --- Tensors ----------------------------------------------------------------------------------------------------------


def _tensor_infos(tensors: tuple[Tensor, ...], alignment: int) -> tuple[bytes, int]:
    """The tensor infos, and the bytes of the data they describe; the last tensor is padded too, as by llama.cpp."""
    infos = []
    offset = 0
    for tensor in tensors:
        n_dimensions = len(tensor.shape)
        layout = f"<I{n_dimensions}QIQ"
        number = TENSOR_TYPES[tensor.type].number
        infos.append(_string(tensor.name) + pack(layout, n_dimensions, *tensor.shape, number, offset))
        offset += padded(tensor.n_bytes, alignment)
    return b"".join(infos), offset


# --- A vocabulary -----------------------------------------------------------------------------------------------------


def _vocabulary(n_tokens: int) -> Iterator[tuple[str, MetadataValue]]:
    if n_tokens < MIN_VOCABULARY_SIZE:
        raise ValueError(f"a vocabulary of {n_tokens} tokens; expected at least {MIN_VOCABULARY_SIZE}")
    alphabet = _byte_alphabet()
    # Tokens after the alphabet, as (left, right) halves: first all pairs of bytes, then pairs with a third byte.
    pairs = ((left, right) for left in alphabet for right in alphabet)
    triples = ((left + middle, right) for left in alphabet for middle in alphabet for right in alphabet)
    n_merges = max(0, n_tokens - 2 - len(alphabet))
    merges = tuple(itertools.islice(itertools.chain(pairs, triples), n_merges))
    plain = (*alphabet, *(left + right for left, right in merges))[: n_tokens - 2]
    tokens = (*plain, "<begin>", "<end>")
    yield "tokenizer.ggml.model", "gpt2"
    yield "tokenizer.ggml.pre", "gpt-2"
    yield "tokenizer.ggml.tokens", _strings(tokens)
    types = (*(_NORMAL for _ in plain), _CONTROL, _CONTROL)
    yield "tokenizer.ggml.token_type", MetadataArray(item_type=_INT32, n_items=n_tokens, values=types)
    yield "tokenizer.ggml.merges", _strings(tuple(f"{left} {right}" for left, right in merges))
    yield "tokenizer.ggml.bos_token_id", n_tokens - 2
    yield "tokenizer.ggml.eos_token_id", n_tokens - 1


def _strings(values: tuple[str, ...]) -> MetadataArray:
    return MetadataArray(item_type=STRING, n_items=len(values), values=values)


def _byte_alphabet() -> tuple[str, ...]:
    """One printable character for every byte, as GPT-2 writes them (``bytes_to_unicode`` in its ``encoder.py``)."""
    shifted = itertools.count(256)
    return tuple(chr(byte) if _stands_for_itself(byte) else chr(next(shifted)) for byte in range(256))


def _stands_for_itself(byte: int) -> bool:
    return ord("!") <= byte <= ord("~") or ord("¡") <= byte <= ord("¬") or ord("®") <= byte <= ord("ÿ")
