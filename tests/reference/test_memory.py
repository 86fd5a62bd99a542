"""What a model needs at its peak, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from ktllama.reference.dense import Dense
from ktllama.reference.names import gguf_name
from tests.reference import files
from tests.reference.files import Tensors, dense_config

#: Prints the bytes by which the peak was above what torch and a first small model take.
MEASURE = """
import sys, torch
from ktllama import reference

def kilobytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))

small, large, resident = sys.argv[1], sys.argv[2], sys.argv[3] == "resident"
tokens = torch.zeros(1, 8, dtype=torch.int64)
reference.load(small)(tokens)
before = kilobytes("VmRSS")
reference.load(large, resident=resident)(tokens)
print(1024 * (kilobytes("VmHWM") - before))  # getrusage's maximum would be the parent's, if that was larger
"""


def test_the_peak_is_below_two_layers_in_float32(tmp_path: Path) -> None:
    config = dense_config(n_layers=8, width=640, ffn=2560, n_heads=4, n_kv_heads=4, head=160)
    with torch.device("meta"):
        parameters = dict(Dense(config).named_parameters())
    layer_bytes = 4 * sum(parameter.numel() for name, parameter in parameters.items() if name.startswith("blk.0."))
    assert layer_bytes > 25 * 2**20
    tensors: Tensors = {
        gguf_name(name): np.full(tuple(parameter.shape), 0.01, np.float32) for name, parameter in parameters.items()
    }
    large = files.write(tmp_path / "large.gguf", config, tensors, matrix_type="F16")
    small = files.write_random(tmp_path / "small.gguf", dense_config(), matrix_type="F16")

    activations = 2**20  # 8 tokens
    assert _peak(small, large, "streamed") < 2 * layer_bytes + activations
    assert _peak(small, large, "resident") > 7 * layer_bytes


def _peak(small: Path, large: Path, how: str) -> int:
    command = [sys.executable, "-c", MEASURE, str(small), str(large), how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout)
