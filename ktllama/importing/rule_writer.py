"""Rules for given wishes: few, readable, in the order in which the first match wins.

Every layer has a home device, where most of its modules go. Modules elsewhere get rules of their own, first the
routed experts (one operator with ``recursive: false``), then everything else; rules for whole layers follow, and the
last rule takes what is left.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ktllama import devices
from ktllama.importing.wishes import ANY_EXPERT, Wishes
from ktllama.layers import layer_ranges
from ktllama.ranges import numbers_pattern

_EXPERTS_OPERATOR = "ktransformers.operators.experts.KTransformersExperts"
_EMBEDDING = "model.embed_tokens"
_ANY_NUMBER = "[0-9]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRule:
    """A rule to be written. ``out_device`` is set for routed experts only, and makes it their operator's."""

    comment: str
    name: str
    device: str
    out_device: str | None = None


def draft_rules(wanted: Wishes) -> tuple[DraftRule, ...]:
    """The rules for ``wanted``."""
    return tuple(_Drafter(wanted).rules())


def to_yaml(rules: Iterable[DraftRule], *, stream_to: str | None, comments: Iterable[str]) -> str:
    """The rule file. ``stream_to`` is the GPU that uses weights on the CPU for large batches, if one does."""
    header = [f"# {line}".rstrip() for line in comments]
    return "\n".join([*header, *("\n".join(_rule_lines(rule, stream_to)) for rule in rules), ""])


def _rule_lines(rule: DraftRule, stream_to: str | None) -> Iterator[str]:
    prefill = stream_to if rule.device == devices.CPU and stream_to else rule.device
    yield ""
    yield f"# {rule.comment}"
    yield "- match:"
    yield f"    name: '{rule.name}'"
    yield "  replace:"
    yield f"    class: {_EXPERTS_OPERATOR if rule.out_device else 'default'}"
    yield "    kwargs:"
    yield f'      generate_device: "{rule.device}"'
    yield f'      prefill_device: "{prefill}"'
    if rule.out_device:
        on_cpu = rule.device == devices.CPU
        yield f'      generate_op: "{"KExpertsCPU" if on_cpu else "KExpertsTorch"}"'
        yield '      prefill_op: "KExpertsTorch"'
        yield f'      out_device: "{rule.out_device}"'
        yield "  recursive: False"


