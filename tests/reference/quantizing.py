"""llama.cpp's own quantization of a file."""

from __future__ import annotations

from pathlib import Path

from ktllama.runtime import library

#: ``enum llama_ftype``
ALL_F32, Q4_K_M, Q6_K = 0, 15, 18


def quantized(path: Path, target: Path, file_type: int) -> Path:
    """``target``, which is ``path`` in another type."""
    api = library.load().api
    params = api.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = 1
    params.allow_requantize = True
    assert api.llama_model_quantize(str(path).encode(), str(target).encode(), params) == 0
    return target
