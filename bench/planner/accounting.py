"""What a placement takes and reads, from what llama.cpp's dry run did with it: nothing here is the planner's own.

The same figures are made for the planner's settings and for those of ``llama-fit-params``: bytes by device (tensors as
large as the file says, caches where llama.cpp made them, its compute buffers), and the bytes of host memory that a
decoded token reads (a tensor's bytes, of routed experts the used share, and half of a full cache).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ktllama.model.kv_cache import kv_bytes_per_token, n_cells
from ktllama.model.model_file import TOKEN_EMBEDDING, ModelFile
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.dry_run import DryRun

HOST = "CPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Bytes by llama.cpp's name of a device: (tensors, caches, compute buffers); and the host's bytes a token."""

    by_device: Mapping[str, tuple[int, int, int]]
    host_read_bytes: float

    def used(self, device: str) -> int:
        """All that a device holds."""
        return sum(self.by_device.get(device, (0, 0, 0)))

    def held(self, device: str) -> int:
        """Tensors and caches of a device."""
        tensors, caches, _ = self.by_device.get(device, (0, 0, 0))
        return tensors + caches


def account(model: ModelFile, done: DryRun, context: ContextOptions) -> Account:
    """The account of one dry run of ``model`` with ``context``."""
    assert done.tensors is not None
    assert "output.weight" in done.tensors, "a tied output would be read through the embedding's copy"
    sizes = {tensor.name: tensor.n_bytes for tensor in model.tensors}
    experts = model.integer("expert_used_count") / model.integer("expert_count")
    tensors: dict[str, int] = defaultdict(int)
    caches: dict[str, int] = defaultdict(int)
    read = 0.0
    for name, holders in done.tensors.items():
        for holder in holders:
            tensors[holder] += sizes[name]
            if holder == HOST and name != TOKEN_EMBEDDING:
                read += sizes[name] * (experts if "_exps" in name else 1.0)
    cells = n_cells(context.n_ctx, n_seq_max=context.n_seq_max, unified=context.kv_unified)
    for layer, holder in done.kv.items():
        a_token = kv_bytes_per_token(model, layer, context.type_k, context.type_v)
        caches[holder] += cells * a_token
        read += context.n_ctx / 2 * a_token if holder == HOST else 0.0
    devices = {*tensors, *caches, *done.compute_bytes}
    return Account(
        by_device={one: (tensors[one], caches[one], done.compute_bytes.get(one, 0)) for one in sorted(devices)},
        host_read_bytes=read,
    )
