"""The weights of a GGUF model as torch tensors, read from the memory map in small pieces when they are wanted.

A tensor, or the part of it that a parameter is, is dequantized some rows at a time into the tensor that is returned,
and the map is closed again: what a read needs beyond its result is a few megabytes.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from ktllama.errors import ModelFileError, WeightError
from ktllama.model import gguf
from ktllama.model import model_file as header
from ktllama.model.tensor_types import TENSOR_TYPES
from ktllama.reference import finiteness
from ktllama.reference.activations import PARTNERS, Activations, Rounding

#: Values that are dequantized at once.
_PIECE = 1 << 20

#: Values in a block of the types that are multiplied with Q8_1.
_Q8_1_BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a parameter is of a tensor: of each of its ``n`` matrices (rows, columns), rows ``first`` to ``last``.

    Transposed where ``transposed``. A vector is a matrix of one row. ``shape`` is the parameter's.
    """

    tensor: header.Tensor
    n: int
    rows: int
    columns: int
    first: int
    last: int
    transposed: bool
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, tensor: header.Tensor, shape: tuple[int, ...]) -> Part:
        """All of a tensor."""
        n, rows, columns = (1,) * (3 - len(shape)) + shape
        return cls(tensor=tensor, n=n, rows=rows, columns=columns, first=0, last=rows, transposed=False, shape=shape)