class _Drafter:
    def __init__(self, wanted: Wishes) -> None:
        self.layers = wanted.layers
        self.outside = wanted.outside
        self.experts = wanted.experts
        self.home = {layer: _most_common(kinds.values()) for layer, kinds in self.layers.items() if kinds}
        self.last = _most_common([*self.home.values(), self.outside["lm_head"]])
        self.layers_with: dict[str, set[int]] = defaultdict(set)
        for layer, kinds in self.layers.items():
            for kind in kinds:
                self.layers_with[kind].add(layer)

    def rules(self) -> Iterator[DraftRule]:
        if _EMBEDDING in self.outside and self.outside[_EMBEDDING] != self.last:
            yield DraftRule(
                comment="token embeddings",
                name=r"^model\.embed_tokens$",
                device=self.outside[_EMBEDDING],
            )
        yield from self._experts()
        yield from self._exceptions()
        yield from self._homes()
        yield from self._around()
        yield DraftRule(comment="everything else", name="^(model|lm_head)", device=self.last)

    def _experts(self) -> Iterator[DraftRule]:
        """Routed experts away from home; their results go where the layer's attention is."""
        groups: dict[tuple[str, str, str], set[int]] = defaultdict(set)
        for experts in self.experts:
            for layer in self.layers_with[experts]:
                device = self.layers[layer][experts]
                if device != self.home[layer]:
                    groups[experts, device, self.layers[layer].get("self_attn", self.home[layer])].add(layer)
        for (experts, device, attention), layers in sorted(groups.items(), key=lambda group: min(group[1])):
            yield DraftRule(
                comment=f"routed experts of layer {layer_ranges(layers)}",
                name=f"^model\\.layers\\.{self._numbers(layers, [experts])}\\.{re.escape(experts)}$",
                device=device,
                out_device=attention,
            )

    def _exceptions(self) -> Iterator[DraftRule]:
        """Other modules away from home, grouped by the layers in which they go to the same device."""
        by_kind: dict[tuple[str, str], set[int]] = defaultdict(set)
        for layer, kinds in self.layers.items():
            for kind, device in kinds.items():
                if kind not in self.experts and device != self.home[layer]:
                    by_kind[kind, device].add(layer)
        groups: dict[tuple[str, frozenset[int]], set[str]] = defaultdict(set)
        for (kind, device), layers in by_kind.items():
            groups[device, frozenset(layers)].add(kind)
        for (device, where), what in sorted(groups.items(), key=lambda group: (min(group[0][1]), sorted(group[1]))):
            tails, shown = self._tails(what, where)
            yield DraftRule(
                comment=f"{', '.join(shown)} of layer {layer_ranges(where)}",
                name=f"^model\\.layers\\.{self._numbers(where, what)}\\.{tails}",
                device=device,
            )

    def _homes(self) -> Iterator[DraftRule]:
        by_device: dict[str, set[int]] = defaultdict(set)
        for layer, device in self.home.items():
            by_device[device].add(layer)
        for device, layers in sorted(by_device.items(), key=lambda group: min(group[1])):
            if device != self.last:
                yield DraftRule(
                    comment=f"layer {layer_ranges(layers)}",
                    name=f"^model\\.layers\\.{self._numbers(layers)}\\.",
                    device=device,
                )

    def _around(self) -> Iterator[DraftRule]:
        """The final norm and the output, where they are not with the rest."""
        groups: dict[str, list[str]] = defaultdict(list)
        for name, device in self.outside.items():
            if name != _EMBEDDING and device != self.last:
                groups[device].append(name)
        for device, names in groups.items():
            listed = [re.escape(name) for name in sorted(names)]
            yield DraftRule(
                comment=", ".join(sorted(names)),
                name=f"^{listed[0] if len(listed) == 1 else '(' + '|'.join(listed) + ')'}$",
                device=device,
            )

    def _numbers(self, layers: Iterable[int], kinds: Iterable[str] = ()) -> str:
        """A pattern for ``layers``: any number where no other layer has what the rule is about."""
        chosen = set(layers)
        about = list(kinds)
        others = {layer for kind in about for layer in self._layers_having(kind)} if about else set(self.layers)
        return _ANY_NUMBER if others <= chosen and len(chosen) > 1 else numbers_pattern(chosen)

    def _layers_having(self, kind: str) -> set[int]:
        """Layers with such a module; experts are the same module, in pieces or not."""
        experts = kind.partition(f".{ANY_EXPERT}")[0]
        return self._layers_below(experts) if experts in self.experts else self.layers_with[kind]

    def _tails(self, kinds: set[str], layers: frozenset[int]) -> tuple[str, list[str]]:
        """The ends of module names that mean ``kinds``, whole subtrees by their root, and the same for people."""
        roots: dict[str, bool] = {}  # name → whether all that is below it is meant too
        for kind in sorted(kinds):
            if not any(whole and _is_below(kind, root) for root, whole in roots.items()):
                root = next((root for root in _roots(kind) if self._is_whole(root, kinds, layers)), None)
                roots[kind if root is None else root] = root is not None
        by_parent: dict[tuple[str, bool], list[str]] = defaultdict(list)
        for name, whole in roots.items():
            parent, _, leaf = name.rpartition(".")
            by_parent[parent, whole].append(leaf)
        ends = {True: r"(\.|$)", False: "$"}
        written = [
            f"{_path(parent)}{_either(map(re.escape, leaves))}{ends[whole]}"
            for (parent, whole), leaves in by_parent.items()
        ]
        return _either(written), sorted(roots)

    def _is_whole(self, root: str, kinds: set[str], layers: frozenset[int]) -> bool:
        """Whether everything at and below ``root`` in ``layers`` is in ``kinds`` or has an earlier rule."""
        below = {kind for layer in layers for kind in self.layers[layer] if _is_below(kind, root)}
        if ANY_EXPERT in root or len(below) < 2 or not below <= kinds | self.experts:
            return False
        if self._numbers(layers, kinds) == _ANY_NUMBER and not self._layers_below(root) <= layers:
            return False
        with_experts = {(layer, kind) for kind in below & self.experts for layer in self.layers_with[kind] & layers}
        return all(self.layers[layer][kind] != self.home[layer] for layer, kind in with_experts)

    def _layers_below(self, root: str) -> set[int]:
        return {layer for kind, layers in self.layers_with.items() if _is_below(kind, root) for layer in layers}


def _most_common(devices_of: Iterable[str]) -> str:
    """The most frequent device; of equals the first in order."""
    counted = Counter(devices_of)
    return min(counted, key=lambda device: (-counted[device], devices.order(device)))


def _roots(kind: str) -> list[str]:
    """``mlp.shared_experts.up_proj`` → ``mlp``, ``mlp.shared_experts``, and itself."""
    parts = kind.split(".")
    return [".".join(parts[: index + 1]) for index in range(len(parts))]


def _is_below(kind: str, root: str) -> bool:
    return kind == root or kind.startswith(f"{root}.")


def _path(parent: str) -> str:
    """A parent's path as a pattern, its dot included."""
    return "".join(("[0-9]+" if part == ANY_EXPERT else re.escape(part)) + r"\." for part in parent.split(".") if part)


def _either(options: Iterable[str]) -> str:
    listed = list(options)
    return listed[0] if len(listed) == 1 else f"({'|'.join(listed)})"
