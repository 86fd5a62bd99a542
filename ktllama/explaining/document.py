"""Explanations as JSON documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ktllama import document
from ktllama.explaining.explanation import CacheShare, Explanation, Llama
from ktllama.explaining.summary import DeviceTotal, Kind, Move, compare, summarise, totals
from ktllama.ruleset.rules import Ruleset
from ktllama.translation import Translation


def explanations_document(translation: Translation, explanations: Iterable[Explanation]) -> dict[str, object]:
    """Explanations of single modules and tensors."""
    return {
        **_head(translation),
        "explanations": [explanation_document(one) for one in explanations],
        "diagnostics": document.diagnostics_document(translation.diagnostics),
    }


def summary_document(translation: Translation) -> dict[str, object]:
    """The plan by kind of module and device."""
    return {
        **_head(translation),
        "kinds": [kind_document(kind) for kind in summarise(translation)],
        "devices": [total_document(total) for total in totals(translation)],
        "diagnostics": document.diagnostics_document(translation.diagnostics),
    }


def difference_document(before: Translation, after: Translation) -> dict[str, object]:
    """What moves between two plans.

    Raises:
        DifferentModelsError: when they are not for the same tensors.
    """
    return {
        "model": before.model.name,
        "moves": [move_document(move) for move in compare(before, after)],
        **{name: _side(side) for name, side in (("before", before), ("after", after))},
    }


def explanation_document(explanation: Explanation) -> dict[str, object]:
    """One module or tensor. ``bytes_by_device`` counts everything inside a module."""
    why = explanation.why
    return {
        "name": explanation.name,
        "what": explanation.what,
        "module": explanation.module,
        "class": explanation.class_path,
        "device": explanation.device,
        "reason": why.reason,
        "rule": why.rule,
        "also_matching": list(why.also),
        "cut_by": why.cut_by,
        "follows": why.followed,
        "bytes_by_device": dict(explanation.below),
        "tensors": [
            {
                "name": share.name,
                "type": share.type,
                "bytes": share.n_bytes,
                "device": share.device,
                "prefill_device": share.prefill_device,
                "llama": _llama(share.llama),
            }
            for share in explanation.tensors
        ],
        "kv": None if explanation.kv is None else _cache(explanation.kv),
    }


def kind_document(kind: Kind) -> dict[str, object]:
    """All modules of one kind on one device."""
    return dataclasses.asdict(kind)


def move_document(move: Move) -> dict[str, object]:
    """All modules of one kind that move the same way."""
    return dataclasses.asdict(move)


def total_document(total: DeviceTotal) -> dict[str, object]:
    """What one device holds."""
    return dataclasses.asdict(total)


def _head(translation: Translation) -> dict[str, object]:
    return {
        "model": translation.model.name,
        "rules_file": translation.ruleset.file,
        "rules": _rules(translation.ruleset),
    }


def _rules(ruleset: Ruleset) -> list[dict[str, object]]:
    return [
        {
            "index": rule.index,
            "line": at.line if (at := rule.position()) else None,
            "name": rule.name,
            "class": rule.class_path,
            "generate_device": rule.generate_device,
            "recursive": rule.recursive,
        }
        for rule in ruleset.rules
    ]


def _side(translation: Translation) -> dict[str, object]:
    return {
        "rules_file": translation.ruleset.file,
        "devices": [total_document(total) for total in totals(translation)],
        "diagnostics": document.diagnostics_document(translation.diagnostics),
    }


def _llama(llama: Llama) -> dict[str, object]:
    return dataclasses.asdict(llama)


def _cache(cache: CacheShare) -> dict[str, object]:
    return dataclasses.asdict(cache)
