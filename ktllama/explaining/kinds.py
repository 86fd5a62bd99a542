"""Kinds of modules: names without their layer numbers, and the rows in which a picture shows them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ktllama.model.modules import block_of

_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]*)(?=\.|$)", re.ASCII)
_BLOCK = re.compile(r"^blk\.(?:0|[1-9][0-9]*)\.", re.ASCII)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the picture. ``pattern`` is searched in a module's name below its layer, or in its whole name."""

    key: str
    label: str
    pattern: re.Pattern[str] | None = None


_KV_CACHE = Row("kv", "KV cache")
_OTHER = Row("other", "Other")

#: In the order of a forward pass, what every token passes before what only some do. The first whose pattern is found
#: takes a module.
ROWS = (
    Row("embedding", "Embedding", re.compile(r"(?:^|\.)embed_tokens$")),
    Row("mtp", "MTP input", re.compile(r"^(?:enorm|hnorm|eh_proj|shared_head)(?:\.|$)")),
    Row("attention-norm", "Attention norm", re.compile(r"^input_layernorm$")),
    Row("attention", "Attention", re.compile(r"^(?:self_attn|linear_attn)(?:\.|$)")),
    _KV_CACHE,
    Row("ffn-norm", "FFN norm", re.compile(r"^(?:post_attention_layernorm|pre_feedforward_layernorm)$")),
    Row("router", "Router", re.compile(r"^(?:mlp|block_sparse_moe|feed_forward)\.(?:gate|router|moe_statics)(?:\.|$)")),
    Row("shared-experts", "Shared experts", re.compile(r"\.shared_expert(?:s|_gate)?(?:\.|$)")),
    Row("routed-experts", "Routed experts", re.compile(r"\.experts(?:\.|$)")),
    Row("dense-ffn", "Dense FFN", re.compile(r"^(?:mlp|block_sparse_moe|feed_forward)(?:\.|$)")),
    Row("norm", "Final norm", re.compile(r"^model\.norm$")),
    Row("output", "Output", re.compile(r"^lm_head$")),
    _OTHER,
)


def layer_of(name: str) -> int | None:
    """The layer of a module or a tensor, or None outside the layers."""
    found = _LAYER.match(name)
    return int(found.group(1)) if found else block_of(name)


def kind_of(name: str) -> str:
    """A module's or tensor's name with its layer number replaced: ``model.layers.*.self_attn.q_proj``."""
    return _BLOCK.sub("blk.*.", _LAYER.sub("model.layers.*", name))


def row_of(module: str | None) -> str:
    """The key of the row in which tensors of ``module`` are drawn."""
    if module is None:
        return _OTHER.key
    below = _LAYER.sub("", module).removeprefix(".") if _LAYER.match(module) else module
    return next((row.key for row in ROWS if row.pattern and row.pattern.search(below)), _OTHER.key)
