"""The end of a plan: its rule file gives the placement that was tried, and llama.cpp did what its settings say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ktllama import devices
from ktllama.diagnostics import in_order
from ktllama.errors import RulesetError
from ktllama.placing.resolve import DEFAULT_DEVICE
from ktllama.planner import headers
from ktllama.planner.cost import host_read_bytes, n_crossings, token_seconds
from ktllama.planner.errors import PlanError
from ktllama.planner.fill import differences, rules_text
from ktllama.planner.memory import DeviceMemory
from ktllama.planner.notes import notes
from ktllama.planner.parts import ModelParts
from ktllama.planner.plan import Candidate, Plan, Prediction
from ktllama.planner.prefill import prefill_seconds
from ktllama.ruleset import loader
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.verify import compare
from ktllama.translation import Translation, analyse

if TYPE_CHECKING:
    from ktllama.planner.planning import Planner, Proposal


def prove(
    planner: Planner,
    parts: ModelParts,
    context: ContextOptions,
    proposal: Proposal,
    memory: tuple[DeviceMemory, ...],
    candidates: Sequence[Candidate],
) -> Plan:
    """The plan, once its rule file gives the same placement and llama.cpp did what its settings say."""
    opened = planner.opened
    prediction = _prediction(planner, parts, proposal, context.n_ubatch)
    said = headers.comments(opened, planner.machine, context, memory, prediction)
    text = rules_text(proposal.placement, opened.resolution.tree, said)
    translation = _translated(planner, text)
    wrong = differences(proposal.placement, translation.placement)
    if translation.settings != proposal.lowering.settings:
        wrong = (*wrong, "other settings")
    if opened.options.target == "python":
        checked = compare(
            translation.placement,
            translation.settings,
            _resolved(context, proposal),
            proposal.done,
            planner.map,
        )
        wrong = (*wrong, *(str(mismatch) for mismatch in checked.mismatches))
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise PlanError(f"the plan could not be proven ({'; '.join(wrong[:3])}{more}); please report it")
    return Plan(
        rules=text,
        translation=translation,
        machine=planner.machine,
        context=context,
        assignment=proposal.assignment,
        memory=memory,
        prediction=prediction,
        candidates=tuple(candidates),
        stand_ins=tuple(name for name in proposal.done.stand_ins if name in translation.settings.devices),
        flash_attention=proposal.done.log.flash_attention,
        rounds=planner.rounds,
        n_nodes=planner.n_nodes,
        notes=notes(translation, memory, planner.machine, context.n_threads),
    )


def _resolved(context: ContextOptions, proposal: Proposal) -> ContextOptions:
    off = proposal.done.log.flash_attention is False
    return replace(context, flash_attn="off" if off else context.flash_attn)


def _translated(planner: Planner, text: str) -> Translation:
    options = planner.opened.options
    default = DEFAULT_DEVICE if options.default_device == devices.AUTO else options.default_device
    read = loader.loads(text, file="planned rules")
    found = analyse(read, planner.opened.model, options=replace(options, default_device=default))
    if found.has_errors:
        raise RulesetError(in_order(found.diagnostics))
    return replace(found, assumed=planner.opened.assumed)


def _prediction(planner: Planner, parts: ModelParts, proposal: Proposal, ubatch: int) -> Prediction:
    listed = proposal.placement.prefill_devices
    seconds = prefill_seconds(
        parts, proposal.assignment, planner.machine, ubatch, stream_to=listed[0] if listed else None
    )
    return Prediction(
        decode_tokens_per_second=1 / token_seconds(parts, proposal.assignment, planner.machine),
        prefill_tokens_per_second=ubatch / seconds,
        crossings=n_crossings(proposal.assignment),
        host_read_bytes=host_read_bytes(parts, proposal.assignment),
    )
