"""What a llama.cpp context is asked for, apart from where things go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextOptions:
    """The options of ``llama_context_params`` that ktllama sets.

    ``n_ctx`` counts tokens of all sequences together (0: what the model was trained with); ``n_batch`` and
    ``n_ubatch`` are tokens a call and tokens a graph; ``type_k`` and ``type_v`` name a type of
    :data:`ktllama.model.kv_cache.CACHE_TYPES`; ``n_threads``, for the CPU and for
    stand-ins, is left to llama.cpp where it is None; ``n_outputs_max`` bounds the rows of logits of one batch and with
    them the memory kept for logits (0: as many as ``n_batch``).
    """

    n_ctx: int = 4096
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 1
    kv_unified: bool = True
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: Literal["auto", "on", "off"] = "auto"
    n_threads: int | None = None
    n_outputs_max: int = 0
