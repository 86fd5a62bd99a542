"""What an executor is opened with, as it comes in the engine's launch options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from ktllama.engine.executor import LoadError

MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ


class ExecutorOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of ``ktllama run`` and those of serving; sizes are in tokens where nothing else is said.

    ``model`` is a GGUF file, ``rules`` a rule file or the name of a shipped one; without rules all layers go to the
    GPUs that llama.cpp finds, else to the CPU. ``device_map``, ``default_device``, ``budgets`` (bytes by device),
    ``load_mode`` and ``stand_ins`` are the placement's. ``ctx`` (0: what the model was trained with) is shared by all
    sequences; ``parallel`` of them run at once and ``cached_sequences`` (None: as many and eight more) keep prompts.
    ``ubatch`` is the budget of a step.
    """

    model: str
    rules: str | None = None
    device_map: Mapping[str, str] = {}
    default_device: str | None = None
    budgets: Mapping[str, int] = {}
    load_mode: Literal["auto", "none", "mmap", "mlock"] = "auto"
    stand_ins: bool = False
    name: str | None = None
    ctx: int = 4096
    parallel: int = 4
    cached_sequences: int | None = None
    ubatch: int = 512
    kv_type: str = "f16"
    flash_attn: Literal["auto", "on", "off"] = "auto"
    threads: int | None = None

    @property
    def n_sequences(self) -> int:
        """Sequences of the context: running ones and those whose prompts are kept."""
        kept = self.parallel + 8 if self.cached_sequences is None else self.cached_sequences
        return min(self.parallel + kept, MAX_SEQUENCES)


#: field → (least, most)
_RANGES = {"ctx": (0, 1 << 24), "parallel": (1, MAX_SEQUENCES), "ubatch": (2, 65536)}


def parse_options(options: Mapping[str, object]) -> ExecutorOptions:
    """The options as a checked value.

    Raises:
        LoadError: for an unknown name, a wrong type or a number out of range.
    """
    try:
        parsed = msgspec.convert(dict(options), ExecutorOptions)
    except msgspec.ValidationError as error:
        raise LoadError(f"the engine's options are wrong: {error}") from error
    for field, (least, most) in _RANGES.items():
        if not least <= getattr(parsed, field) <= most:
            raise LoadError(f"{field} is {getattr(parsed, field)}; it must be from {least} to {most}")
    for field, value in (("threads", parsed.threads), ("cached_sequences", parsed.cached_sequences)):
        if value is not None and value < (field == "threads"):
            raise LoadError(f"{field} is {value}")
    return parsed
