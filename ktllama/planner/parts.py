"""The parts of a model that a plan moves: for each layer its core, and the matrices of its experts or its FFN.

A layer's *core* is all that decides where the layer is: attention, norms, router, shared experts, and the KV cache.
What is large and may be elsewhere are its *matrices*: gate, up and down, of the routed experts or of a dense FFN.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from ktllama import devices
from ktllama.model.kv_cache import attention_operations, kv_bytes_per_token, n_cells, state_bytes
from ktllama.model.model_file import TOKEN_EMBEDDING, Tensor
from ktllama.model.modules import ModuleTree, block_of
from ktllama.placing.ir import Placement
from ktllama.runtime.context_options import ContextOptions

#: A matrix and what belongs to it: its bias and its scale are of the same module.
_MATRIX = re.compile(r"blk\.\d+\.(ffn_(?:gate_up|gate|up|down)(?:_exps)?)\.[a-z_]+", re.ASCII)
_ORDER_OF_USE = tuple(f"ffn_{word}{kind}" for word in ("gate_up", "gate", "up", "down") for kind in ("", "_exps"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Tensors that go together. ``reads`` is what one decoded token reads of their ``n_bytes``, by ggml type.

    ``chosen`` says that a token reads only the experts that a router chose. ``device`` is where the rules want them,
    None where they leave it open.
    """

    tensors: tuple[str, ...]
    n_bytes: int
    reads: tuple[tuple[str, float], ...]
    device: str | None = None
    chosen: bool = False

    @property
    def read_bytes(self) -> float:
        """Bytes that one decoded token reads of it."""
        return sum(n_bytes for _, n_bytes in self.reads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer. ``device`` is where the rules want its attention, None where they leave it open.

    ``core`` is what follows the attention, ``kv_bytes`` its KV cache or state, ``kv_read_bytes`` what a token reads of
    it halfway through the context; ``matrices`` are ordered as they are used; ``fixed`` are parts of the core that
    rules put elsewhere. ``attention_operations`` are multiplications and additions of a token's attention there,
    ``n_nodes`` the nodes of llama.cpp's graph that decodes it; 0 where it was not asked.
    """

    index: int
    device: str | None
    core: Part
    kv_bytes: int
    kv_read_bytes: float
    matrices: tuple[Part, ...]
    fixed: tuple[Part, ...] = ()
    attention_operations: float = 0.0
    n_nodes: float = 0.0

    @property
    def core_bytes(self) -> int:
        """Bytes of memory that the layer itself needs where it is."""
        return self.core.n_bytes + self.kv_bytes

    @property
    def core_read_bytes(self) -> float:
        """Bytes that a token reads of it."""
        return self.core.read_bytes + self.kv_read_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """A model cut up: its layers, its output layer, and what is where it is whatever the plan (``fixed``)."""

    layers: tuple[Layer, ...]
    output: Part
    fixed: tuple[Part, ...] = field(default=())

    @property
    def always_on_host(self) -> tuple[Part, ...]:
        """What is on the host whatever the plan, apart from layers' cores and matrices and the output."""
        parts = (*self.fixed, *(part for layer in self.layers for part in layer.fixed))
        return tuple(part for part in parts if part.device in (None, devices.CPU))

    @property
    def all_fixed(self) -> tuple[Part, ...]:
        """Every part that has a device already, except layers' cores and KV."""
        return (
            *self.fixed,
            *(part for layer in self.layers for part in (*layer.fixed, *layer.matrices) if part.device is not None),
        )


def cut(placement: Placement, context: ContextOptions, tree: ModuleTree | None = None) -> ModelParts:
    """The parts of the model that ``placement`` is a plan for; devices ``auto`` in it are what is left open.

    The KV cache is taken with all the cells that llama.cpp makes for ``context``, and as half full when it is read.
    With ``tree`` matrices that one module owns are one part, since a rule gives a module one device.
    """
    return _Cutter(placement, context, tree).parts()


def with_nodes(parts: ModelParts, n_nodes: int) -> ModelParts:
    """``parts`` with the nodes of llama.cpp's graph for a decoded token spread over the layers."""
    each = n_nodes / len(parts.layers)
    return dataclasses.replace(parts, layers=tuple(dataclasses.replace(layer, n_nodes=each) for layer in parts.layers))


class _Cutter:
    def __init__(self, placement: Placement, context: ContextOptions, tree: ModuleTree | None) -> None:
        self.owners = {} if tree is None else tree.owners
        self.placement = placement
        self.context = context
        self.model = placement.model
        self.tensors: Mapping[str, Tensor] = {tensor.name: tensor for tensor in self.model.tensors}
        self.by_block: dict[int | None, list[str]] = defaultdict(list)
        for name, tensor in placement.tensors.items():
            if tensor.loaded:
                self.by_block[block_of(name)].append(name)
        self.used_share = self._used_share()

    def _used_share(self) -> float:
        """The share of a layer's routed experts that a token reads."""
        n_experts = self.model.integer("expert_count")
        return min(1.0, self.model.integer("expert_used_count") / n_experts) if n_experts else 1.0

    def parts(self) -> ModelParts:
        layers = tuple(self.layer(index) for index in sorted(self.placement.layers))
        outside = self.by_block[None]
        output = [name for name in outside if name.startswith("output")]
        other = [name for name in outside if name not in output]
        copied = [TOKEN_EMBEDDING] if self.placement.ties_output else []
        output_part = dataclasses.replace(
            self._part([*output, *copied], 1.0), tensors=tuple(output), device=_fixed(self.placement.output_device)
        )
        return ModelParts(layers=layers, output=output_part, fixed=self._fixed_parts(other, 0.0))

    def layer(self, index: int) -> Layer:
        names = self.by_block[index]
        by_stem = self._matrices(names)
        matrices = {name for members in by_stem.values() for name in members}
        attention = _fixed(self.placement.layers[index])
        follows = [name for name in names if name not in matrices and self._device(name) in (None, attention)]
        elsewhere = [name for name in names if name not in matrices and name not in follows]
        cells, half = self._cells(), self.context.n_ctx / self.context.n_seq_max / 2
        per_token = kv_bytes_per_token(
            self.model,
            index,
            self.context.type_k,
            self.context.type_v,
            flash_attention=self.context.flash_attn != "off",
        )
        state = (state_bytes(self.model, self.context.n_seq_max) or 0) if index in self.placement.recurrent else 0
        return Layer(
            index=index,
            device=attention,
            core=self._part(follows, 1.0),
            kv_bytes=cells * per_token + state,
            kv_read_bytes=half * per_token + state,
            matrices=tuple(
                self._part(by_stem[stem], self.used_share if stem.endswith("_exps") else 1.0)
                for stem in sorted(by_stem, key=_ORDER_OF_USE.index)
            ),
            fixed=self._fixed_parts(elsewhere, 1.0),
            attention_operations=attention_operations(self.model, index, half),
        )

    def _matrices(self, names: list[str]) -> dict[str, list[str]]:
        """The tensors that go together, by the stem of the first; those that share an owner do."""
        by_stem: dict[str, list[str]] = defaultdict(list)
        for name in names:
            if found := _MATRIX.fullmatch(name):
                by_stem[found.group(1)].append(name)
        joined: dict[str, list[str]] = {}
        owners: dict[str, set[int]] = {}
        for stem in sorted(by_stem, key=_ORDER_OF_USE.index):
            own = {index for name in by_stem[stem] for index in self.owners.get(name, ())}
            first = next((known for known, taken in owners.items() if taken & own), stem)
            joined.setdefault(first, []).extend(by_stem[stem])
            owners[first] = owners.get(first, set()) | own
        return joined

    def _cells(self) -> int:
        return n_cells(
            self.context.n_ctx,
            n_seq_max=self.context.n_seq_max,
            unified=self.context.kv_unified,
            n_ctx_train=self.model.integer("context_length"),
        )

    def _part(self, names: list[str], share: float) -> Part:
        fixed = {self._device(name) for name in names}
        reads: dict[str, float] = defaultdict(float)
        for name in names:
            reads[self.tensors[name].type] += share * self.tensors[name].n_bytes
        return Part(
            tensors=tuple(names),
            n_bytes=sum(self.tensors[name].n_bytes for name in names),
            reads=tuple(reads.items()),
            device=fixed.pop() if len(fixed) == 1 else None,
            chosen=any("_exps." in name for name in names),
        )

    def _fixed_parts(self, names: list[str], share: float) -> tuple[Part, ...]:
        """One part a device; what is left open outside the layers stays with the host."""
        by_device: dict[str, list[str]] = defaultdict(list)
        for name in names:
            by_device[self._device(name) or devices.CPU].append(name)
        return tuple(
            dataclasses.replace(self._part(members, share), device=device) for device, members in by_device.items()
        )

    def _device(self, name: str) -> str | None:
        return _fixed(self.placement.tensors[name].device)


def _fixed(device: str | None) -> str | None:
    return None if device in (None, devices.AUTO) else device
