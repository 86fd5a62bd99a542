"""What can be said about a plan: parts that are far from each other, and wishes that llama.cpp does not know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import cast

from ktllama import devices
from ktllama.diagnostics import Diagnostic, Severity
from ktllama.layers import layer_ranges
from ktllama.model.model_file import TOKEN_EMBEDDING
from ktllama.model.modules import ModuleTree, block_of
from ktllama.placing.ir import Placement, TensorPlacement
from ktllama.placing.resolve import Resolution
from ktllama.ruleset.rules import Rule
from ktllama.units import counted, format_bytes

_NORMS = ("attn_norm", "ffn_norm", "post_attention_norm")
_PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "attn_kv", "attn_qkv")
_EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps")


def check_placement(resolution: Resolution, placement: Placement) -> tuple[Diagnostic, ...]:
    """All findings about ``placement``."""
    return tuple(_Checker(resolution, placement).findings())


class _Checker:
    def __init__(self, resolution: Resolution, placement: Placement) -> None:
        self.resolution = resolution
        self.placement = placement
        self.rules = {rule.index: rule for rule in resolution.ruleset.rules}
        self.tree: ModuleTree = resolution.tree
        self.layers = placement.layers
        self.blocks: dict[int, dict[str, TensorPlacement]] = defaultdict(dict)
        for name, tensor in placement.tensors.items():
            block = block_of(name)
            if block is not None and tensor.loaded:
                self.blocks[block][name.split(".", 2)[2]] = tensor

    def findings(self) -> Iterator[Diagnostic]:
        yield from self._default_device()
        yield from self._embedding()
        yield from self._transfer_map()
        yield from self._out_device()
        yield from self._head()
        yield from self._parts_away_from_attention()
        yield from self._experts_apart()
        yield from self._prefill()

    def _default_device(self) -> Iterator[Diagnostic]:
        """What no rule matched: harmless for a few norms, fatal for all experts."""
        left = [
            tensor
            for tensor in self.placement.tensors.values()
            if tensor.rule is None and tensor.loaded and tensor.module is not None and tensor.device != devices.CPU
        ]
        experts = [tensor for tensor in left if _stem(tensor.name) in _EXPERTS]
        others = [tensor for tensor in left if _stem(tensor.name) not in _EXPERTS]
        stray = self._stray_default()
        for tensors, severity in ((experts, "warning"), (others, "warning" if stray else "note")):
            if tensors:
                yield Diagnostic(
                    code="default-device",
                    severity=cast(Severity, severity),
                    message=f"no rule matches {_kinds(tensors)} ({counted(len(tensors), 'tensor')}, "
                    f"{format_bytes(sum(tensor.n_bytes for tensor in tensors))}); they go to the default device "
                    f"{self.resolution.default_device}"
                    + (
                        f", though the rules name only {stray} devices: --default-device {stray}:0 keeps them together"
                        if stray
                        else ""
                    ),
                )

    def _stray_default(self) -> str | None:
        """The kind of GPU that all rules name where the default device is of another kind."""
        named = {rule.generate_device for rule in self.resolution.ruleset.rules if rule.generate_device}
        kinds = {device.partition(":")[0] for device in named} - {devices.CPU, devices.AUTO}
        default = self.resolution.default_device.partition(":")[0]
        return next(iter(kinds)) if len(kinds) == 1 and default not in kinds | {devices.CPU} else None

    def _embedding(self) -> Iterator[Diagnostic]:
        for index, module in enumerate(self.tree.modules):
            decision = self.resolution.decisions[index]
            on_gpu = decision.rule is not None and decision.generate_device != devices.CPU
            if module.name == "model.embed_tokens" and on_gpu:
                message = (
                    f"embed_tokens stays on the CPU, where llama.cpp and ktransformers both keep it, not on "
                    f"{decision.generate_device}"
                )
                yield _at(decision.rule, "embedding-on-cpu", "note", message, "replace.kwargs.generate_device")

    def _transfer_map(self) -> Iterator[Diagnostic]:
        for decision in {id(found): found for found in self.resolution.decisions}.values():
            rule = decision.rule
            if rule is None or not rule.transfer_map or decision.cut_by >= 0:
                continue
            beyond = sorted(layer for layer in rule.transfer_map if layer not in self.layers)
            if beyond:
                message = (
                    f"transfer_map names layer {layer_ranges(beyond)}, but the model has layers "
                    f"{layer_ranges(self.layers)}"
                )
                yield _at(rule, "transfer-map", "warning", message, "replace.kwargs.transfer_map")
            wrong = {
                layer: expected
                for layer, expected in self._expected_by_transfer_map(rule).items()
                if self.layers.get(layer, expected) != expected
            }
            for device in sorted(set(wrong.values()), key=devices.order):
                layers = [layer for layer, expected in wrong.items() if expected == device]
                found = sorted({self.layers[layer] for layer in layers}, key=devices.order)
                message = (
                    f"transfer_map moves the activations of layer {layer_ranges(layers)} to {device}, but the rules "
                    f"put their attention on {' and '.join(found)}; llama.cpp copies activations by itself and "
                    "follows the weights"
                )
                yield _at(rule, "transfer-map", "warning", message, "replace.kwargs.transfer_map")

    def _expected_by_transfer_map(self, rule: Rule) -> dict[int, str]:
        """The device of each layer from the first mapped one on; a mapping sticks until the next."""
        expected: dict[int, str] = {}
        device: str | None = None
        for layer in sorted(self.layers):
            device = rule.transfer_map.get(layer, device)
            if device is not None:
                expected[layer] = device
        return expected

    def _out_device(self) -> Iterator[Diagnostic]:
        """Experts whose result is sent to another device than the rest of their layer."""
        wrong: dict[tuple[int, str], list[int]] = defaultdict(list)
        rules: dict[int, Rule] = {}
        for index, module in enumerate(self.tree.modules):
            decision = self.resolution.decisions[index]
            layer = _layer_of_module(module.name)
            if not module.n_experts or decision.rule is None or decision.out_device is None:
                continue
            if layer in self.layers and self.layers[layer] != decision.out_device:
                wrong[decision.rule.index, decision.out_device].append(layer)
                rules[decision.rule.index] = decision.rule
        for (rule_index, out_device), layers in wrong.items():
            found = sorted({self.layers[layer] for layer in layers}, key=devices.order)
            message = (
                f"out_device sends the experts' result of layer {layer_ranges(layers)} to {out_device}, but their "
                f"attention is on {' and '.join(found)}; llama.cpp follows the weights"
            )
            yield _at(rules[rule_index], "out-device", "warning", message, "replace.kwargs.out_device")

    def _head(self) -> Iterator[Diagnostic]:
        norm = self.placement.tensors.get("output_norm.weight")
        head = self.placement.output_device
        if norm is not None and head is not None and norm.device != head:
            yield Diagnostic(
                code="head-away-from-norm",
                severity="warning",
                message=f"lm_head is on {head} and the final norm on {norm.device}: every token's last hidden state "
                "crosses between them; put both in one place",
                position=None if norm.rule is None else self._rule(norm.rule).position(),
            )

    def _parts_away_from_attention(self) -> Iterator[Diagnostic]:
        norms: dict[tuple[str, str], set[int]] = defaultdict(set)
        projections: dict[tuple[str, str], set[int]] = defaultdict(set)
        beside: dict[tuple[str, str], set[int]] = defaultdict(set)
        for layer, tensors in self.blocks.items():
            home = self.layers.get(layer)
            for suffix, tensor in tensors.items():
                stem = suffix.rsplit(".", 1)[0]
                if home is None or tensor.device == home:
                    continue
                if stem in _NORMS:
                    norms[home, tensor.device].add(layer)
                elif stem.startswith(_PROJECTIONS):
                    projections[home, tensor.device].add(layer)
                elif home != devices.CPU and tensor.device == devices.CPU and _is_router_or_shared(stem):
                    beside["router" if stem == "ffn_gate_inp" else "shared experts", home].add(layer)
        yield from self._apart("norms-away", "the norms", norms)
        yield from self._apart("attention-away", "attention weights", projections)
        for (what, home), layers in beside.items():
            yield Diagnostic(
                code="gate-on-cpu" if what == "router" else "shared-experts-on-cpu",
                severity="warning",
                message=f"the {what} of layer {layer_ranges(layers)} {'is' if what == 'router' else 'are'} on the CPU "
                f"beside attention on {home}: every token needs {'it' if what == 'router' else 'them'}; put "
                f"{'it' if what == 'router' else 'them'} on {home}",
            )

    def _apart(self, code: str, what: str, found: dict[tuple[str, str], set[int]]) -> Iterator[Diagnostic]:
        for (home, device), layers in found.items():
            yield Diagnostic(
                code=code,
                severity="warning",
                message=f"{what} of layer {layer_ranges(layers)} are on {device}, but self_attn, and with it the KV "
                f"cache, on {home}: every token crosses between them",
            )

    def _experts_apart(self) -> Iterator[Diagnostic]:
        apart: dict[str, list[int]] = defaultdict(list)
        for layer, tensors in self.blocks.items():
            placed = {s.rsplit(".", 1)[0]: t.device for s, t in tensors.items() if s.rsplit(".", 1)[0] in _EXPERTS}
            if len(set(placed.values())) > 1:
                apart[", ".join(f"{stem} on {device}" for stem, device in sorted(placed.items()))].append(layer)
        for where, layers in apart.items():
            yield Diagnostic(
                code="experts-apart",
                severity="warning",
                message=f"the routed experts of layer {layer_ranges(layers)} are on several devices ({where}): their "
                "activations cross between them for every token; keep gate, up and down together",
            )

    def _prefill(self) -> Iterator[Diagnostic]:
        """llama.cpp has one switch for all weights on the CPU, op_offload, and uses weights on a GPU where they are."""
        streaming = [tensor for tensor in self.placement.tensors.values() if tensor.prefill_device is not None]
        staying = [tensor for tensor in self.placement.tensors.values() if self._stays(tensor)]
        if streaming and staying:
            yield Diagnostic(
                code="prefill-mixed",
                severity="warning",
                message=f"prefill_device asks for the GPU for {_kinds(streaming)} and for the CPU for "
                f"{_kinds(staying)}; llama.cpp has one switch for all (op_offload), which is turned on",
            )
        for rule in self.resolution.ruleset.rules:
            if rule.generate_device in (None, devices.CPU, rule.prefill_device) or rule.prefill_device is None:
                continue
            message = (
                f"prefill_device {rule.prefill_device} has no effect: llama.cpp uses weights that are on "
                f"{rule.generate_device} there during prefill too"
            )
            yield _at(rule, "prefill-elsewhere", "note", message, "replace.kwargs.prefill_device")

    def _stays(self, tensor: TensorPlacement) -> bool:
        """Whether a rule wants weights used on the CPU during prefill too."""
        if tensor.device != devices.CPU or tensor.rule is None or not tensor.loaded or tensor.name == TOKEN_EMBEDDING:
            return False
        return tensor.prefill_device is None and self._rule(tensor.rule).prefill_device == devices.CPU

    def _rule(self, index: int) -> Rule:
        return self.rules[index]


def _at(rule: Rule | None, code: str, severity: Severity, message: str, path: str) -> Diagnostic:
    position = rule.position(path) if rule else None
    return Diagnostic(code=code, severity=severity, message=message, position=position)


def _stem(tensor: str) -> str:
    tail = tensor.split(".", 2)[2] if block_of(tensor) is not None else tensor
    return tail.rsplit(".", 1)[0]


def _kinds(tensors: list[TensorPlacement]) -> str:
    """``attn_norm, ffn_norm of layer 3-60``."""
    stems = sorted({_stem(tensor.name) for tensor in tensors})
    shown = ", ".join(stems[:3]) + (" …" if len(stems) > 3 else "")
    if set(stems) <= set(_EXPERTS):
        shown = "the routed experts"
    layers = layer_ranges(block for tensor in tensors if (block := block_of(tensor.name)) is not None)
    return f"{shown} of layer {layers}" if layers else shown


def _is_router_or_shared(stem: str) -> bool:
    return stem == "ffn_gate_inp" or stem.endswith("_shexp")


def _layer_of_module(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if len(parts) > 2 and parts[2].isdigit() else -1
