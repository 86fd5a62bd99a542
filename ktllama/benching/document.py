"""A comparison as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ktllama.benching.comparison import Measured, Speeds, Workload
from ktllama.benching.intervals import Interval
from ktllama.document import settings_document

#: What is said wherever a stand-in took part.
STAND_INS_NOTE = "the CPU stood in for devices that this machine lacks, so these speeds mean nothing"


def comparison_document(model_path: str, workload: Workload, measured: Sequence[Measured]) -> dict[str, object]:
    """Speeds are tokens a second, sizes bytes, times seconds."""
    stand_ins = sorted({name for one in measured for name in one.loaded.stand_ins})
    return {
        "model": model_path,
        "workload": asdict(workload),
        "interval": "between order statistics of the repetitions; holds the median with the probability 'confidence'",
        "stand_ins": stand_ins,
        "notes": [f"{', '.join(stand_ins)}: {STAND_INS_NOTE}"] if stand_ins else [],
        "placements": [_placement(one) for one in measured],
    }


def _placement(one: Measured) -> dict[str, object]:
    return {
        "name": one.contender.name,
        "settings": settings_document(one.contender.settings),
        "context": asdict(one.contender.context),
        "load": asdict(one.loaded),
        "speeds": [_speeds(speeds) for speeds in one.speeds],
        "samples": [asdict(timed) for samples in one.samples.values() for timed in samples],
    }


def _speeds(speeds: Speeds) -> dict[str, object]:
    return {
        "depth": speeds.depth,
        "prefill": _interval(speeds.prefill),
        "decode": _interval(speeds.decode),
        "prefill_ratio": _interval(speeds.prefill_ratio),
        "decode_ratio": _interval(speeds.decode_ratio),
    }


def _interval(interval: Interval | None) -> dict[str, object] | None:
    return None if interval is None else asdict(interval)
