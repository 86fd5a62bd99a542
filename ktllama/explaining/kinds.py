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


#: In the order of a forward pass; the first whose pattern is found takes the module.
_KV_CACHE = Row("kv", "KV cache")
_OTHER = Row("other", "Other")
ROWS = (
    Row("embedding", "Embedding", re.compile(r"(?:^|\.)embed_tokens$|^wte$")),
    Row("mtp", "MTP input", re.compile(r"^(?:enorm|hnorm|eh_proj|shared_head)(?:\.|$)")),
    Row("attention-norm", "Attention norm", re.compile(r"^(?:input_layernorm|attention_norm|ln_1)$")),
    Row("attention", "Attention", re.compile(r"^(?:self_attn|attention|linear_attn|attn)(?:\.|$)")),
    _KV_CACHE,
    Row("ffn-norm", "FFN norm", re.compile(r"^(?:post_attention_layernorm|pre_feedforward_layernorm|ffn_norm|ln_2)$")),
    Row("shared-experts", "Shared experts", re.compile(r"(?:^|\.)shared_expert(?:s|_gate)?(?:\.|$)")),
    Row("routed-experts", "Routed experts", re.compile(r"(?:^|\.)experts(?:\.|$)")),
    Row("router", "Router", re.compile(r"^(?:mlp|block_sparse_moe|feed_forward)\.(?:gate|router)(?:\.|$)")),
    Row("dense-ffn", "Dense FFN", re.compile(r"^(?:mlp|feed_forward)(?:\.|$)")),
    Row("norm", "Final norm", re.compile(r"^model\.(?:norm|embedding_norm)$")),
    Row("output", "Output", re.compile(r"^lm_head$")),
    _OTHER,
)

#: The rows as they are drawn: what every token passes comes before what only some do.
DRAWN = (
    "embedding",
    "mtp",
    "attention-norm",
    "attention",
    "kv",
    "ffn-norm",
    "router",
    "shared-experts",
    "routed-experts",
    "dense-ffn",
    "norm",
    "output",
    "other",
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


def label_of(key: str) -> str:
    """What a row is called."""
    return next(row.label for row in ROWS if row.key == key)