class Weights:
    """Reads parts of a model's tensors in ``dtype``, and says how activations are rounded for them.

    Nothing is kept open.
    """

    def __init__(self, model: header.ModelFile, dtype: torch.dtype, activations: Activations = "exact") -> None:
        self.path = model.paths[0] if model.paths else model.name
        self.dtype = dtype
        self.activations = activations
        self.tensors: Mapping[str, header.Tensor] = {tensor.name: tensor for tensor in model.tensors}
        self._paths = model.paths
        self._data_offsets = gguf.data_offsets(model)

    def rounding_as(self, activations: Activations) -> Weights:
        """The same weights for a model whose activations are rounded otherwise."""
        other = copy.copy(self)
        other.activations = activations
        return other

    def read(self, part: Part, dtype: torch.dtype | None = None) -> Tensor:
        """The whole part, in its shape.

        Raises:
            WeightError: for values that are not numbers.
            ModelFileError: when the file cannot be read.
        """
        return self._matrices(part, range(part.n), dtype or self.dtype).view(part.shape)

    def read_one(self, part: Part, index: int) -> Tensor:
        """Matrix ``index`` of a part that has several: an expert's."""
        return self._matrices(part, range(index, index + 1), self.dtype)[0]

    def read_rows(self, part: Part, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` of a part that is one matrix."""
        out = torch.empty(last - first, part.columns, dtype=self.dtype)
        self._fill(out, part, self._map(part)[first:last])
        return out

    def gather(self, part: Part, rows: Tensor) -> Tensor:
        """Some rows (in any order) of a part that is one matrix."""
        out = torch.empty(len(rows), part.columns, dtype=self.dtype)
        self._fill(out, part, self._map(part)[rows.numpy()])
        return out

    def check(self, tensor: header.Tensor) -> None:
        """Whether all of a tensor are numbers, whatever of it is ever used; most types are not dequantized for it.

        Raises:
            WeightError: for values that are not numbers.
            ModelFileError: when the file cannot be read.
        """
        by_bytes = finiteness.told_by_bytes(tensor.type)
        if not by_bytes and not can_dequantize(tensor.type):
            return  # integers, or what no parameter can be, as every parameter's type was looked at
        n_rows = math.prod(tensor.shape[1:])
        for rows in _pieces(n_rows, tensor.shape[0]):
            encoded = self._map_rows(tensor, rows, n_rows)
            if by_bytes:
                sound = finiteness.all_finite(encoded, tensor.type)
            else:
                sound = bool(np.isfinite(dequantized(encoded, tensor.type)).all())
            if not sound:
                raise self._no_numbers(tensor)

    def rounding(self, part: Part) -> Rounding | None:
        """How the activations are rounded that all of a part's matrices multiply."""
        return self._rounding(part, range(part.n), part.shape[:-2])

    def rounding_of_one(self, part: Part, index: int) -> Rounding | None:
        """The same of matrix ``index``."""
        return self._rounding(part, range(index, index + 1), ())

    def _rounding(self, part: Part, indices: range, shape: tuple[int, ...]) -> Rounding | None:
        """``shape`` is how the matrices are arranged."""
        partner = PARTNERS.get(part.tensor.type)
        if self.activations == "exact" or partner is None:
            return None
        if partner != "Q8_1":
            return Rounding(partner=partner)
        height, mapped = part.last - part.first, self._map(part)
        minima = np.empty((len(indices), height, part.columns // _Q8_1_BLOCK), np.float16)
        for target, index in zip(minima, indices, strict=True):
            start = index * part.rows + part.first
            blocks = mapped[start : start + height].reshape(*target.shape, -1)
            target[...] = blocks[..., 2:4].copy().view(np.float16)[..., 0]  # after the scale, in Q4_1 and Q5_1
        whole = torch.from_numpy(minima.astype(np.float32)).view(*shape, *minima.shape[1:])
        return Rounding(partner=partner, minima=whole)

    def _matrices(self, part: Part, indices: range, dtype: torch.dtype) -> Tensor:
        height = part.last - part.first
        shape = (part.columns, height) if part.transposed else (height, part.columns)
        out = torch.empty(len(indices), *shape, dtype=dtype)
        mapped = self._map(part)
        for target, index in zip(out, indices, strict=True):
            start = index * part.rows
            self._fill(target.T if part.transposed else target, part, mapped[start + part.first : start + part.last])
        return out

    def _fill(self, target: Tensor, part: Part, encoded: npt.NDArray[np.uint8]) -> None:
        """Dequantize rows of bytes into ``target`` (rows, columns)."""
        for some in _pieces(len(encoded), part.columns):
            values = dequantized(encoded[some], part.tensor.type)
            if not np.isfinite(values).all():
                raise self._no_numbers(part.tensor)
            target[some] = torch.from_numpy(values)

    def _no_numbers(self, tensor: header.Tensor) -> WeightError:
        return WeightError(self.path, tensor.name, "holds values that are no numbers (NaN or infinity)")

    def _map(self, part: Part) -> npt.NDArray[np.uint8]:
        """The bytes of the part's tensor, a row of it in each row."""
        n_rows = part.n * part.rows
        return self._map_rows(part.tensor, slice(0, n_rows), n_rows)

    def _map_rows(self, tensor: header.Tensor, rows: slice, n_rows: int) -> npt.NDArray[np.uint8]:
        """Some of the ``n_rows`` rows of a tensor."""
        path, row_bytes = self._paths[tensor.file_index], tensor.n_bytes // n_rows
        start = self._data_offsets[tensor.file_index] + tensor.offset + rows.start * row_bytes
        try:
            return np.memmap(path, np.uint8, "r", offset=start, shape=(rows.stop - rows.start, row_bytes))
        except OSError as error:
            raise ModelFileError(path, error.strerror or "cannot be read") from error
        except ValueError as error:  # mmap: the file has become shorter
            raise ModelFileError(path, f"ends before tensor {gguf.quoted(tensor.name)}") from error


def dequantized(encoded: npt.NDArray[np.uint8], type_name: str) -> npt.NDArray[np.float32]:
    """Rows of bytes as values of their own memory, (rows, columns)."""
    with np.errstate(all="ignore"):  # what is no number is told with the tensor's name
        values = quants.dequantize(np.ascontiguousarray(encoded), GGMLQuantizationType[type_name])
    return np.array(values, np.float32)


@functools.cache
def can_dequantize(type_name: str) -> bool:
    """Whether the installed gguf package makes values of a ggml type."""
    block = np.zeros((1, TENSOR_TYPES[type_name].block_bytes), np.uint8)
    try:
        dequantized(block, type_name)
    except (NotImplementedError, KeyError):
        return False
    return True


def _pieces(n_rows: int, n_columns: int) -> Iterator[slice]:
    step = max(1, _PIECE // n_columns)
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))
