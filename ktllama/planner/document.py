"""A plan as JSON."""

from __future__ import annotations

from dataclasses import asdict

from ktllama.document import diagnostics_document, settings_document
from ktllama.planner.memory import DeviceMemory
from ktllama.planner.plan import Plan


def plan_document(plan: Plan) -> dict[str, object]:
    """Sizes are in bytes, speeds in tokens a second; ``prediction`` is of the model of cost, nothing was measured."""
    model = plan.translation.model
    return {
        "model": {"name": model.name, "architecture": model.architecture, "n_bytes": model.n_bytes},
        "context": asdict(plan.context),
        "flash_attention": plan.flash_attention,
        "settings": settings_document(plan.translation.settings),
        "memory": [_memory(one) for one in plan.memory],
        "prediction": asdict(plan.prediction),
        "candidates": [{**asdict(one), "compute_bytes": dict(one.compute_bytes)} for one in plan.candidates],
        "speeds": "measured" if plan.machine.measured else "assumed",
        "bandwidth": {one.name: one.bandwidth for one in plan.machine.processors},
        "link_bandwidth": plan.machine.link_bandwidth,
        "stand_ins": list(plan.stand_ins),
        "rounds": plan.rounds,
        "notes": list(plan.notes),
        "diagnostics": diagnostics_document(plan.translation.diagnostics),
        "rules": plan.rules,
    }


def _memory(one: DeviceMemory) -> dict[str, object]:
    return {
        "device": one.device,
        "budget": one.budget,
        "margin": one.margin,
        "weights": dict(one.weights),
        "kv": one.kv,
        "compute": one.compute,
        "streaming": one.streaming,
        "used": one.used,
        "free": one.free,
    }
