"""What a GGUF header says, whether read from a file or built from a preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

#: The input embedding's tensor, which a tied output layer copies.
TOKEN_EMBEDDING = "token_embd.weight"

#: A scalar, a string, or for arrays a :class:`MetadataArray`.
MetadataValue: TypeAlias = "bool | int | float | str | MetadataArray"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataArray:
    """A metadata array. ``values`` is None for arrays too long to keep (vocabularies): only their length is known.

    ``item_type`` is GGUF's value type number (ggml's ``enum gguf_type``); nested arrays are never kept.
    """

    item_type: int
    n_items: int
    values: tuple[bool | int | float | str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a model file.

    ``shape`` is in ggml's order (the contiguous dimension first); ``type`` is ggml's name such as ``Q4_K``;
    ``offset`` counts bytes from the start of the tensor data of split file ``file_index``.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    n_bytes: int
    offset: int = 0
    file_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model's header: metadata and tensors of all its split files as one.

    ``paths`` lists the split files in order and is empty for a preset.
    """

    name: str
    architecture: str
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[Tensor, ...]
    paths: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors, without the header and padding."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def n_layers(self) -> int:
        """All blocks, MTP blocks included, as ``block_count`` says."""
        value = self.hyperparameter("block_count")
        assert isinstance(value, int)  # checked when the header was read
        return value

    def hyperparameter(self, key: str) -> MetadataValue | None:
        """The value of ``<architecture>.<key>``, or None."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int = 0) -> int:
        """The integer value of ``<architecture>.<key>``; ``default`` where it is absent or no integer."""
        value = self.hyperparameter(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else default
