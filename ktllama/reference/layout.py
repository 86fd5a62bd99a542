"""Where in a file each parameter of a model is; all of it is checked before anything is read.

Older and newer files keep some tensors in another form: ``attn_kv_b`` for ``attn_k_b`` and ``attn_v_b``, the experts'
``gate_up`` in one, the dense models' ``attn_qkv`` in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from ktllama.errors import WeightError
from ktllama.model import model_file as header
from ktllama.model.model_file import ModelFile
from ktllama.reference.config import Config, DeepSeekConfig, DenseConfig
from ktllama.reference.names import gguf_name
from ktllama.reference.weights import Part, can_dequantize

#: Tensors that change nothing here: llama.cpp computes the frequencies of all but Llama 3 itself.
_UNUSED = frozenset({"rope_freqs.weight"})


def parts_of(model: ModelFile, module: nn.Module, config: Config) -> dict[str, Part]:
    """The part of a tensor that each parameter of ``module`` is, by the parameter's name.

    Raises:
        WeightError: for a tensor that is missing, has a wrong shape or a type that cannot be dequantized, or whose use
            is not known.
    """
    finder = _Finder(model, config)
    parts = {name: finder.find(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()}
    finder.check_leftovers({part.tensor.name for part in parts.values()})
    return parts


class _Finder:
    def __init__(self, model: ModelFile, config: Config) -> None:
        self._path = model.paths[0] if model.paths else model.name
        self._config = config
        self._tensors: Mapping[str, header.Tensor] = {tensor.name: tensor for tensor in model.tensors}

    def find(self, parameter: str, shape: tuple[int, ...]) -> Part:
        name = gguf_name(parameter)
        tensor = self._tensors.get(name)
        part = self._joined(name, shape) if tensor is None else Part.whole(self._checked(tensor, shape), shape)
        if part is None:
            raise WeightError(self._path, name, "is missing")
        if not can_dequantize(part.tensor.type):
            raise WeightError(self._path, part.tensor.name, f"has type {part.tensor.type}, which cannot be dequantized")
        return part

    def check_leftovers(self, used: set[str]) -> None:
        """A tensor that nothing uses would be a part of the model that the reference leaves out."""
        for name in self._tensors:
            if name not in used | _UNUSED and not self._is_mtp(name):
                raise WeightError(self._path, name, f"is not known in a model of architecture {self._architecture()}")

    def _architecture(self) -> str:
        return self._config.architecture

    def _is_mtp(self, name: str) -> bool:
        """Whether a tensor is of the multi-token-prediction block, which is read only on demand."""
        config = self._config
        return isinstance(config, DeepSeekConfig) and name.startswith(f"blk.{config.n_layers}.")

    def _checked(self, tensor: header.Tensor, shape: tuple[int, ...]) -> header.Tensor:
        found = tensor.shape[::-1]
        if _without_ones(found) != _without_ones(shape):
            raise WeightError(
                self._path, tensor.name, f"has the shape {_shown(found)}; expected {_shown(shape)} by the metadata"
            )
        return tensor

    def _joined(self, name: str, shape: tuple[int, ...]) -> Part | None:
        """The part of a tensor that holds several parameters."""
        prefix, _, ending = name.rpartition(".ffn_" if ".ffn_" in name else ".attn_")
        if isinstance(self._config, DeepSeekConfig):
            if ending in ("gate_exps.weight", "up_exps.weight"):
                return self._half_of_gate_up(f"{prefix}.ffn_gate_up_exps.weight", ending, shape)
            if ending in ("k_b.weight", "v_b.weight"):
                return self._part_of_kv(f"{prefix}.attn_kv_b.weight", ending, shape, self._config)
        elif ending in ("q.weight", "k.weight", "v.weight", "q.bias", "k.bias", "v.bias"):
            kind, _, suffix = ending.partition(".")
            return self._part_of_qkv(f"{prefix}.attn_qkv.{suffix}", kind, shape, self._config)
        return None

    def _half_of_gate_up(self, name: str, ending: str, shape: tuple[int, ...]) -> Part | None:
        n, height, width = shape
        first = 0 if ending.startswith("gate") else height
        return self._rows(name, (n, 2 * height, width), first, first + height, shape)

    def _part_of_kv(self, name: str, ending: str, shape: tuple[int, ...], config: DeepSeekConfig) -> Part | None:
        """Of each head: its key rows, which are kept transposed here, then its value rows."""
        height = config.nope + config.v_head
        whole = (config.n_heads, height, config.kv_lora_rank)
        if ending.startswith("k"):
            return self._rows(name, whole, 0, config.nope, shape, transposed=True)
        return self._rows(name, whole, config.nope, height, shape)

    def _part_of_qkv(self, name: str, kind: str, shape: tuple[int, ...], config: DenseConfig) -> Part | None:
        q, kv = config.n_heads * config.head, config.n_kv_heads * config.head
        first, last = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}[kind]
        if len(shape) == 1:  # a bias: the rows are its values
            return self._rows(name, (1, q + 2 * kv, 1), first, last, shape)
        return self._rows(name, (1, q + 2 * kv, config.width), first, last, shape)

    def _rows(
        self,
        name: str,
        whole: tuple[int, int, int],
        first: int,
        last: int,
        shape: tuple[int, ...],
        *,
        transposed: bool = False,
    ) -> Part | None:
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        n, rows, columns = whole
        flat = (n * rows, columns) if columns > 1 else (n * rows,)  # the second is a bias
        self._checked(tensor, whole if len(tensor.shape) > 2 else flat)
        return Part(
            tensor=tensor,
            n=n,
            rows=rows,
            columns=columns,
            first=first,
            last=last,
            transposed=transposed,
            shape=shape,
        )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """ggml does not tell a missing leading dimension from one of 1."""
    start = next((index for index, size in enumerate(shape) if size != 1), len(shape))
    return shape[start:]


def _shown(shape: tuple[int, ...]) -> str:
    return " × ".join(f"{size:,}" for size in shape)


def blocks_of(parts: Mapping[str, Part], index: int) -> Iterator[tuple[str, Part]]:
    """The parameters of layer ``index`` by their name within it, with their parts."""
    prefix = f"blk.{index}."
    return ((name.removeprefix(prefix), part) for name, part in parts.items() if name.startswith(prefix))
