"""What a preset is made of: hyperparameters that can list every tensor's name and shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

from ktllama.model.model_file import MetadataValue

Shape: TypeAlias = tuple[int, ...]


class Sizes(Protocol):
    """A model's hyperparameters, after the ``config.json`` that it was published with.

    ``n_layers`` counts the blocks that are not MTP blocks; ``quantization`` names a mix of
    :mod:`ktllama.model.quantization`.
    """

    @property
    def title(self) -> str:
        """The model's name."""

    @property
    def n_layers(self) -> int:
        """Blocks, MTP blocks not counted."""

    @property
    def quantization(self) -> str:
        """The mix that most people download."""

    def metadata(self) -> dict[str, MetadataValue]:
        """The GGUF metadata that llama.cpp asks for (``src/llama-arch.cpp``), without the architecture's prefix."""

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Every tensor's name and shape (the contiguous dimension first), in file order."""


def swiglu(name: str, n_embd: int, width: int, *experts: int) -> Iterator[tuple[str, Shape]]:
    """The three matrices of a gated MLP, or of ``experts`` of them; ``name`` has ``{}`` for gate, up and down."""
    yield name.format("gate"), (n_embd, width, *experts)
    yield name.format("up"), (n_embd, width, *experts)
    yield name.format("down"), (width, n_embd, *experts)


def mtp(n_embd: int, n_vocab: int) -> Iterator[tuple[str, Shape]]:
    """What a multi-token-prediction block has besides a layer's tensors (llama.cpp ``src/models/glm4-moe.cpp``)."""
    yield "nextn.eh_proj.weight", (2 * n_embd, n_embd)
    yield "nextn.embed_tokens.weight", (n_embd, n_vocab)
    yield "nextn.enorm.weight", (n_embd,)
    yield "nextn.hnorm.weight", (n_embd,)
    yield "nextn.shared_head_head.weight", (n_embd, n_vocab)
    yield "nextn.shared_head_norm.weight", (n_embd,)
