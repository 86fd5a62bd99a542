"""Names without layer numbers, and rows."""

from __future__ import annotations

import pytest

from ktllama.explaining.kinds import ROWS, kind_of, layer_of, row_of
from ktllama.model import modules, presets


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("model.layers.12.mlp.experts", "model.layers.*.mlp.experts", 12),
        ("model.layers.3", "model.layers.*", 3),
        ("blk.7.rope_freqs.weight", "blk.*.rope_freqs.weight", 7),
        ("model.norm", "model.norm", None),
        ("model.layers", "model.layers", None),
    ],
)
def test_kind_and_layer(name: str, kind: str, layer: int | None) -> None:
    assert (kind_of(name), layer_of(name)) == (kind, layer)


@pytest.mark.parametrize(
    ("module", "row"),
    [
        ("model.embed_tokens", "embedding"),
        ("model.layers.0.input_layernorm", "attention-norm"),
        ("model.layers.0.self_attn.q_a_layernorm", "attention"),
        ("model.layers.0.post_attention_layernorm", "ffn-norm"),
        ("model.layers.0.mlp.gate", "router"),
        ("model.layers.0.mlp.gate_proj", "dense-ffn"),
        ("model.layers.0.mlp.shared_experts.up_proj", "shared-experts"),
        ("model.layers.0.mlp.shared_expert_gate", "shared-experts"),
        ("model.layers.0.mlp.experts", "routed-experts"),
        ("model.layers.61.eh_proj", "mtp"),
        ("model.norm", "norm"),
        ("lm_head", "output"),
        (None, "other"),
        ("model.something", "other"),
    ],
)
def test_row(module: str | None, row: str) -> None:
    assert row_of(module) == row


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_module_of_a_known_model_that_owns_tensors_has_a_row(preset: str) -> None:
    tree = modules.build(presets.load(preset))
    assert [module.name for module in tree.modules if module.tensors and row_of(module.name) == "other"] == []


def test_rows_have_different_keys_and_labels() -> None:
    assert len({row.key for row in ROWS}) == len({row.label for row in ROWS}) == len(ROWS)
