"""Small models in one type throughout, and copies of them that are wrong in one place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from tests.runtime.tiny_models import TinyDeepSeek, TinyLlama


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformDeepSeek(TinyDeepSeek):
    """A deepseek2 model whose matrices are all of one type; vectors and routers stay F32."""

    nope: int = 32
    v_head: int = 32
    type_name: str = "F32"

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        yield from _uniform(TinyDeepSeek.tensors(self), self.type_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformLlama(TinyLlama):
    """A llama model whose matrices are all of one type."""

    type_name: str = "F32"

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        yield from _uniform(TinyLlama.tensors(self), self.type_name)


def _uniform(
    tensors: Iterator[tuple[str, tuple[int, ...], str]], type_name: str
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    for name, shape, _ in tensors:
        yield name, shape, "F32" if len(shape) == 1 or "gate_inp" in name else type_name


def with_layers_swapped(path: Path, target: Path, first: int, second: int) -> Path:
    """A copy in which two layers have each other's weights."""
    shutil.copyfile(path, target)
    reader = gguf.GGUFReader(target, "r+")
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    for name, tensor in by_name.items():
        other = by_name.get(name.replace(f"blk.{first}.", f"blk.{second}.", 1))
        if name.startswith(f"blk.{first}.") and other is not None:
            assert tensor.data.shape == other.data.shape
            kept = np.array(tensor.data)
            tensor.data[:] = other.data
            other.data[:] = kept
    reader.data.flush()
    return target


def with_tensor_scaled(path: Path, target: Path, name: str, factor: float) -> Path:
    """A copy in which one tensor of floats, or of Q8_0 blocks, is ``factor`` times what it was."""
    shutil.copyfile(path, target)
    reader = gguf.GGUFReader(target, "r+")
    data = next(tensor.data for tensor in reader.tensors if tensor.name == name)
    if data.dtype == np.uint8:
        scales = data.reshape(-1, 34)[:, :2]  # block_q8_0: a half-precision scale, then 32 bytes
        values = np.ascontiguousarray(scales).view(np.float16) * np.float16(factor)
        scales[:] = values.view(np.uint8)
    else:
        data[:] = data * data.dtype.type(factor)
    reader.data.flush()
    return target


def with_expert_negated(path: Path, target: Path, layer: int, expert: int) -> Path:
    """A copy in which what one expert of Q8_0 makes has the other sign."""
    shutil.copyfile(path, target)
    reader = gguf.GGUFReader(target, "r+")
    data = next(tensor.data for tensor in reader.tensors if tensor.name == f"blk.{layer}.ffn_down_exps.weight")
    scales = data[expert].reshape(-1, 34)[:, :2]
    scales[:] = (-np.ascontiguousarray(scales).view(np.float16)).view(np.uint8)
    reader.data.flush()
    return target


def with_router_rows_swapped(path: Path, target: Path, layer: int, first: int, second: int) -> Path:
    """A copy whose router takes two experts of one layer for each other."""
    shutil.copyfile(path, target)
    reader = gguf.GGUFReader(target, "r+")
    data = next(tensor.data for tensor in reader.tensors if tensor.name == f"blk.{layer}.ffn_gate_inp.weight")
    data[[first, second]] = data[[second, first]]
    reader.data.flush()
    return target


def with_other_experts(path: Path, target: Path, layer: int) -> Path:
    """A copy whose router favours the first expert of one layer a little more than it did."""
    shutil.copyfile(path, target)
    reader = gguf.GGUFReader(target, "r+")
    bias = next(tensor.data for tensor in reader.tensors if tensor.name == f"blk.{layer}.exp_probs_b.bias")
    bias[0] += 0.2
    reader.data.flush()
    return target
