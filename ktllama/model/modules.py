"""Module trees: the Hugging Face modules that a rule file talks about, and the GGUF tensors that each one owns."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ktllama.errors import UnsupportedModelError
from ktllama.model.architecture import MODULE_LIST, Architecture, Node, Variant
from ktllama.model.architectures import ARCHITECTURES, FAMILIES, find, generic
from ktllama.model.model_file import ModelFile

_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]*)\.(.+)", re.ASCII)

#: What mixes tokens in a block: attention, or what a recurrent block has in its place.
_MIXERS = ("self_attn", "linear_attn", "attention", "attn", "mamba", "mixer")

_PARAMETER = re.compile(r"\.(?:weight|bias|scale|input_scale)$")


@dataclass(frozen=True, slots=True)
class Module:
    """One module of a model.

    ``bases`` are the paths of its base classes. ``tensors`` are the GGUF tensors that it owns directly; a tensor that
    holds several modules' weights (fused or per expert) is owned by each of them. ``parent`` is an index into the
    tree, -1 for the root. ``n_experts`` is set on a list of experts, of which only expert 0 is in the tree.
    ``synthetic`` marks modules that the Hugging Face model does not build (MTP blocks).
    """

    name: str
    class_path: str
    bases: tuple[str, ...]
    tensors: tuple[str, ...]
    parent: int
    n_experts: int = 0
    synthetic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleTree:
    """The modules of a model in ktransformers' visiting order (parents before children).

    ``owners`` maps each owned tensor to the indexes of its modules; ``unowned`` lists the tensors of no module.
    ``layers`` maps a block's number to its module, ``attention`` to the module whose device its KV cache follows, or
    the state that it keeps in place of one: ``recurrent`` has those blocks. ``n_trunk_layers`` counts the blocks that
    are not MTP blocks. ``generic`` says that the architecture is not known: names are from a table, classes unknown.
    """

    model: ModelFile
    variant: str
    modules: tuple[Module, ...]
    owners: Mapping[str, tuple[int, ...]]
    unowned: tuple[str, ...]
    layers: Mapping[int, int]
    attention: Mapping[int, int]
    n_trunk_layers: int
    recurrent: frozenset[int] = frozenset()
    generic: bool = False


def block_of(tensor: str) -> int | None:
    """The block number of a GGUF tensor name, or None outside the blocks."""
    found = _BLOCK.match(tensor)
    return int(found.group(1)) if found else None


def architecture_of(model: ModelFile) -> Architecture:
    """The description of ``model``'s architecture; of one that is not known, a generic one with names from a table.

    Raises:
        UnsupportedModelError: if no tensor of the model can be named.
    """
    found = find(model) or generic.describe(model)
    if found is None:
        raise UnsupportedModelError(model.name, model.architecture, tuple(sorted(ARCHITECTURES)))
    return found


def build(model: ModelFile, named_classes: Iterable[str] = (), operators: Iterable[str] = ()) -> ModuleTree:
    """The module tree of ``model``, in the variant whose classes ``named_classes`` (of a rule file) name most.

    Among variants named alike, one whose own operators are among ``operators`` (the file's replacements) goes before
    the default one.

    Raises:
        UnsupportedModelError: if the architecture has no module names here.
    """
    architecture = architecture_of(model)
    named = frozenset(named_classes)

    packages = {path.rpartition(".")[0] for path in operators}

    def fit(variant: Variant) -> tuple[int, bool]:
        paths = _class_paths(architecture, variant)
        n_named = len(named & (paths | {path.rpartition(".")[2] for path in paths}))
        own = variant.operators
        return n_named, own is not None and any(f"{package}.".startswith(f"{own}.") for package in packages)

    variant = max(architecture.variants(model), key=fit)
    return _Builder(model, architecture, variant).build()


def families(model: ModelFile) -> frozenset[str]:
    """What the models are called that ``model``'s architecture builds: ``DeepSeek-V3``."""
    roots = (variant.class_path("@ForCausalLM") for variant in architecture_of(model).variants(model))
    return frozenset(family for root in roots if (family := family_of(root)) is not None)


def family_of(class_path: str) -> str | None:
    """The model family whose modelling file a class path names."""
    return next((FAMILIES[part] for part in class_path.split(".") if part in FAMILIES), None)


def class_paths(model: ModelFile) -> frozenset[str]:
    """All class paths that modules of ``model`` may have, in any variant."""
    architecture = architecture_of(model)
    return frozenset().union(*(_class_paths(architecture, variant) for variant in architecture.variants(model)))


def _class_paths(architecture: Architecture, variant: Variant) -> frozenset[str]:
    outside = (*architecture.before_layers, *architecture.after_layers, *architecture.head, *variant.extra)
    if architecture.generic:
        return frozenset()
    names = {"@ForCausalLM", "@Model", "@DecoderLayer"}
    pending = [*architecture.layer, *architecture.mtp, *outside]
    while pending:
        node = pending.pop()
        names.add(node.cls)
        pending += node.children
    return frozenset(path for cls in names for path in (variant.class_path(cls), *variant.base_paths(cls)))


@dataclass(frozen=True, slots=True)
class _Planned:
    """A module relative to its block: what all blocks with the same tensors share."""

    name: str
    class_path: str
    bases: tuple[str, ...]
    suffixes: tuple[str, ...]
    parent: int
    is_expert_list: bool


class _Builder:
    """Builds one variant's tree. Blocks with the same tensors are planned once."""

    def __init__(self, model: ModelFile, architecture: Architecture, variant: Variant) -> None:
        self.model = model
        self.architecture = architecture
        self.variant = variant
        self.modules: list[Module] = []
        self.plans: dict[tuple[bool, frozenset[str]], tuple[_Planned, ...]] = {}
        self.n_experts = model.integer("expert_count")

    def build(self) -> ModuleTree:
        outside, blocks = _by_block(self.model)
        n_trunk = self.model.n_layers - self.model.integer("nextn_predict_layers")
        root = self._add("", "@ForCausalLM", -1)
        backbone = self._add("model", "@Model", root)
        self._plant("model", self.architecture.before_layers, outside, backbone)
        layer_list = self._add("model.layers", MODULE_LIST, backbone)
        layers = {
            number: self._add_block(number, blocks[number], layer_list, synthetic=number >= n_trunk)
            for number in sorted(blocks)
        }
        self._plant("model", self.architecture.after_layers, outside, backbone)
        self._plant("", (*self.variant.extra, *self.architecture.head), outside, root)
        return self._finish(layers, n_trunk)

    def _finish(self, layers: dict[int, int], n_trunk: int) -> ModuleTree:
        owners: dict[str, list[int]] = defaultdict(list)
        for index, module in enumerate(self.modules):
            for tensor in module.tensors:
                owners[tensor].append(index)
        by_name = {module.name: index for index, module in enumerate(self.modules)}
        attention = {
            number: next(
                (by_name[name] for mixer in _MIXERS if (name := f"model.layers.{number}.{mixer}") in by_name), index
            )
            for number, index in layers.items()
        }
        return ModuleTree(
            model=self.model,
            variant=self.variant.name,
            modules=tuple(self.modules),
            owners={tensor: tuple(indexes) for tensor, indexes in owners.items()},
            unowned=tuple(tensor.name for tensor in self.model.tensors if tensor.name not in owners),
            layers=layers,
            attention=attention,
            n_trunk_layers=n_trunk,
            recurrent=self.architecture.recurrent(self.model),
            generic=self.architecture.generic,
        )

    def _add(self, name: str, cls: str, parent: int) -> int:
        path, bases = self.variant.class_path(cls), self.variant.base_paths(cls)
        self.modules.append(Module(name, path, bases, (), parent))
        return len(self.modules) - 1

    def _add_block(self, number: int, suffixes: frozenset[str], parent: int, *, synthetic: bool) -> int:
        """Add block ``number``; ``suffixes`` are its tensor names without ``blk.N.``. Returns the block's index."""
        key = (synthetic, suffixes)
        if key not in self.plans:
            nodes = (*self.architecture.layer, *self.architecture.mtp) if synthetic else self.architecture.layer
            self.plans[key] = self._plan(Node("", "@DecoderLayer", children=nodes, always=True), suffixes)
        first = len(self.modules)
        module_prefix, tensor_prefix = f"model.layers.{number}", f"blk.{number}."
        self.modules += [
            Module(
                name=module_prefix + planned.name,
                class_path=planned.class_path,
                bases=planned.bases,
                tensors=tuple(tensor_prefix + suffix for suffix in planned.suffixes),
                parent=parent if planned.parent < 0 else first + planned.parent,
                n_experts=self.n_experts if planned.is_expert_list else 0,
                synthetic=synthetic,
            )
            for planned in self.plans[key]
        ]
        return first

    def _plant(self, prefix: str, nodes: tuple[Node, ...], suffixes: frozenset[str], parent: int) -> None:
        """Add modules outside the blocks; there the suffixes are whole tensor names."""
        for node in nodes:
            first = len(self.modules)
            for planned in self._plan(node, suffixes):
                name = f"{prefix}{planned.name}" if prefix else planned.name[1:]
                above = parent if planned.parent < 0 else first + planned.parent
                self.modules.append(Module(name, planned.class_path, planned.bases, planned.suffixes, above))

    def _plan(self, top: Node, suffixes: frozenset[str]) -> tuple[_Planned, ...]:
        by_stem: dict[str, list[str]] = defaultdict(list)
        for suffix in sorted(suffixes):
            by_stem[_PARAMETER.sub("", suffix)].append(suffix)
        planned: list[_Planned] = []

        def visit(node: Node, prefix: str, parent: int) -> None:
            name = f"{prefix}.{node.name}" if node.name else prefix
            if name[1:] in self.variant.drop or not _exists(node, by_stem):
                return
            here = len(planned)
            owned = tuple(suffix for stem in node.stems for suffix in by_stem.get(stem, ()))
            path, bases = self.variant.class_path(node.cls), self.variant.base_paths(node.cls)
            planned.append(_Planned(name, path, bases, owned, parent, node.each))
            for child in node.children:
                visit(child, name, here)

        visit(top, "", -1)
        return tuple(planned)


def _exists(node: Node, by_stem: Mapping[str, list[str]]) -> bool:
    if node.always or (not node.stems and not node.children):
        return True
    if any(stem in by_stem for stem in node.stems):
        return True
    return any(_exists(child, by_stem) for child in node.children if child.stems or child.children)


def _by_block(model: ModelFile) -> tuple[frozenset[str], dict[int, frozenset[str]]]:
    """Tensor names outside the blocks, and by block the names without ``blk.N.``."""
    outside: set[str] = set()
    blocks: dict[int, set[str]] = defaultdict(set)
    for tensor in model.tensors:
        found = _BLOCK.match(tensor.name)
        if found and int(found.group(1)) < model.n_layers:
            blocks[int(found.group(1))].add(found.group(2))
        else:
            outside.add(tensor.name)
    return frozenset(outside), {number: frozenset(names) for number, names in blocks.items()}


def ancestors(tree: ModuleTree, index: int) -> Iterator[int]:
    """The indexes of the modules above ``index``, nearest first."""
    above = tree.modules[index].parent
    while above >= 0:
        yield above
        above = tree.modules[above].parent
