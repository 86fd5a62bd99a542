"""What a plan is asked for besides the model and the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ktllama.errors import ModelFileError
from ktllama.model.model_file import ModelFile
from ktllama.planner.errors import BudgetError
from ktllama.runtime.context_options import ContextOptions

#: The ubatches that are weighed where none is asked for: llama.cpp's default and its doubles.
UBATCHES = (512, 1024, 2048, 4096)

DEFAULT_CONTEXT = 32768
DEFAULT_MARGIN = 512 * 1024 * 1024
_N_BATCH = 2048  # llama.cpp's default


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextWishes:
    """The context to plan for. ``n_ctx`` counts the tokens of all ``n_seq_max`` sequences together; 0 is
    :data:`DEFAULT_CONTEXT`, or what the model was trained with if that is less.

    What is None is chosen: ``ubatch`` among :data:`UBATCHES`, ``op_offload`` by the prefill model; ``n_threads`` is
    left to llama.cpp. ``margin`` bytes stay free on every device.
    """

    n_ctx: int = 0
    n_seq_max: int = 1
    kv_type: str = "f16"
    flash_attn: Literal["auto", "on", "off"] = "auto"
    ubatch: int | None = None
    op_offload: bool | None = None
    n_threads: int | None = None
    margin: int = DEFAULT_MARGIN

    def context(self, ubatch: int) -> ContextOptions:
        """llama.cpp's options with this ubatch."""
        return ContextOptions(
            n_ctx=self.n_ctx,
            n_batch=max(_N_BATCH, ubatch),
            n_ubatch=ubatch,
            n_seq_max=self.n_seq_max,
            type_k=self.kv_type,
            type_v=self.kv_type,
            flash_attn=self.flash_attn,
            n_threads=self.n_threads,
        )

    @property
    def ubatches(self) -> tuple[int, ...]:
        """The ubatches to weigh; one larger than the context is never filled."""
        if self.ubatch is not None:
            return (self.ubatch,)
        return tuple(size for size in UBATCHES if size <= max(self.n_ctx, UBATCHES[0]))


def settled(wishes: ContextWishes, model: ModelFile) -> ContextWishes:
    """``wishes`` with a context that the model can have.

    Raises:
        BudgetError: when it is longer than what the model was trained with.
        ModelFileError: when the header has no layers.
    """
    if model.n_layers < 1:
        raise ModelFileError(model.name, "has no layers to place")
    trained = model.integer("context_length") * wishes.n_seq_max
    if 0 < trained < wishes.n_ctx:
        each = "" if wishes.n_seq_max == 1 else f" ({model.integer('context_length')} for each of {wishes.n_seq_max})"
        raise BudgetError(f"--ctx {wishes.n_ctx}: {model.name} was trained with a context of {trained} tokens{each}")
    if wishes.flash_attn == "off" and wishes.kv_type not in ("f32", "f16", "bf16"):
        raise BudgetError(f"--kv-type {wishes.kv_type}: llama.cpp quantizes the V cache with flash attention only")
    if wishes.n_ctx:
        return wishes
    return replace(wishes, n_ctx=min(DEFAULT_CONTEXT, trained) if trained > 0 else DEFAULT_CONTEXT)
