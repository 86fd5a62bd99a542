"""Plans: optimised by arithmetic, proven by llama.cpp's dry run, corrected until every device fits with the margin."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ktllama import devices
from ktllama.errors import LlamaCppError
from ktllama.lower.lowering import Lowering, lower
from ktllama.lower.settings import LlamaSettings
from ktllama.model.model_file import ModelFile
from ktllama.placing.ir import Placement
from ktllama.planner import fixed_part, sessions
from ktllama.planner.assigning import Reserve, assign, bound_seconds, raised, relaxed_seconds
from ktllama.planner.buffers import Buffers, by_ubatch
from ktllama.planner.choosing import DECODE_TOLERANCE, choose
from ktllama.planner.cost import Assignment, memory_bytes, token_seconds
from ktllama.planner.errors import PlanError
from ktllama.planner.fill import fill, first_gpu
from ktllama.planner.machine import Machine
from ktllama.planner.memory import DeviceMemory, handover_bytes, padding_bytes, streamed_bytes, weight_bytes
from ktllama.planner.opening import open_rules, sparse_file, user_named
from ktllama.planner.parts import ModelParts, cut, with_nodes
from ktllama.planner.plain_overrides import plain
from ktllama.planner.plan import Candidate, Plan
from ktllama.planner.prefill import prefill_seconds
from ktllama.planner.proof import prove
from ktllama.planner.wishes import ContextWishes, settled
from ktllama.ruleset.rules import Ruleset
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.dry_run import DryRun
from ktllama.runtime.dry_run_session import DryRunSession
from ktllama.translation import Options, Translation

_MAX_ROUNDS = 8

#: Gives a machine and wishes with what was measured for a model (:mod:`ktllama.measuring.planned`).
Measured = Callable[[ModelFile, Machine, ContextWishes], tuple[Machine, ContextWishes]]


def plan(
    rules: str | os.PathLike[str] | Ruleset | None = None,
    model: str | os.PathLike[str] | ModelFile | None = None,
    *,
    machine: Machine,
    wishes: ContextWishes | None = None,
    preset: str | None = None,
    config: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    session: DryRunSession | None = None,
    measured: Measured | None = None,
) -> Plan:
    """The fastest plan for a model on ``machine`` that leaves what ``rules`` fix where it is (None: nothing is fixed).

    ``session`` is one that was started early (:mod:`ktllama.planner.sessions`); it is closed.

    Raises:
        PlanError: when nothing fits; it says what would.
        BudgetError: for a device without a budget, and a context that the model cannot have.
        RulesetError: when the rules have other errors than ``auto``.
        LlamaCppError: when llama.cpp is missing, refuses the model or dies.
        ModelFileError, RuleFileError, UnsupportedModelError, UnknownPresetError: when an input cannot be used.
    """
    options = options or Options()
    with (
        session or sessions.start(machine, options.device_map) as running,
        planner(
            rules, model, running, machine=machine, wishes=wishes, preset=preset, config=config, options=options,
            measured=measured,
        ) as ready,
    ):  # fmt: skip
        return ready.plan()


@contextmanager
def planner(
    rules: str | os.PathLike[str] | Ruleset | None,
    model: str | os.PathLike[str] | ModelFile | None,
    session: DryRunSession,
    *,
    machine: Machine,
    wishes: ContextWishes | None = None,
    preset: str | None = None,
    config: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    measured: Measured | None = None,
) -> Iterator[Planner]:
    """What :func:`plan` plans with, for callers that make several plans; raises what it does.

    ``session`` knows all devices that any of the plans is for, and stays open. ``measured`` puts measured speeds in
    place of assumed ones, once it is known for which model.
    """
    opened = open_rules(rules, model, preset, config, options or Options(), machine)
    wanted = settled(wishes or ContextWishes(), opened.model)
    if measured is not None:
        machine, wanted = measured(opened.model, machine, wanted)
    with sparse_file(opened.model) as path:
        yield Planner(opened, machine, wanted, session, path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """An assignment, what it is in llama.cpp's settings, and what llama.cpp said about it."""

    assignment: Assignment
    placement: Placement
    lowering: Lowering
    done: DryRun
    n_ubatch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weighed:
    candidate: Candidate
    reserve: Reserve


