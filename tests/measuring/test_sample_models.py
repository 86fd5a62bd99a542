"""Models of noise: llama.cpp loads them, and they are as large as their headers say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktllama.lower.settings import LlamaSettings
from ktllama.measuring.sample_models import Shape, sample, write
from ktllama.model import gguf
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.timing_session import TimingSession

SMALL = Shape(
    architecture="deepseek2", n_layers=2, n_embd=256, n_heads=2, n_kv_heads=1, head=128, ffn=256, expert_ffn=256,
    n_experts=4, n_used=2, n_vocab=64, q_rank=256, kv_rank=256, rope=32, context=512,
)  # fmt: skip


@pytest.mark.parametrize("architecture", ["deepseek2", "qwen3moe", "qwen3", "llama"])
def test_llama_cpp_decodes_every_architecture(architecture: str, tmp_path: Path) -> None:
    n_experts = 0 if architecture in ("llama", "qwen3") else 4
    model = sample(replace(SMALL, architecture=architecture, n_experts=n_experts))
    path = write(model, tmp_path / "sample.gguf")
    read = gguf.read(path)
    assert [replace(tensor, offset=0) for tensor in read.tensors] == list(model.tensors)
    context = ContextOptions(n_ctx=256, n_batch=64, n_ubatch=64, n_threads=1)
    with TimingSession(path, LlamaSettings(n_gpu_layers=0), context, cpu_bytes=0) as session:
        assert session.measure(8, 8, 2).decode_seconds > 0
        assert sum(session.loaded.weights.values()) == pytest.approx(model.n_bytes, rel=0.01)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "F16", "BF16"])  # fmt: skip
def test_weights_have_the_deviation_that_keeps_activations_in_range(kind: str, tmp_path: Path) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFReader, dequantize

    path = write(sample(replace(SMALL, matrix_type=kind)), tmp_path / "sample.gguf")
    (tensor,) = (one for one in GGUFReader(path).tensors if one.name == "blk.0.ffn_up.weight")
    values = dequantize(tensor.data, GGMLQuantizationType[kind]) if kind != "F16" else tensor.data
    deviation = float(np.std(np.asarray(values, np.float32)))
    assert 0.3 < deviation * np.sqrt(SMALL.n_embd) < 3
