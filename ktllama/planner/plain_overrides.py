"""Override patterns that find the same tensors and that llama.cpp reads faster, for the planner's dry runs.

llama.cpp compiles every pattern anew for every tensor (``llama_model_loader::create_tensor`` in
``src/llama-model-loader.cpp``), and in libstdc++ each ``[0-9]`` of a pattern costs a table of 256 characters: the
readable patterns of a plan for R1 take four times as long as everything else of its dry run. That the settings' own
patterns find exactly the planned tensors is proven when they are made (:mod:`ktllama.lower.patterns`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from ktllama.lower.settings import LlamaSettings, TensorOverride
from ktllama.model.modules import block_of


def plain(settings: LlamaSettings, names: Iterable[str]) -> LlamaSettings:
    """``settings`` whose patterns find the same of the tensors ``names`` without a character class."""
    left = list(names)
    overrides: list[TensorOverride] = []
    for override in settings.tensor_overrides:
        search = re.compile(override.pattern).search
        found = [name for name in left if search(name)]
        taken = set(found)
        left = [name for name in left if name not in taken]
        overrides += (TensorOverride(pattern=pattern, device=override.device) for pattern in _patterns(found))
    return replace(settings, tensor_overrides=tuple(overrides))


def _patterns(names: Iterable[str]) -> list[str]:
    layers: dict[str, list[int]] = defaultdict(list)
    outside = []
    for name in names:
        block = block_of(name)
        if block is None:
            outside.append(name)
        else:
            layers[name.split(".", 2)[2]].append(block)
    suffixes: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for suffix, blocks in layers.items():
        suffixes[tuple(blocks)].append(suffix)
    found = [
        rf"^blk\.({'|'.join(map(str, blocks))})\.({'|'.join(map(re.escape, listed))})$"
        for blocks, listed in suffixes.items()
    ]
    return found + ([f"^({'|'.join(map(re.escape, outside))})$"] if outside else [])
