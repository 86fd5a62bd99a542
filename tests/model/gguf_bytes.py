"""GGUF files byte by byte, so that tests can write what no writer would."""

from __future__ import annotations

from struct import pack

UINT8, UINT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, FLOAT64 = 0, 2, 4, 5, 6, 7, 8, 9, 10, 12
F32, Q4_0, Q4_K = 0, 2, 12


def string(text: str | bytes) -> bytes:
    encoded = text.encode() if isinstance(text, str) else text
    return pack("<Q", len(encoded)) + encoded


def key(name: str | bytes, value_type: int, value: bytes) -> bytes:
    return string(name) + pack("<I", value_type) + value


def text(name: str | bytes, value: str | bytes) -> bytes:
    return key(name, STRING, string(value))


def u16(name: str, value: int) -> bytes:
    return key(name, UINT16, pack("<H", value))


def u32(name: str, value: int) -> bytes:
    return key(name, UINT32, pack("<I", value))


def array(name: str, item_type: int, n_items: int, items: bytes) -> bytes:
    return key(name, ARRAY, pack("<IQ", item_type, n_items) + items)


def strings(name: str, *values: str) -> bytes:
    return array(name, STRING, len(values), b"".join(string(value) for value in values))


def tensor(name: str | bytes, shape: tuple[int, ...] = (32,), *, type_number: int = F32, offset: int = 0) -> bytes:
    return string(name) + pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_number, offset)


#: The keys that every model must have.
LLAMA = (text("general.architecture", "llama"), u32("llama.block_count", 4))


def header(
    keys: tuple[bytes, ...] = LLAMA,
    tensors: tuple[bytes, ...] = (tensor("token_embd.weight"),),
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """Everything before the tensor data, without the padding between."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    return b"GGUF" + pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)


def complete(head: bytes, data_bytes: int = 128, alignment: int = 32) -> bytes:
    """The header, padded, with its data."""
    return head + bytes(-len(head) % alignment) + bytes(data_bytes)
