"""The cases of the grid: models × budgets × GPUs × contexts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

GIB = 1 << 30
MARGIN = 512 << 20

MODELS = ("deepseek-r1", "deepseek-v2-lite", "qwen3-235b-a22b", "glm-4.5-air", "kimi-k2")
BUDGETS = (8, 12, 16, 24, 32, 48, 80)
N_GPUS = (1, 2, 4)
UNEQUAL = ((24, 12), (24, 8, 8))
CONTEXTS = (4096, 32768, 131072)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, the budgets of its GPUs in GiB, and a context in tokens."""

    model: str
    vram: tuple[int, ...]
    n_ctx: int

    @property
    def key(self) -> str:
        """``deepseek-r1 24+12 32k``."""
        return f"{self.model} {cards(self.vram)} {self.n_ctx // 1024}k"

    @property
    def budgets(self) -> dict[str, int]:
        """Bytes by rule device."""
        return {f"cuda:{index}": size * GIB for index, size in enumerate(self.vram)}


def cards(vram: tuple[int, ...]) -> str:
    """``4x24`` where all are alike, else ``24+12``."""
    alike = len(set(vram)) == 1
    return f"{len(vram)}x{vram[0]}" if alike else "+".join(map(str, vram))


def every() -> Iterator[Case]:
    equal = ((size,) * count for count in N_GPUS for size in BUDGETS)
    for model, vram, n_ctx in itertools.product(MODELS, (*equal, *UNEQUAL), CONTEXTS):
        yield Case(model=model, vram=vram, n_ctx=n_ctx)
