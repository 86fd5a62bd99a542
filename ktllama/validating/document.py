"""The JSON document of a validation, described by ``docs/validation.schema.json``."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ktllama.validating.layers import LayerErrors, first_flip
from ktllama.validating.report import Report


def report_document(report: Report) -> dict[str, object]:
    """Everything that was found. What is infinite or not a number is None, as JSON has no word for it."""
    return {
        "ok": report.ok,
        "carried": report.carried,
        "model": {"name": report.name, "architecture": report.architecture, "path": report.model},
        "reference": {"path": report.reference, "dtype": report.comparison.dtype},
        "rules": report.rules,
        "n_tokens": len(report.tokens),
        "comparison": _comparison(report),
        "total": _total(report),
        "flips": _flips(report),
        "suspect": _suspect(report),
        "layers": [_layer(report, found) for found in report.layers],
        "output": {"devices": list(report.output_devices), **_output(report)},
        "positions": _positions(report),
    }


def _comparison(report: Report) -> dict[str, object]:
    compared = report.comparison
    return {
        "weights": compared.weights,
        "reference_weights": compared.reference_weights,
        "kv_type": compared.kv_type,
        "flash_attention": compared.flash_attention,
        "activations": report.activations,
        "max_kl": report.max_kl,
        "sources": [{"what": source.what, "relative": source.relative} for source in compared.sources],
    }


def _total(report: Report) -> dict[str, object]:
    found = report.positions
    reference, llama = found.perplexities() or (None, None)
    return {
        "kl": _finite(report.mean_kl),
        "max_kl": _finite(float(found.kl.max())),
        "mean_abs": _finite(float(found.mean_abs.mean())),
        "max_abs": _finite(float(found.max_abs.max())),
        "top1": float(found.top1.mean()),
        "top5": float(found.top5.mean()),
        "reference_perplexity": _finite(reference),
        "perplexity": _finite(llama),
    }


def _flips(report: Report) -> dict[str, object]:
    first = report.first_flip
    return {
        "choices": report.n_choices,
        "flipped": report.n_flips,
        "positions": report.n_flipped_positions,
        "first": None
        if first is None
        else {
            "layer": first.layer,
            "position": first.position,
            "reference": list(first.gone),
            "llama_cpp": list(first.came),
        },
    }


def _suspect(report: Report) -> dict[str, object] | None:
    found = report.suspect
    if found is None:
        return None
    return {
        "layer": found.layer,
        "devices": list(report.devices_of(found)),
        "error": _finite(found.error),
        "share": found.share,
        "certain": found.certain,
    }


def _layer(report: Report, found: LayerErrors) -> dict[str, object]:
    return {
        "layer": found.layer,
        "devices": list(report.devices[found.layer]),
        **_errors(found.relative.tolist()),
        "own": _finite(found.median_own),
        "expected": report.comparison.expected(found.layer),
        "flipped": None if found.flipped is None else found.n_flipped,
        "own_flipped": None if found.own_flipped is None else int(found.own_flipped.sum()),
    }


def _output(report: Report) -> dict[str, object]:
    return {
        **_errors(report.positions.relative.tolist()),
        "own": _finite(float(np.median(report.output))),
        "expected": report.comparison.expected(None),
    }


def _errors(relative: list[float]) -> dict[str, object]:
    """The typical and the worst relative error, and where the latter is."""
    ordered = sorted(relative)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return {
        "median": _finite(median),
        "worst": _finite(ordered[-1]),
        "worst_position": relative.index(ordered[-1]),
    }


def _positions(report: Report) -> dict[str, object]:
    """A list for each figure, one value a position; the last token has no next one."""
    found = report.positions
    flipped = (first_flip(report.layers, position) for position in range(found.n_positions))
    return {
        "tokens": list(report.tokens),
        "kl": _all_finite(found.kl),
        "max_abs": _all_finite(found.max_abs),
        "mean_abs": _all_finite(found.mean_abs),
        "top1": found.top1.tolist(),
        "top5": found.top5.tolist(),
        "reference_nll": _all_finite(found.reference_nll),
        "nll": _all_finite(found.llama_nll),
        "flipped_layer": [None if flip is None else flip.layer for flip in flipped],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _all_finite(values: Iterable[float]) -> list[float | None]:
    return [_finite(float(value)) for value in values]
