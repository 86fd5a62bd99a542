"""minimax-m2: MiniMax-M2 and M2.1.

Module names and classes: those of the published checkpoint and the modelling file beside it (``block_sparse_moe`` with
a list of experts). transformers 5 builds the same model with ``mlp`` and fused experts; rules for those names match
nothing here, which a finding says. Tensor names: llama.cpp ``src/models/minimax-m2.cpp``.
"""

from __future__ import annotations

from ktllama.model.architecture import Architecture, Node, Variant
from ktllama.model.architectures import parts
from ktllama.model.model_file import ModelFile

_MOE = Node(
    "block_sparse_moe",
    "@SparseMoeBlock",
    ("exp_probs_b",),  # e_score_correction_bias, which the block owns itself
    children=(parts.linear("gate", "ffn_gate_inp"), parts.experts(parts.w123_expert("@MLP"))),
)

_LAYER = (parts.attention(*parts.HEAD_NORMS), _MOE, *parts.LAYER_NORMS)


def _variants(_model: ModelFile) -> tuple[Variant, ...]:
    return (parts.transformers("minimax_m2", "MiniMaxM2"),)


ARCHITECTURE = Architecture(
    gguf_name="minimax-m2",
    families={"modeling_minimax_m2": "MiniMax-M2"},
    layer=_LAYER,
    before_layers=parts.BEFORE_LAYERS,
    after_layers=parts.AFTER_LAYERS,
    head=parts.HEAD,
    variants=_variants,
)
