"""Place: from what was decided for modules to where every tensor and every layer's KV cache goes."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping

from ktllama import devices
from ktllama.diagnostics import Diagnostic, in_order, worst
from ktllama.layers import layer_ranges
from ktllama.model.model_file import TOKEN_EMBEDDING
from ktllama.model.modules import ModuleTree, ancestors, block_of
from ktllama.placing.ir import Placement, TensorPlacement
from ktllama.placing.plan_checks import check_placement
from ktllama.placing.resolve import Decision, Resolution, own_prefill_default
from ktllama.placing.rule_checks import check_rules
from ktllama.ruleset.rules import Rule

#: Tensors outside the blocks that llama.cpp creates once a layer, on that layer's device (src/llama-arch.cpp).
PER_LAYER_TENSORS = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})


def place(resolution: Resolution) -> Placement:
    """The placement that ``resolution`` asks for, with all diagnostics of the rule set, the match and the plan."""
    placer = _Placer(resolution)
    placement = placer.placement()
    read = resolution.ruleset.diagnostics
    found = (
        *resolution.diagnostics,
        *check_rules(resolution),
        *placer.diagnostics(),
        *check_placement(resolution, placement),
    )
    if worst(read) == "error":  # rules are missing, so only what is wrong without them is worth saying
        found = tuple(one for one in found if one.severity == "error")
    return dataclasses.replace(placement, diagnostics=in_order((*read, *found)))


class _Placer:
    def __init__(self, resolution: Resolution) -> None:
        self.resolution = resolution
        self.tree: ModuleTree = resolution.tree
        self.mixed_experts: dict[str, Counter[str]] = {}
        self.n_bytes: Mapping[str, int] = {tensor.name: tensor.n_bytes for tensor in self.tree.model.tensors}

    def placement(self) -> Placement:
        tensors = {tensor.name: self.place_tensor(tensor.name) for tensor in self.tree.model.tensors}
        streaming = {tensor.prefill_device for tensor in tensors.values() if tensor.prefill_device is not None}
        layers = {
            layer: self.resolution.decisions[index].generate_device
            for layer, index in self.tree.attention.items()
            if layer < self.tree.n_trunk_layers
        }
        return Placement(
            model=self.tree.model,
            tensors=tensors,
            kv={layer: device for layer, device in layers.items() if layer not in self.tree.recurrent},
            recurrent={layer: device for layer, device in layers.items() if layer in self.tree.recurrent},
            stream_experts=bool(streaming),
            output_device=self._head().generate_device,
            prefill_devices=tuple(sorted(streaming, key=devices.order)),
        )

    def _head(self) -> Decision:
        index = next(i for i, module in enumerate(self.tree.modules) if module.name == "lm_head")
        return self.resolution.decisions[index]

    def place_tensor(self, name: str) -> TensorPlacement:
        owners = self.tree.owners.get(name, ())
        if not owners:
            return self._unowned(name)
        owner = owners[0]
        experts = next((above for above in ancestors(self.tree, owner) if self.tree.modules[above].n_experts), None)
        if experts is not None:
            return self._experts(name, owner, experts)
        decision = self.resolution.decisions[owner]
        device = devices.CPU if name == TOKEN_EMBEDDING else decision.generate_device
        return self._placed(name, device, self.tree.modules[owner].name, decision)

    def _experts(self, name: str, owner: int, experts: int) -> TensorPlacement:
        """A tensor that holds one matrix of all experts of a layer."""
        module = self.tree.modules[experts].name
        pieces = self.resolution.experts.get(experts)
        if pieces is None:
            decision = self.resolution.decisions[experts]
            return self._placed(name, decision.generate_device, module, decision)
        counted: Counter[str] = Counter()
        for index in self.tree.owners[name]:
            counted += pieces[self._part(index, experts)]
        decision = self.resolution.decisions[owner]
        device = max(counted, key=lambda device: (counted[device], device == decision.generate_device))
        if len(counted) > 1:
            self.mixed_experts[name] = counted
        return self._placed(name, device, module, decision)

    def _part(self, index: int, experts: int) -> str:
        """The name of a module below expert 0: ``gate_proj``."""
        return self.tree.modules[index].name.removeprefix(f"{self.tree.modules[experts].name}.0.")

    def _unowned(self, name: str) -> TensorPlacement:
        block = block_of(name)
        layer = 0 if name in PER_LAYER_TENSORS else block
        index = self.tree.attention.get(layer) if layer is not None else None
        device = self.resolution.default_device if index is None else self.resolution.decisions[index].generate_device
        return self._placed(name, device, None, None)

    def _placed(self, name: str, device: str, module: str | None, decision: Decision | None) -> TensorPlacement:
        block = block_of(name)
        rule = decision.rule if decision else None
        loaded = block is None or block < self.tree.n_trunk_layers
        streams = loaded and device == devices.CPU and name != TOKEN_EMBEDDING
        return TensorPlacement(
            name=name,
            device=device,
            module=module,
            rule=rule.index if rule else None,
            n_bytes=self.n_bytes[name],
            loaded=loaded,
            prefill_device=_prefill_gpu(rule) if streams and rule else None,
        )

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Findings about tensors: those that no module owns, and experts that cannot be split."""
        return (*self._unknown_architecture(), *self._split_experts(), *self._tensors_without_module(), *self._mtp())

    def _unknown_architecture(self) -> tuple[Diagnostic, ...]:
        if not self.tree.generic:
            return ()
        return (
            Diagnostic(
                code="architecture-unknown",
                severity="note",
                message=f"ktllama has no description of architecture '{self.tree.model.architecture}': its modules' "
                "names are those that most models have, and their classes are not known, so rules with match.class "
                "match nothing",
            ),
        )

    def _split_experts(self) -> tuple[Diagnostic, ...]:
        """Experts of one layer on several devices, grouped over layers that are split alike."""
        groups: dict[tuple[str, str], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        for name, counted in self.mixed_experts.items():
            shares = ", ".join(f"{count} on {device}" for device, count in counted.most_common())
            _, layer, suffix = name.split(".", 2)
            groups[shares, self.place_tensor(name).device][suffix].add(int(layer))
        return tuple(
            Diagnostic(
                code="experts-split",
                severity="warning",
                message=f"a GGUF holds all experts of a layer in one tensor, but the rules spread those of layer "
                f"{layer_ranges(set().union(*tensors.values()))} over several devices ({shares} in "
                f"{', '.join(tensors)}); all of each goes to {device}",
            )
            for (shares, device), tensors in groups.items()
        )

    def _tensors_without_module(self) -> tuple[Diagnostic, ...]:
        names = [name for name in self.tree.unowned if name not in PER_LAYER_TENSORS]
        if not names:
            return ()
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return (
            Diagnostic(
                code="tensor-without-module",
                severity="warning",
                message=f"{len(names)} tensors of the file belong to no module that ktllama knows ({shown}); those in "
                f"a block follow its attention, the others go to {self.resolution.default_device}",
            ),
        )

    def _mtp(self) -> tuple[Diagnostic, ...]:
        blocks = [layer for layer in self.tree.layers if layer >= self.tree.n_trunk_layers]
        if not blocks:
            return ()
        return (
            Diagnostic(
                code="mtp-not-loaded",
                severity="note",
                message=f"layer {layer_ranges(blocks)} is a multi-token-prediction block, which the Hugging Face model "
                "does not build; its modules were named like a layer's, and llama.cpp leaves its tensors on disk",
            ),
        )


def _prefill_gpu(rule: Rule) -> str | None:
    """The GPU on which what ``rule`` keeps on the CPU is to be used during prefill, if any."""
    prefill = rule.prefill_device or own_prefill_default(rule)
    return None if prefill in (devices.CPU, devices.AUTO) else prefill
