"""Explain: for one module or tensor, the rule that won, the device it got and why, and what llama.cpp does for it."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from ktllama import devices
from ktllama.errors import KtllamaError
from ktllama.explaining.kinds import kind_of, layer_of
from ktllama.lower.overrides import base_device
from ktllama.model.kv_cache import kv_bytes_per_token
from ktllama.model.model_file import TOKEN_EMBEDDING
from ktllama.model.modules import ancestors
from ktllama.placing.ir import TensorPlacement
from ktllama.placing.place import PER_LAYER_TENSORS
from ktllama.placing.resolve import Decision, own_prefill_default
from ktllama.ruleset.rules import Rule
from ktllama.ruleset.wording import shown
from ktllama.translation import Translation

#: Why something is on its device.
Reason = Literal[
    "rule",  # the rule that won says so
    "rule-without-device",  # a rule won and names no generate_device
    "experts-operator",  # so too, and the operator keeps experts on the CPU
    "default-device",  # no rule matches
    "cut",  # a module above has a rule that says recursive: false
    "embedding",  # llama.cpp keeps it on the CPU, whatever the rule says
    "most-experts",  # one tensor holds all experts, and the rules put them on several devices
    "follows-attention",  # a tensor of a layer that no module owns
    "no-module",  # a tensor outside the layers that no module owns
]

#: How llama.cpp comes to put a tensor somewhere.
Means = Literal["override", "layer", "output-layer", "input", "every-layer", "not-loaded"]

_MAX_SUGGESTIONS = 3
_MAX_COMPARED = 200


class NoMatchError(KtllamaError):
    """A glob that matches no module and no tensor. ``near`` holds names like it."""

    def __init__(self, glob: str, model: str, near: tuple[str, ...]) -> None:
        self.glob = glob
        self.model = model
        self.near = near
        super().__init__(glob, model, near)

    def __str__(self) -> str:
        text = f"'{shown(self.glob)}' matches no module and no tensor of {self.model}"
        return f"{text}; did you mean {' or '.join(repr(name) for name in self.near)}?" if self.near else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama:
    """What llama.cpp does for a tensor. ``device`` is its name there; ``pattern`` the override that finds the tensor;
    ``layer`` the layer whose device the tensor takes where nothing overrides it.
    """

    means: Means
    device: str
    layer: int | None = None
    pattern: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorShare:
    """A tensor as part of an explanation.

    ``device`` is a rule device; ``prefill_device`` the GPU to which the tensor is streamed for long prompts, if any.
    """

    name: str
    type: str
    n_bytes: int
    device: str
    prefill_device: str | None
    llama: Llama


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShare:
    """A layer's KV cache. ``llama_device`` differs from ``device``'s name where the target cannot express it."""

    layer: int
    device: str
    llama_device: str
    bytes_per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """Why something has its device.

    ``rule`` is the index of the rule that won; ``also`` are the indexes of the others that match. ``cut_by`` names the
    module above whose rule says ``recursive: false``; ``followed`` the module that an unowned tensor follows.
    ``said`` is the device that was decided for the module.
    """

    reason: Reason
    rule: int | None = None
    also: tuple[int, ...] = ()
    cut_by: str | None = None
    followed: str | None = None
    said: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why one module or tensor is where it is.

    ``tensors`` are a module's own (a list of experts owns those of its experts) or the tensor itself; ``below`` the
    bytes by device of all tensors of a module and what is inside it. ``tied_output`` marks an output layer that uses a
    copy of the embedding.
    """

    name: str
    what: Literal["module", "tensor"]
    module: str | None
    class_path: str | None
    n_experts: int
    device: str
    why: Why
    tensors: tuple[TensorShare, ...]
    below: Mapping[str, int]
    kv: CacheShare | None = None
    tied_output: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes of the module and everything inside it, or of the tensor."""
        return sum(self.below.values())


def explain(translation: Translation, glob: str) -> tuple[Explanation, ...]:
    """Explain every module, then every tensor, that is called ``glob`` or matches it (``fnmatch``, case counts).

    Raises:
        NoMatchError: when there is none.
    """
    explainer = Explainer(translation)
    modules = [module.name for module in translation.resolution.tree.modules if module.name]
    tensors = list(translation.placement.tensors)
    exact = [name for name in (*modules, *tensors) if name == glob]
    chosen = frozenset(exact or (name for name in (*modules, *tensors) if fnmatchcase(name, glob)))
    if not chosen:
        raise NoMatchError(glob, translation.model.name, _near(glob, [*modules, *tensors]))
    return (
        *(explainer.module(name) for name in modules if name in chosen),
        *(explainer.tensor(name) for name in tensors if name in chosen),
    )


def _near(glob: str, names: list[str]) -> tuple[str, ...]:
    known = {kind_of(name): None for name in names} if "*" in glob else dict.fromkeys(names)
    return tuple(difflib.get_close_matches(glob[:_MAX_COMPARED], known, n=_MAX_SUGGESTIONS, cutoff=0.7))


class Explainer:
    """Explains the parts of one translation, whose KV cache has these types."""

    def __init__(self, translation: Translation, type_k: str = "f16", type_v: str = "f16") -> None:
        self.translation = translation
        self.cache_types = type_k, type_v
        self.resolution = translation.resolution
        self.tree = translation.resolution.tree
        self.placement = translation.placement
        self.index_of = {module.name: index for index, module in enumerate(self.tree.modules)}
        self.types = {tensor.name: tensor.type for tensor in translation.model.tensors}
        self.overrides = [
            (re.compile(override.pattern), override) for override in translation.settings.tensor_overrides
        ]
        self.inside = self._tensors_inside()
        self.matching: dict[int, list[int]] = {}
        for rule, matched in self.resolution.matches.items():
            for index in matched:
                self.matching.setdefault(index, []).append(rule)

    def _tensors_inside(self) -> dict[int, set[str]]:
        """By module, the tensors of it and of all modules inside it."""
        found: dict[int, set[str]] = {index: set(module.tensors) for index, module in enumerate(self.tree.modules)}
        for index in range(len(self.tree.modules) - 1, 0, -1):
            found[self.tree.modules[index].parent] |= found[index]
        return found

    def module(self, name: str) -> Explanation:
        """Explain the module called ``name``."""
        index = self.index_of[name]
        module, decision = self.tree.modules[index], self.resolution.decisions[index]
        own = sorted(self.inside[index]) if module.n_experts else list(module.tensors)
        first = self.placement.tensors[own[0]] if own else None
        tied = name == "lm_head" and not own and self.placement.ties_output
        return Explanation(
            name=name,
            what="module",
            module=name,
            class_path=module.class_path,
            n_experts=module.n_experts,
            tensors=tuple(self.share(self.placement.tensors[tensor]) for tensor in own),
            below=self._by_device(self.inside[index]),
            kv=self._kv(index),
            tied_output=tied,
            device=first.device if first else decision.generate_device,
            why=self.why(first) if first and index in self.resolution.experts else self._why(index, decision, first),
        )

    def tensor(self, name: str) -> Explanation:
        """Explain the tensor called ``name``."""
        placed = self.placement.tensors[name]
        return Explanation(
            name=name,
            what="tensor",
            module=placed.module,
            class_path=None,
            n_experts=0,
            tensors=(self.share(placed),),
            below={placed.device: placed.n_bytes},
            device=placed.device,
            why=self.why(placed),
        )

    def why(self, tensor: TensorPlacement) -> Why:
        """Why a tensor has its device."""
        owner = self._decided_by(tensor)
        if owner is not None:
            return self._why(owner, self.resolution.decisions[owner], tensor)
        index = self._followed(tensor.name)
        if index is None:
            return Why(reason="no-module")
        why = self._why(index, self.resolution.decisions[index], None)
        return dataclasses.replace(why, reason="follows-attention", followed=self.tree.modules[index].name)

    def _decided_by(self, tensor: TensorPlacement) -> int | None:
        """The module whose rule placed a tensor: its owner, or for all experts of a layer their list if taken whole."""
        owners = self.tree.owners.get(tensor.name, ())
        if not owners or tensor.module is None:
            return None
        module = self.index_of[tensor.module]
        return owners[0] if module in self.resolution.experts else module

    def _followed(self, name: str) -> int | None:
        layer = 0 if name in PER_LAYER_TENSORS else layer_of(name)
        return None if layer is None else self.tree.attention.get(layer)

    def _why(self, index: int, decision: Decision, tensor: TensorPlacement | None) -> Why:
        won = decision.rule.index if decision.rule else None
        return Why(
            reason=self._reason(index, decision, tensor),
            rule=won,
            also=tuple(sorted(rule for rule in self.matching.get(index, ()) if rule != won)),
            cut_by=self.tree.modules[decision.cut_by].name if decision.cut_by >= 0 else None,
            said=decision.generate_device,
        )

    def _reason(self, index: int, decision: Decision, tensor: TensorPlacement | None) -> Reason:
        if tensor and tensor.name == TOKEN_EMBEDDING and decision.generate_device != devices.CPU:
            return "embedding"
        if tensor and self._split(index):
            return "most-experts"
        if decision.cut_by >= 0:
            return "cut"
        return rule_reason(decision.rule)

    def _split(self, index: int) -> bool:
        """Whether the rules put the experts that share this module's tensors on several devices."""
        lists = (above for above in (index, *ancestors(self.tree, index)) if self.tree.modules[above].n_experts)
        pieces = self.resolution.experts.get(next(lists, -1), {})
        return any(len(counted) > 1 for counted in pieces.values())

    def share(self, tensor: TensorPlacement) -> TensorShare:
        """A tensor's place, and what llama.cpp does for it."""
        return TensorShare(
            name=tensor.name,
            type=self.types[tensor.name],
            n_bytes=tensor.n_bytes,
            device=tensor.device,
            prefill_device=tensor.prefill_device,
            llama=self.llama(tensor),
        )

    def llama(self, tensor: TensorPlacement) -> Llama:
        """What llama.cpp does for a tensor (``lower.base`` has the rule)."""
        base = self.translation.lowering.base
        to_name = self.translation.options.device_map.llama_name
        layer = layer_of(tensor.name)
        if not tensor.loaded:
            return Llama(means="not-loaded", device=to_name(tensor.device), layer=layer)
        for pattern, override in self.overrides:
            if pattern.search(tensor.name):
                return Llama(means="override", device=override.device, pattern=override.pattern)
        device = to_name(base_device(tensor.name, base))
        if layer is not None:
            return Llama(means="layer", device=device, layer=layer)
        if tensor.name in PER_LAYER_TENSORS:
            return Llama(means="every-layer", device=to_name(tensor.device))
        if tensor.name == TOKEN_EMBEDDING:
            return Llama(means="input", device=device)
        return Llama(means="output-layer", device=device, layer=len(base.layers) - 1)

    def _kv(self, index: int) -> CacheShare | None:
        layer = next((layer for layer, attention in self.tree.attention.items() if attention == index), None)
        return None if layer is None or layer not in self.placement.kv else self.cache(layer)

    def cache(self, layer: int) -> CacheShare:
        """The KV cache of ``layer``."""
        return CacheShare(
            layer=layer,
            device=self.placement.kv[layer],
            llama_device=self.translation.options.device_map.llama_name(self.translation.lowering.base.layers[layer]),
            bytes_per_token=kv_bytes_per_token(self.translation.model, layer, *self.cache_types),
        )

    def cache_rule(self, layer: int) -> int | None:
        """The index of the rule that placed the KV cache of ``layer``."""
        rule = self.resolution.decisions[self.tree.attention[layer]].rule
        return rule.index if rule else None

    def _by_device(self, names: set[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in sorted(names):
            tensor = self.placement.tensors[name]
            found[tensor.device] = found.get(tensor.device, 0) + tensor.n_bytes
        return {device: found[device] for device in sorted(found, key=devices.order)}


def rule_reason(rule: Rule | None) -> Reason:
    """Why a module that ``rule`` won, or that none did, has its device."""
    if rule is None:
        return "default-device"
    if rule.generate_device is not None:
        return "rule"
    return "experts-operator" if own_prefill_default(rule) is not None else "rule-without-device"
