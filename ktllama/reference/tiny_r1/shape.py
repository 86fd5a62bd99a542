"""The shape of tiny-R1: DeepSeek-V3's architecture, small.

All rows of matrices have a multiple of 256 values, which is what K-quants need, but for ``attn_k_b``, whose rows are as
long as a head's part without position; they are not a multiple of 256 in R1 either.
"""

from __future__ import annotations

from ktllama.reference.config import DeepSeekConfig, MoeConfig, RopeConfig, YarnConfig


def shape(vocabulary: int, *, n_layers: int = 4, width: int = 256) -> DeepSeekConfig:
    """The config for so many tokens; smaller ones are for tests."""
    return DeepSeekConfig(
        vocabulary=vocabulary,
        n_layers=n_layers,
        width=width,
        ffn=2 * width,
        n_heads=4,
        nope=width // 8,
        v_head=width // 4,
        kv_lora_rank=width,
        q_lora_rank=width,
        rope=RopeConfig(n_dims=width // 8, factor=4.0, yarn=YarnConfig(original_context=1024, log_multiplier=0.1)),
        moe=MoeConfig(
            n_experts=8,
            n_experts_used=2,
            n_shared=1,
            expert_ffn=width,
            n_groups=4,
            n_groups_used=2,
            scale=2.0,
        ),
        n_dense=1,
        context=4096,
    )