class Planner:
    """One model on one machine.

    ``session`` and ``path`` are for dry runs; with ``suggests`` a refusal says what would fit. A machine that is
    ``elsewhere`` may have larger GPUs than those of the same name that are here.
    """

    def __init__(
        self,
        opened: Translation,
        machine: Machine,
        wishes: ContextWishes,
        session: DryRunSession,
        path: Path,
        *,
        suggests: bool = True,
        elsewhere: bool = False,
    ) -> None:
        self.opened = opened
        self.machine = machine
        self.wishes = wishes
        self.session = session
        self.path = path
        self.suggests = suggests
        self.elsewhere = elsewhere
        self.map = opened.options.device_map
        self.rule_names = {self.map.llama_name(one.name): one.name for one in machine.processors}
        self.padding = padding_bytes(opened.placement)
        # the largest GPU streams; it must be the first in llama.cpp's list of devices, so its layers come first
        gpus = sorted(machine.gpus, key=lambda gpu: -(gpu.memory_bytes or 0))
        self.stream_gpu = gpus[0].name if gpus else None
        self.rounds = 0
        self.n_nodes = 0  # of the graph that decodes a token, once llama.cpp has said it

    def plan(self) -> Plan:
        """The plan.

        Raises:
            PlanError: when nothing fits.
        """
        parts = cut(self.opened.placement, self.wishes.context(self.wishes.ubatches[0]), self.opened.resolution.tree)
        weighed = self._weigh(parts)
        parts = with_nodes(parts, self.n_nodes)
        chosen, assignment = self._choose(parts, weighed)
        context = self.wishes.context(chosen.candidate.ubatch)
        proposal, memory = self._fit(parts, context, chosen, assignment)
        return prove(self, parts, context, proposal, memory, [one.candidate for one in weighed])

    def trial(
        self, *, machine: Machine | None = None, wishes: ContextWishes | None = None, elsewhere: bool = False
    ) -> Planner:
        """A planner of the same model with another machine or other wishes, whose refusals propose nothing."""
        return Planner(
            self.opened,
            machine or self.machine,
            wishes or self.wishes,
            self.session,
            self.path,
            suggests=False,
            elsewhere=elsewhere,
        )

    # --- The choice of ubatch and op_offload

    def _weigh(self, parts: ModelParts) -> list[_Weighed]:
        """Every candidate with what is predicted of it, and its reserve; buffers are those of a first guess."""
        guess = self._reserve({})
        fixed_part.check_budgets(self.opened, parts, self.machine, guess)
        first = assign(parts, self.machine, guess)
        if first is None:
            raise self._refusal(parts)
        placement, lowering = self._lowered(parts, first, streams=False)
        buffers = self._buffers(self._plain(lowering))
        found = []
        filled = [self._filled(parts, first, streams=streams) for streams in self._offload_choices(placement)]
        for size, compute in buffers.items():
            for streamed in filled:
                reserve = self._reserve(compute, streamed_bytes(streamed) if streamed.prefill_devices else 0)
                candidate = self._candidate(parts, first, size, streamed, compute, reserve)
                found.append(_Weighed(candidate=candidate, reserve=reserve))
        return found

    def _buffers(self, settings: LlamaSettings) -> dict[int, Buffers]:
        """llama.cpp's compute buffers by ubatch and device, measured or nearly so.

        Raises:
            LlamaCppError: when it refuses every context.
        """
        return by_ubatch(self.wishes.ubatches, lambda sizes: self._tried(settings, sizes))

    def _tried(self, settings: LlamaSettings, sizes: Sequence[int]) -> dict[int, Buffers]:
        """The compute buffers of each of these ubatches that llama.cpp does not refuse.

        Raises:
            LlamaCppError: when it refuses all.
        """
        with user_named(self.opened.model, self.path):
            made = self.session.run_contexts(self.path, settings, [self.wishes.context(size) for size in sizes])
        self.rounds += 1
        found: dict[int, Buffers] = {
            size: self._compute(done, size) for size, done in zip(sizes, made, strict=True) if isinstance(done, DryRun)
        }
        refused = [done for done in made if isinstance(done, LlamaCppError)]
        if not found:
            raise refused[-1]
        done = next(done for done in made if isinstance(done, DryRun))
        if done.log.graph_nodes is not None:
            self.n_nodes = done.log.graph_nodes[1]
        if not self.elsewhere:
            fixed_part.check_present(self.machine, self.map, done)
        return found

    def _choose(self, parts: ModelParts, weighed: Sequence[_Weighed]) -> tuple[_Weighed, Assignment]:
        """The candidate that :func:`choose` likes best and whose own assignment is as fast at decode as it must be.

        Raises:
            PlanError: when not even the smallest buffers leave room for the model.
        """
        left = list(weighed)
        fastest = max(left, key=lambda one: one.candidate.decode_tokens_per_second)
        fixed_part.check_budgets(self.opened, parts, self.machine, fastest.reserve)
        best: Assignment | None = None
        limit = bound_seconds(parts, self.machine, fastest.reserve) / (1 - DECODE_TOLERANCE)
        while True:
            liked = choose([one.candidate for one in left])
            chosen = next(one for one in left if one.candidate is liked)
            found = self._assigned(parts, chosen.reserve, liked)
            if found is not None and token_seconds(parts, found, self.machine) <= limit:
                return chosen, found
            if best is None:  # the bound says too little: the fastest itself must
                best = found if chosen is fastest else self._assigned(parts, fastest.reserve, fastest.candidate)
                if best is None:
                    raise self._refusal(parts)
                limit = token_seconds(parts, best, self.machine) / (1 - DECODE_TOLERANCE)
                if found is not None and token_seconds(parts, found, self.machine) <= limit:
                    return chosen, found
            left.remove(chosen)

    def _offload_choices(self, placement: Placement) -> tuple[bool, ...]:
        """Whether prefill may use host weights on a GPU: as asked, as the rules say, or both ways."""
        if not self.machine.gpus or first_gpu(placement, self.machine.names - {devices.CPU}) is None:
            return (False,)
        if self.wishes.op_offload is not None:
            return (self.wishes.op_offload,)
        said = fixed_part.wanted_offload(self.opened)
        return (False, True) if said is None else (said,)

    def _candidate(
        self,
        parts: ModelParts,
        assignment: Assignment,
        ubatch: int,
        placement: Placement,
        compute: Buffers,
        reserve: Reserve,
    ) -> Candidate:
        stream_to = placement.prefill_devices[0] if placement.prefill_devices else None
        seconds = prefill_seconds(parts, assignment, self.machine, ubatch, stream_to=stream_to)
        return Candidate(
            ubatch=ubatch,
            op_offload=stream_to is not None,
            decode_tokens_per_second=1 / relaxed_seconds(parts, self.machine, reserve),
            prefill_tokens_per_second=ubatch / seconds,
            compute_bytes=compute,
        )

    # --- The loop: optimise, lower, let llama.cpp place it, raise the reserves

    def _fit(
        self, parts: ModelParts, context: ContextOptions, chosen: _Weighed, first: Assignment
    ) -> tuple[Proposal, tuple[DeviceMemory, ...]]:
        """A proposal that llama.cpp's dry run says fits.

        Raises:
            PlanError: when none does.
        """
        assignment: Assignment | None = first
        reserve = chosen.reserve
        for _ in range(_MAX_ROUNDS):
            if assignment is None:
                break
            proposal = self._propose(parts, assignment, context, streams=chosen.candidate.op_offload)
            memory = self._memory(parts, proposal)
            over = {one.device: -one.free for one in memory if one.free is not None and not one.fits}
            if not over:
                return proposal, memory
            said = self._reserve(self._compute(proposal.done, context.n_ubatch))
            reserve = raised(reserve, said, memory_bytes(parts, assignment), over, self.machine)
            fixed_part.check_budgets(self.opened, parts, self.machine, reserve)
            # buffers depend on who is last and has the output, so that stays: else it moves away from each raise
            order, output = assignment.gpu_order, assignment.output
            assignment = assign(parts, self.machine, reserve, order=order, output=output)
        raise self._refusal(parts)

    def _assigned(self, parts: ModelParts, reserve: Reserve, candidate: Candidate) -> Assignment | None:
        first = self.stream_gpu if candidate.op_offload else None
        return assign(parts, self.machine, reserve, order=() if first is None else (first,))

    def _propose(
        self, parts: ModelParts, assignment: Assignment, context: ContextOptions, *, streams: bool
    ) -> Proposal:
        placement, lowering = self._lowered(parts, assignment, streams=streams)
        with user_named(self.opened.model, self.path):
            done = self.session.run(self.path, self._plain(lowering), context)
        self.rounds += 1
        return Proposal(
            assignment=assignment, placement=placement, lowering=lowering, done=done, n_ubatch=context.n_ubatch
        )

    def _filled(self, parts: ModelParts, assignment: Assignment, *, streams: bool) -> Placement:
        placement = fill(self.opened.placement, parts, assignment, stream_to=None)
        if not streams:
            return placement
        stream_to = first_gpu(placement, self.machine.names - {devices.CPU})
        return fill(self.opened.placement, parts, assignment, stream_to=stream_to)

    def _lowered(self, parts: ModelParts, assignment: Assignment, *, streams: bool) -> tuple[Placement, Lowering]:
        placement = self._filled(parts, assignment, streams=streams)
        options = self.opened.options
        return placement, lower(placement, self.map, options.target, options.load_mode)

    def _plain(self, lowering: Lowering) -> LlamaSettings:
        return plain(lowering.settings, self.opened.placement.tensors)

    # --- Memory

    def _compute(self, done: DryRun, n_ubatch: int) -> dict[str, int]:
        """llama.cpp's compute buffers by rule device."""
        made = {self.rule_names[name]: n_bytes for name, n_bytes in done.compute_bytes.items()}
        for name, n_bytes in handover_bytes(done, self.opened.model, n_ubatch).items():
            made[self.rule_names[name]] -= n_bytes
        return made

    def _reserve(self, compute: Buffers, streamed: int = 0) -> Reserve:
        """What is not for tensors and caches; ``streamed`` bytes are copied to the GPU that streams.

        A GPU that held nothing when the buffers were measured is taken to need what the others do.
        """
        like_others = max((compute.get(gpu.name, 0) for gpu in self.machine.gpus), default=0)
        by_device = {gpu.name: compute.get(gpu.name) or like_others for gpu in self.machine.gpus}
        by_device[devices.CPU] = compute.get(devices.CPU, 0)
        by_device = {device: n_bytes + self.wishes.margin + self.padding for device, n_bytes in by_device.items()}
        if streamed and self.stream_gpu is not None:
            by_device[self.stream_gpu] += streamed
        return Reserve(by_device=by_device)

    def _memory(self, parts: ModelParts, proposal: Proposal) -> tuple[DeviceMemory, ...]:
        weights, compute = weight_bytes(proposal.placement), self._compute(proposal.done, proposal.n_ubatch)
        kv: dict[str, int] = {}
        sizes = {layer.index: layer.kv_bytes for layer in parts.layers}
        for layer, name in {**proposal.done.kv, **proposal.done.recurrent}.items():
            device = self.rule_names[name]
            kv[device] = kv.get(device, 0) + sizes.get(layer, 0)
        streams_to = proposal.placement.prefill_devices[:1] if self._stand_in_streams(proposal) else ()
        found = []
        for one in (*self.machine.gpus, self.machine.cpu):
            found.append(
                DeviceMemory(
                    device=one.name,
                    budget=one.memory_bytes,
                    margin=self.wishes.margin,
                    weights=weights.get(one.name, {}),
                    kv=kv.get(one.name, 0),
                    compute=compute.get(one.name, 0),
                    streaming=streamed_bytes(proposal.placement) if one.name in streams_to else 0,
                )
            )
        return tuple(found)

    def _stand_in_streams(self, proposal: Proposal) -> bool:
        """Whether the streaming GPU was stood in for: the RPC backend offloads nothing (``ggml-rpc.cpp``)."""
        listed = proposal.placement.prefill_devices
        return bool(listed) and self.map.llama_name(listed[0]) in proposal.done.stand_ins

    def _refusal(self, parts: ModelParts) -> PlanError:
        from ktllama.planner.refusal import refuse

        return refuse(self, parts)
