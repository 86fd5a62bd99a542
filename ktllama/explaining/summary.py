"""Summaries of a plan by kind of module and device, and of what moves between two plans."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ktllama import devices
from ktllama.errors import KtllamaError
from ktllama.explaining.explanation import Explainer
from ktllama.explaining.kinds import kind_of, layer_of
from ktllama.model.kv_cache import kv_bytes_per_token
from ktllama.placing.ir import TensorPlacement
from ktllama.translation import Translation

#: How the KV caches of the layers are called among the kinds of modules.
KV_CACHE = "KV cache"


class DifferentModelsError(KtllamaError):
    """Two plans that cannot be compared."""

    def __init__(self, before: str, after: str) -> None:
        self.before = before
        self.after = after
        super().__init__(before, after)

    def __str__(self) -> str:
        return f"the plans are for different models, {self.before} and {self.after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """All modules of one kind on one device. ``rules`` are the indexes of the rules that put them there.

    ``layers`` is empty outside the layers. ``n_bytes`` of KV caches are bytes a token.
    """

    name: str
    device: str
    layers: tuple[int, ...]
    rules: tuple[int | None, ...]
    n_tensors: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """All modules of one kind that go from one device to another; ``n_bytes`` of KV caches are bytes a token."""

    name: str
    before: str
    after: str
    layers: tuple[int, ...]
    n_tensors: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTotal:
    """What one device holds: bytes of loaded tensors, and bytes of f16 KV cache a token."""

    device: str
    weight_bytes: int
    kv_bytes_per_token: int
    kv_layers: tuple[int, ...]


def summarise(translation: Translation) -> tuple[Kind, ...]:
    """What is where, in the order of the file; the KV caches come last. Tensors that are not loaded count too."""
    explainer = Explainer(translation)
    grouped: dict[tuple[str, str], list[TensorPlacement]] = defaultdict(list)
    for tensor in translation.placement.tensors.values():
        grouped[_kind(tensor), tensor.device].append(tensor)
    caches: dict[str, list[int]] = defaultdict(list)
    for layer, device in sorted(translation.placement.kv.items()):
        caches[device].append(layer)
    return (
        *(
            Kind(
                name=name,
                device=device,
                layers=_layers(tensors),
                rules=_sorted_rules({tensor.rule for tensor in tensors}),
                n_tensors=len(tensors),
                n_bytes=sum(tensor.n_bytes for tensor in tensors),
            )
            for (name, device), tensors in grouped.items()
        ),
        *(
            Kind(
                name=KV_CACHE,
                device=device,
                layers=tuple(layers),
                rules=_sorted_rules({explainer.cache_rule(layer) for layer in layers}),
                n_tensors=0,
                n_bytes=_kv_bytes(translation, layers),
            )
            for device, layers in caches.items()
        ),
    )


def compare(before: Translation, after: Translation) -> tuple[Move, ...]:
    """What ``after`` puts elsewhere than ``before``; the KV caches come last.

    Raises:
        DifferentModelsError: when the two are not for the same tensors.
    """
    if set(before.placement.tensors) != set(after.placement.tensors):
        raise DifferentModelsError(before.model.name, after.model.name)
    grouped: dict[tuple[str, str, str], list[TensorPlacement]] = defaultdict(list)
    for tensor in before.placement.tensors.values():
        moved = after.placement.tensors[tensor.name]
        if moved.device != tensor.device:
            grouped[_kind(tensor), tensor.device, moved.device].append(tensor)
    caches: dict[tuple[str, str], list[int]] = defaultdict(list)
    for layer, device in sorted(before.placement.kv.items()):
        if after.placement.kv[layer] != device:
            caches[device, after.placement.kv[layer]].append(layer)
    return (
        *(
            Move(
                name=name,
                before=source,
                after=target,
                layers=_layers(tensors),
                n_tensors=len(tensors),
                n_bytes=sum(tensor.n_bytes for tensor in tensors),
            )
            for (name, source, target), tensors in grouped.items()
        ),
        *(
            Move(
                name=KV_CACHE,
                before=source,
                after=target,
                layers=tuple(layers),
                n_tensors=0,
                n_bytes=_kv_bytes(before, layers),
            )
            for (source, target), layers in caches.items()
        ),
    )


def totals(translation: Translation) -> tuple[DeviceTotal, ...]:
    """What every device holds, GPUs first."""
    weights: Mapping[str, int] = translation.placement.bytes_by_device()
    layers: dict[str, list[int]] = defaultdict(list)
    for layer, device in sorted(translation.placement.kv.items()):
        layers[device].append(layer)
    return tuple(
        DeviceTotal(
            device=device,
            weight_bytes=weights.get(device, 0),
            kv_bytes_per_token=_kv_bytes(translation, layers[device]),
            kv_layers=tuple(layers[device]),
        )
        for device in sorted({*weights, *layers}, key=devices.order)
    )


def _kind(tensor: TensorPlacement) -> str:
    return kind_of(tensor.module if tensor.module is not None else tensor.name)


def _layers(tensors: list[TensorPlacement]) -> tuple[int, ...]:
    return tuple(sorted({layer for tensor in tensors if (layer := layer_of(tensor.name)) is not None}))


def _sorted_rules(rules: set[int | None]) -> tuple[int | None, ...]:
    return tuple(sorted(rules, key=lambda rule: (rule is None, rule or 0)))


def _kv_bytes(translation: Translation, layers: list[int]) -> int:
    return sum(kv_bytes_per_token(translation.model, layer) for layer in layers)
