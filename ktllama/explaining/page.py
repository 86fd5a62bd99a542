"""The picture of a plan: one HTML file that needs nothing but a browser."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from ktllama import devices
from ktllama.explaining.explanation import Explainer
from ktllama.explaining.kinds import ROWS, layer_of, row_of
from ktllama.explaining.sentences import llama_text, match_text, replace_text, why_text
from ktllama.explaining.summary import DifferentModelsError, totals
from ktllama.pages import page
from ktllama.placing.ir import TensorPlacement
from ktllama.ruleset.wording import shown
from ktllama.translation import Translation

_SOURCES = page.Sources(
    package="ktllama.explaining",
    styles=("base.css", "tips.css", "layers.css"),
    scripts=("base.js", "layers.js", "rules.js"),
)

#: Columns outside the layers: what comes before the first, and what after the last.
_INPUT, _OUTPUT = "in", "out"

_DEFAULT_CONTEXT = 32768
_SHORTEST_CONTEXT = 1024
_LONGEST_CONTEXT = 1 << 20


def render(translation: Translation, after: Translation | None = None) -> str:
    """The page. With ``after`` it shows two plans for one model and marks what moves between them.

    Raises:
        DifferentModelsError: when the two are not for the same tensors.
    """
    data = document(translation, after)
    return page.document(_SOURCES, f"{shown(translation.model.name)} · ktllama", {}, data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """How many tokens the picture begins with, and in which types their KV cache is."""

    n_tokens: int = _DEFAULT_CONTEXT
    type_k: str = "f16"
    type_v: str = "f16"


def document(
    translation: Translation, after: Translation | None = None, *, cache: Cache | None = None
) -> dict[str, object]:
    """What the page draws."""
    cache = cache or Cache()
    if after is not None and set(translation.placement.tensors) != set(after.placement.tensors):
        raise DifferentModelsError(translation.model.name, after.model.name)
    plans = [_plan(translation, after, cache)]
    if after is not None:
        plans.append(_plan(after, translation, cache))
    model, tree = translation.model, translation.resolution.tree
    longest = min(max(model.integer("context_length"), _DEFAULT_CONTEXT), _LONGEST_CONTEXT)
    return {
        "model": {
            "name": shown(model.name),
            "architecture": model.architecture,
            "n_layers": model.n_layers,
            "n_trunk_layers": tree.n_trunk_layers,
            "n_tensors": len(model.tensors),
            "n_bytes": model.n_bytes,
            "assumed": translation.assumed,
        },
        "context": {"shortest": _SHORTEST_CONTEXT, "longest": longest, "shown": cache.n_tokens},
        "rows": [{"key": row.key, "label": row.label} for row in ROWS],
        "columns": [_INPUT, *(str(layer) for layer in range(model.n_layers)), _OUTPUT],
        "devices": sorted({device for plan in plans for device in _devices_of(plan)}, key=devices.order),
        "plans": plans,
    }


def _devices_of(plan: dict[str, object]) -> list[str]:
    listed = plan["devices"]
    assert isinstance(listed, list)
    return [device["name"] for device in listed]


def _plan(translation: Translation, other: Translation | None, cache: Cache) -> dict[str, object]:
    explainer = Explainer(translation, cache.type_k, cache.type_v)
    return {
        "rules_file": shown(translation.ruleset.file),
        "rules": _rules(translation),
        "devices": _totals(translation),
        "parts": _parts(explainer, other),
        "kv": _kv(explainer, other),
        "settings": _settings(translation),
        "has_errors": translation.has_errors,
    }


def _rules(translation: Translation) -> list[dict[str, object]]:
    return [
        {
            "index": rule.index,
            "line": at.line if (at := rule.position()) else None,
            "match": match_text(rule),
            "replace": replace_text(rule),
            "device": rule.generate_device,
        }
        for rule in translation.ruleset.rules
    ]


def _totals(translation: Translation) -> list[dict[str, object]]:
    options = translation.options
    return [
        {
            "name": total.device,
            "llama": options.device_map.llama_name(total.device),
            "weight_bytes": total.weight_bytes,
            "kv_bytes_per_token": total.kv_bytes_per_token,
            "budget_bytes": options.budgets.get(total.device),
        }
        for total in totals(translation)
    ]


def _parts(explainer: Explainer, other: Translation | None) -> list[dict[str, object]]:
    """The tensors by row, column, device, rule, and, where there is another plan, the device there if it differs."""
    grouped: dict[tuple[str, str, str, int | None, str | None], list[TensorPlacement]] = defaultdict(list)
    for tensor in explainer.placement.tensors.values():
        elsewhere = other.placement.tensors[tensor.name].device if other else tensor.device
        moved = elsewhere if elsewhere != tensor.device else None
        row = row_of(tensor.module)
        grouped[row, _column(tensor.name, row), tensor.device, tensor.rule, moved].append(tensor)
    default = explainer.resolution.default_device
    return [
        {
            "row": row,
            "column": column,
            "device": device,
            "rule": rule,
            "other": moved,
            "loaded": tensors[0].loaded,
            "prefill": next((tensor.prefill_device for tensor in tensors if tensor.prefill_device), None),
            "why": shown(why_text(explainer.why(tensors[0]), default)),
            "llama": list(dict.fromkeys(shown(llama_text(explainer.llama(tensor))) for tensor in tensors)),
            "tensors": [
                {
                    "name": shown(tensor.name),
                    "module": tensor.module,
                    "type": explainer.types[tensor.name],
                    "bytes": tensor.n_bytes,
                }
                for tensor in tensors
            ],
        }
        for (row, column, device, rule, moved), tensors in grouped.items()
    ]


def _column(name: str, row: str) -> str:
    layer = layer_of(name)
    if layer is not None:
        return str(layer)
    return _INPUT if row == "embedding" else _OUTPUT


def _kv(explainer: Explainer, other: Translation | None) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for layer in sorted(explainer.placement.kv):
        cache = explainer.cache(layer)
        elsewhere = other.placement.kv[layer] if other else cache.device
        found.append(
            {
                "column": str(layer),
                "device": cache.device,
                "rule": explainer.cache_rule(layer),
                "other": elsewhere if elsewhere != cache.device else None,
                "module": explainer.tree.modules[explainer.tree.attention[layer]].name,
                "llama": cache.llama_device,
                "bytes_per_token": cache.bytes_per_token,
            }
        )
    return found


def _settings(translation: Translation) -> dict[str, object]:
    settings = translation.settings
    return {
        "n_gpu_layers": settings.n_gpu_layers,
        "devices": list(settings.devices),
        "tensor_split": list(settings.tensor_split),
        "op_offload": settings.op_offload,
        "overrides": [
            {"pattern": override.pattern, "device": override.device} for override in settings.tensor_overrides
        ],
    }
