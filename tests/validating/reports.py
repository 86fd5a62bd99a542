"""A small report, made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from ktllama.validating.comparison import Comparison, Source
from ktllama.validating.layers import LayerErrors
from ktllama.validating.positions import compare_positions
from ktllama.validating.report import Report

_CALM = np.array([0.01, 0.02, 0.01])
_WRONG = np.array([0.3, 0.4, 0.5])


def report(**changes: Any) -> Report:
    """Three tokens, three layers: a dense one, one with a flipped expert, one that is wrong."""
    marks = np.array([False, True, False])
    chosen = np.array([[1, 2], [1, 2], [1, 2]]), np.array([[1, 2], [1, 7], [1, 2]])
    logits = np.array([[2, 1, 0], [0, 2, 0], [1, 1, 3]], np.float32)
    theirs = np.array([[2, 1, 0], [2, 0, 0], [1, 1, 3]], np.float32)
    layers = (
        LayerErrors(layer=0, relative=_CALM, own=_CALM),
        LayerErrors(layer=1, relative=_CALM * 2, own=_CALM, flipped=marks, own_flipped=marks, chosen=chosen),
        LayerErrors(layer=2, relative=_WRONG, own=_WRONG),
    )
    values: dict[str, Any] = {
        "name": "Tiny <b>model</b>",
        "architecture": "deepseek2",
        "model": "m.gguf",
        "reference": "m.gguf",
        "rules": "r.yaml",
        "tokens": (0, 1, 2),
        "comparison": Comparison(
            weights="Q8_0",
            reference_weights="Q8_0",
            kv_type="f16",
            flash_attention=True,
            dtype="float32",
            exact=(Source(what="sums", relative=0.003), Source(what="rounding", relative=0.004)),
            alike=(Source(what="sums", relative=0.003), Source(what="ties", relative=0.0039)),
            rounded=(False,) * 4,
        ),
        "positions": compare_positions(logits, theirs, (0, 1, 2)),
        "layers": layers,
        "output": np.array([0.001, 0.001]),
        "devices": {0: ("cuda:0",), 1: ("cuda:0", "cpu"), 2: ("cuda:1",)},
        "output_devices": ("cpu",),
        "max_kl": 1e-3,
    }
    return Report(**{**values, **changes})


def calm_report() -> Report:
    """The same without anything wrong."""
    whole = report()
    logits = np.array([[2, 1, 0], [0, 2, 0], [1, 1, 3]], np.float32)
    return report(layers=whole.layers[:1], positions=compare_positions(logits, logits, (0, 1, 2)))
