"""What rules fix by themselves: on which devices, whether that alone fits, and which rules take most."""

from __future__ import annotations

from collections import defaultdict

from ktllama import devices
from ktllama.devices import DeviceMap
from ktllama.planner.assigning import Reserve, fixed_bytes
from ktllama.planner.errors import BudgetError, FixedPartError, RuleCost
from ktllama.planner.machine import Machine
from ktllama.planner.parts import ModelParts
from ktllama.ruleset.rules import Rule
from ktllama.ruleset.wording import shown
from ktllama.runtime.dry_run import DryRun
from ktllama.translation import Translation
from ktllama.units import format_bytes


def check_devices(opened: Translation, machine: Machine) -> None:
    """Refuse rules that name a device without a budget.

    Raises:
        BudgetError: naming the device and what is put there.
    """
    placement = opened.placement
    used = {tensor.device for tensor in placement.tensors.values() if tensor.loaded} | set(placement.layers.values())
    unknown = sorted(used - machine.names - {devices.AUTO}, key=devices.order)
    if not unknown:
        return
    device = unknown[0]
    rules = {rule.index: rule for rule in opened.ruleset.rules}
    by_rule = next(
        (tensor.rule for tensor in placement.tensors.values() if tensor.device == device and tensor.loaded), None
    )
    what = "modules that no rule matches" if by_rule is None else _name(rules[by_rule])
    there = ", ".join(gpu.name for gpu in machine.gpus) or "the host only"
    raise BudgetError(f"the rules put {what} on {device}, for which there is no budget; --vram gives {there}")


def check_budgets(opened: Translation, parts: ModelParts, machine: Machine, reserve: Reserve) -> None:
    """Refuse rules whose fixed part alone is over a budget.

    Raises:
        FixedPartError: for the first such device.
    """
    for device, n_bytes in fixed_bytes(parts).items():
        budget = machine.processor(device).memory_bytes
        needed = n_bytes + reserve.of(device)
        # where nothing but the embedding is fixed on the host, it is no rule that takes too much
        if budget is not None and needed > budget and (device != devices.CPU or _has_fixed_layers(parts)):
            raise FixedPartError(device, needed, budget, rule_costs(opened, parts, device))


def check_present(machine: Machine, device_map: DeviceMap, done: DryRun | None) -> None:
    """Refuse a budget larger than the GPU that is here, if it is here at all.

    Raises:
        BudgetError: naming the device.
    """
    if done is None:
        return
    sizes = {device.name: device.memory_total for device in done.available}
    here = {device.name: sizes.get(device.backend_name, 0) for device in done.bound if not device.stand_in}
    for gpu in machine.gpus:
        size = here.get(device_map.llama_name(gpu.name), 0)
        if gpu.memory_bytes is not None and 0 < size < gpu.memory_bytes:
            raise BudgetError(
                f"--vram {gpu.name}={format_bytes(gpu.memory_bytes)}: {device_map.llama_name(gpu.name)} here has "
                f"{format_bytes(size)}; --vram detected takes what is free"
            )


def rule_costs(opened: Translation, parts: ModelParts, device: str) -> tuple[RuleCost, ...]:
    """What each rule puts on ``device``, KV caches included, the dearest first."""
    placement, tree = opened.placement, opened.resolution.tree
    costs: dict[int | None, int] = defaultdict(int)
    for tensor in placement.tensors.values():
        if tensor.loaded and tensor.device == device:
            costs[tensor.rule] += tensor.n_bytes
    for layer in parts.layers:
        if layer.device == device:
            rule = opened.resolution.decisions[tree.attention[layer.index]].rule
            costs[rule.index if rule else None] += layer.kv_bytes
    rules = {rule.index: rule for rule in opened.ruleset.rules}
    ordered = sorted(costs.items(), key=lambda item: -item[1])
    return tuple(
        RuleCost(rule="no rule (the default device)" if index is None else _name(rules[index]), n_bytes=n_bytes)
        for index, n_bytes in ordered
    )


def wanted_offload(opened: Translation) -> bool | None:
    """What fixed rules say about prefill with host weights: on a GPU, on the host, or None where none says anything."""
    rules = {rule.index: rule for rule in opened.ruleset.rules}
    on_host = [
        tensor
        for tensor in opened.placement.tensors.values()
        if tensor.loaded and tensor.device == devices.CPU and tensor.rule is not None and tensor.module is not None
    ]
    if any(tensor.prefill_device for tensor in on_host):
        return True
    experts = [tensor for tensor in on_host if "_exps" in tensor.name]
    if any(rules[tensor.rule].prefill_device == devices.CPU for tensor in experts if tensor.rule is not None):
        return False
    return None


def _has_fixed_layers(parts: ModelParts) -> bool:
    return any(
        layer.device == devices.CPU or any(part.device == devices.CPU for part in (*layer.matrices, *layer.fixed))
        for layer in parts.layers
    )


def _name(rule: Rule) -> str:
    at = rule.position()
    where = f"rule {rule.index}" if at is None else f"rule {rule.index} (line {at.line})"
    said = rule.name if rule.name else rule.class_path
    return f"{where}, {shown(said, 48)}" if said else where
