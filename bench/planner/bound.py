"""The least host memory that any placement leaves, from below: what no placement can undercut.

It ignores order, contiguity and speed. Every GPU that holds anything has a compute buffer of at least
``least_compute`` bytes; into the rest of its budget go whole pieces (a layer's attention with its cache, one matrix of
a layer's FFN, the output layer), and no selection of pieces fills it further than the best subset sum, taken for every
GPU from all pieces at once. What is left of the model is on the host, with the token embedding.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from ktllama.model.kv_cache import kv_bytes_per_token, n_cells
from ktllama.model.model_file import TOKEN_EMBEDDING, ModelFile
from ktllama.model.modules import block_of
from ktllama.runtime.context_options import ContextOptions

_MATRIX = re.compile(r"ffn_(gate_up|gate|up|down)(_exps)?\.")
_STEP = 1 << 16


def least_host_bytes(
    model: ModelFile, context: ContextOptions, loaded: Iterable[str], rooms: Sequence[int], least_compute: int
) -> int:
    """Bytes of weights and caches that stay on the host whatever is done; ``rooms`` are budgets without margins.

    ``loaded`` names the tensors that llama.cpp loads.
    """
    pieces, on_host = _pieces(model, context, set(loaded))
    total = sum(n_bytes * count for n_bytes, count in pieces.items())
    filled = sum(_most(pieces, room - least_compute) for room in rooms)
    return max(0, total - filled) + on_host


def _pieces(model: ModelFile, context: ContextOptions, loaded: set[str]) -> tuple[Counter[int], int]:
    """How many pieces there are of each size, and the bytes that never leave the host."""
    sizes: dict[tuple[int | None, str], int] = defaultdict(int)
    on_host = 0
    for tensor in model.tensors:
        if tensor.name not in loaded:
            continue
        if tensor.name == TOKEN_EMBEDDING:
            on_host += tensor.n_bytes
            continue
        found = _MATRIX.search(tensor.name)
        sizes[block_of(tensor.name), found.group(0) if found else ""] += tensor.n_bytes
    cells = n_cells(context.n_ctx, n_seq_max=context.n_seq_max, unified=context.kv_unified)
    for block, kind in list(sizes):
        if block is not None and not kind:
            sizes[block, kind] += cells * kv_bytes_per_token(model, block, context.type_k, context.type_v)
    return Counter(sizes.values()), on_host


def _most(pieces: Counter[int], room: int) -> int:
    """At least the largest sum of pieces within ``room``: rounded up to whole steps, but never past ``room``."""
    if room <= 0:
        return 0
    # every reachable sum as a bit; a piece counts rounded down, so that no reachable filling is lost
    steps = room // _STEP
    reachable, mask = 1, (1 << (steps + 1)) - 1
    most = 0
    for n_bytes, count in pieces.items():
        size, left, power = n_bytes // _STEP, count, 1
        while left:
            taken = min(power, left)
            reachable |= (reachable << (size * taken)) & mask
            left -= taken
            power *= 2
        most += count
    # each piece lost less than a step by rounding; no more pieces than that many can be there
    return min(room, (reachable.bit_length() - 1) * _STEP + most * _STEP)
