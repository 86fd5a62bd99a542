"""llama.cpp's side of a comparison: everything in float32, no flash attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ktllama.lower.settings import LlamaSettings
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.probe import Capture, Probe

EXACT = ContextOptions(n_ctx=1024, n_batch=512, type_k="f32", type_v="f32", flash_attn="off", n_threads=1)
CPU = LlamaSettings(n_gpu_layers=0)


def run(path: Path, tokens: list[int], settings: LlamaSettings = CPU, **options: Any) -> Capture:
    with Probe(path, settings, EXACT, **options) as probe:
        return probe.run(tokens)
