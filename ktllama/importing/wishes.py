"""What an assignment asks of every module: one device each, since that is what a rule gives.

Where the command line puts tensors of one module on several devices, the device with the most bytes is chosen and
the choice reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ktllama import devices
from ktllama.diagnostics import Diagnostic
from ktllama.importing.assignment import Assignment
from ktllama.layers import layer_ranges
from ktllama.model.model_file import TOKEN_EMBEDDING
from ktllama.model.modules import ModuleTree, ancestors, block_of
from ktllama.placing.place import PER_LAYER_TENSORS
from ktllama.placing.resolve import DEFAULT_DEVICE

#: Stands for the number of any expert in the name of an expert's part.
ANY_EXPERT = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Devices by layer and name below the layer (``self_attn.q_a_proj``, ``mlp.experts``), and by name outside.

    Only modules whose device matters are here: those that own tensors, ``self_attn`` for the KV cache, ``lm_head``.
    ``experts`` are the names of lists of routed experts (``mlp.experts``); those that are split by part are
    ``mlp.experts.*.gate_proj``. ``tensors`` and ``kv`` say what comes of it.
    """

    layers: Mapping[int, Mapping[str, str]]
    experts: frozenset[str]
    outside: Mapping[str, str]
    tensors: Mapping[str, str]
    kv: Mapping[int, str]
    diagnostics: tuple[Diagnostic, ...]


def wishes(assignment: Assignment, tree: ModuleTree) -> Wishes:
    """What ``assignment`` asks of the modules of ``tree``."""
    return _Collector(assignment, tree).collect()


class _Collector:
    def __init__(self, assignment: Assignment, tree: ModuleTree) -> None:
        self.assignment = assignment
        self.tree = tree
        self.n_bytes = {tensor.name: tensor.n_bytes for tensor in assignment.model.tensors}
        self.tensors = dict(assignment.tensors)
        self.split: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.found: list[Diagnostic] = []

    def collect(self) -> Wishes:
        layers: dict[int, dict[str, str]] = {layer: {} for layer in self.tree.layers}
        outside: dict[str, str] = {}
        for name, owned in self._owned_by_module().items():
            layer, below = _below_layer(name)
            device = self._one_device(below, layer, owned)
            if layer is None:
                outside[name] = device
            else:
                layers[layer][below] = device
        for layer, device in self.assignment.kv.items():
            module = self.tree.modules[self.tree.attention[layer]]
            below = _below_layer(module.name)[1]
            self._follow_cache(below, layer, device, module.tensors)
            layers[layer][below] = device
        outside.setdefault("lm_head", self.assignment.output)
        self._embedding(outside)
        self._unowned()
        self._report_splits()
        return Wishes(
            layers=layers,
            experts=frozenset(_below_layer(module.name)[1] for module in self.tree.modules if module.n_experts),
            outside=outside,
            tensors=self.tensors,
            kv=self.assignment.kv,
            diagnostics=tuple(self.found),
        )

    def _owned_by_module(self) -> dict[str, list[str]]:
        """The tensors of every module that a rule can place by itself."""
        owned: dict[str, list[str]] = defaultdict(list)
        experts: dict[int, list[str]] = defaultdict(list)
        for name, owners in self.tree.owners.items():
            above = next((up for up in ancestors(self.tree, owners[0]) if self.tree.modules[up].n_experts), None)
            if above is None:
                owned[self.tree.modules[owners[0]].name].append(name)
            else:
                experts[above].append(name)
        for index, names in experts.items():
            whole = self.tree.modules[index]
            if whole.n_experts == 1 or len({self.tensors[name] for name in names}) == 1:
                owned[whole.name] += names
                continue
            for name in names:
                for owner in self.tree.owners[name]:
                    part = self.tree.modules[owner].name.removeprefix(f"{whole.name}.0.")
                    owned[f"{whole.name}.{ANY_EXPERT}.{part}"].append(name)
        return owned

    def _one_device(self, below: str, layer: int | None, owned: Iterable[str]) -> str:
        by_device: dict[str, int] = defaultdict(int)
        for name in owned:
            by_device[self.tensors[name]] += self.n_bytes[name]
        chosen = max(by_device, key=lambda device: (by_device[device], device != devices.CPU))
        if len(by_device) > 1:
            parts = sorted({_stem(name) for name in owned if self.tensors[name] != chosen})
            self.split[below, f"{', '.join(parts)} put with the rest on {chosen}"].append(
                -1 if layer is None else layer
            )
            self.tensors.update(dict.fromkeys(owned, chosen))
        return chosen

    def _follow_cache(self, below: str, layer: int, device: str, owned: Iterable[str]) -> None:
        """Tensors that a layer's attention owns itself are where its cache or state is: one rule decides both."""
        away = sorted(name for name in owned if self.tensors[name] != device)
        if away:
            parts = ", ".join(_stem(name) for name in away)
            self.split[below, f"{parts} put with the layer's cache on {device}"].append(layer)
            self.tensors.update(dict.fromkeys(away, device))

    def _report_splits(self) -> None:
        for (module, what), layers in self.split.items():
            where = f" of layer {layer_ranges(layers)}" if layers[0] >= 0 else ""
            self.found.append(
                Diagnostic(
                    code="import-split-module",
                    severity="warning",
                    message=f"the command puts tensors of one module, {module}{where}, on several devices, and a rule "
                    f"gives a module one: {what}",
                )
            )

    def _embedding(self, outside: dict[str, str]) -> None:
        wanted = self.tensors.get(TOKEN_EMBEDDING)
        if wanted not in (None, devices.CPU):
            self.tensors[TOKEN_EMBEDDING] = devices.CPU
            self._not_expressible(f"the command puts {TOKEN_EMBEDDING} on {wanted}; rules keep it on the CPU")
        if "model.embed_tokens" in outside:
            outside["model.embed_tokens"] = devices.CPU

    def _unowned(self) -> None:
        """Tensors of no module follow their block's attention, or are where no rule says anything."""
        for name in self.tree.unowned:
            layer = 0 if name in PER_LAYER_TENSORS else block_of(name)
            follows = self.assignment.kv.get(layer, self._attention(layer)) if layer is not None else DEFAULT_DEVICE
            if self.tensors[name] != follows and name not in PER_LAYER_TENSORS:
                self._not_expressible(
                    f"{name} belongs to no module that ktllama knows: the command puts it on {self.tensors[name]}, the "
                    f"rules on {follows}"
                )
            self.tensors[name] = follows

    def _attention(self, layer: int) -> str:
        """Where the attention of a layer without a KV cache of its own is."""
        return self.assignment.tensors.get(f"blk.{layer}.attn_norm.weight", DEFAULT_DEVICE)

    def _not_expressible(self, message: str) -> None:
        self.found.append(Diagnostic(code="import-not-expressible", severity="warning", message=message))


def _below_layer(name: str) -> tuple[int | None, str]:
    """``model.layers.3.mlp.gate`` → (3, ``mlp.gate``)."""
    parts = name.split(".", 3)
    if len(parts) >= 3 and parts[:2] == ["model", "layers"] and parts[2].isdigit():
        return int(parts[2]), parts[3] if len(parts) == 4 else ""
    return None, name


def _stem(name: str) -> str:
    return name.split(".", 2)[2] if block_of(name) is not None else name
