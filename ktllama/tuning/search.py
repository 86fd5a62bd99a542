"""The search: from what is predicted best, one setting after the other is varied and tried for real.

Threads come first, since everything else depends on them; then ubatch, streaming and placements where there are GPUs,
and the KV type where it may be coarser. Of each the best stays. That finds what no setting alone improves, in a dozen
short trials; it does not try every combination.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ktllama import devices
from ktllama.errors import KtllamaError
from ktllama.planner.machine import Machine
from ktllama.planner.plan import Plan
from ktllama.planner.planning import Planner
from ktllama.planner.prediction import decode_seconds
from ktllama.planner.wishes import ContextWishes
from ktllama.runtime.timing import Timed
from ktllama.runtime.timing_session import TimingSession
from ktllama.tuning.trials import Choice, State, Trial, best, best_prefill, digest
from ktllama.units import counted

_UBATCHES = (256, 512, 1024, 2048, 4096)
_MIB = 1 << 20
_ENOUGH_SECONDS = 30.0  # a trial that took as long is not repeated: it measured many tokens already

#: Gets what is tried next, and how many trials are done.
Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much a trial measures, and how long the search may take; a trial that has begun is finished.

    Every trial of a search reads the same number of tokens: ``prefill_tokens``, or as many as fill the largest ubatch
    that is tried, as far as the context has room.
    """

    depth: int = 0
    prefill_tokens: int = 512
    decode_tokens: int = 16
    repetitions: int = 3
    seconds: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is tuned: the model at ``model_path`` as ``planner`` has it.

    ``machines`` is by number of threads, the predicted best first, and type of KV cache, whose attention has its own
    speed; ``kv_types`` are those allowed, the asked one first.
    """

    planner: Planner
    model_path: str
    machines: dict[tuple[int, str], Machine]
    kv_types: tuple[str, ...] = ("f16",)
    stand_ins: bool = False

    def machine(self, choice: Choice) -> Machine:
        """What a choice is planned for."""
        return self.machines[choice.n_threads, choice.kv_type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The trials, the winner, and whether time ran out before all were made."""

    trials: tuple[Trial, ...]
    winner: Trial
    complete: bool


class NothingRanError(KtllamaError):
    """No trial could be made; ``reasons`` say why, one a trial."""

    exit_status = 1

    def __init__(self, reasons: tuple[str, ...]) -> None:
        self.reasons = reasons
        super().__init__(reasons)

    def __str__(self) -> str:
        return f"nothing could be tried: {'; '.join(dict.fromkeys(self.reasons)) or 'the time was over at once'}"


def search(task: Task, effort: Effort, state: State, progress: Progress | None = None) -> Found:
    """Try settings until none is left or the time is over; what ``state`` knows is not tried again.

    Raises:
        NothingRanError: when not one trial succeeded.
        StateFileError: when the state cannot be kept.
    """
    ends = time.monotonic() + effort.seconds
    complete = True
    made: list[Trial] = []
    winner: Trial | None = None
    for variants, pick in _stages():
        compared = [] if winner is None else [winner]
        for choice in variants(task, winner):
            machine = digest(task.machine(choice))
            found = state.find(choice, machine)
            if found is None:
                if time.monotonic() > ends and any(trial.decode for trial in made):
                    complete = False
                    break
                if progress is not None:
                    progress(wording(choice), len(made))
                found = replace(_tried(task, effort, choice), machine=machine)
                state.add(found)
            made.append(found)
            compared.append(found)
        winner = pick(compared)
    if winner is None:
        raise NothingRanError(tuple(trial.failure for trial in made))
    return Found(trials=tuple(made), winner=winner, complete=complete)


def plan_of(task: Task, choice: Choice) -> Plan:
    """The plan of a choice.

    Raises:
        KtllamaError: when nothing fits, or llama.cpp refuses it.
    """
    machine = task.machine(choice)
    wishes: ContextWishes = replace(
        task.planner.wishes,
        n_threads=choice.n_threads,
        ubatch=choice.ubatch or task.planner.wishes.ubatch,
        op_offload=choice.op_offload,
        kv_type=choice.kv_type,
        margin=task.planner.wishes.margin + choice.spare,
    )
    return task.planner.trial(machine=machine, wishes=wishes).plan()


def wording(choice: Choice) -> str:
    """A choice in words."""
    words = [counted(choice.n_threads, "thread")]
    words += [f"ubatch {choice.ubatch}"] if choice.ubatch else []
    words += [] if choice.op_offload is None else [f"op_offload {'on' if choice.op_offload else 'off'}"]
    words += [f"KV {choice.kv_type}"] if choice.kv_type != "f16" else []
    words += [f"{choice.spare // _MIB} MiB more left free"] if choice.spare else []
    return ", ".join(words)


_Variants = Callable[[Task, Trial | None], Iterator[Choice]]


_Pick = Callable[[list[Trial]], Trial | None]


def _stages() -> tuple[tuple[_Variants, _Pick], ...]:
    """What is varied, and which of a stage's trials stays. Ubatch and streaming are prefill's alone."""
    return (
        (_threads, best),
        (_ubatches, best_prefill),
        (_offloading, best_prefill),
        (_placements, best),
        (_kv_types, best),
    )


def _threads(task: Task, _so_far: Trial | None) -> Iterator[Choice]:
    for n_threads in dict.fromkeys(n_threads for n_threads, _ in task.machines):
        yield Choice(n_threads=n_threads, kv_type=task.kv_types[0])


def _ubatches(task: Task, so_far: Trial | None) -> Iterator[Choice]:
    if so_far is None or task.planner.wishes.ubatch is not None:
        return
    for ubatch in _tried_ubatches(task):
        if ubatch != so_far.ubatch:
            yield replace(so_far.choice, ubatch=ubatch)


def _tried_ubatches(task: Task) -> tuple[int, ...]:
    wishes: ContextWishes = task.planner.wishes
    if wishes.ubatch is not None:
        return (wishes.ubatch,)
    return tuple(size for size in _UBATCHES if size <= max(wishes.n_ctx, _UBATCHES[0]))


def _offloading(task: Task, so_far: Trial | None) -> Iterator[Choice]:
    if so_far is not None and task.planner.machine.gpus and task.planner.wishes.op_offload is None:
        yield replace(so_far.choice, op_offload=not so_far.op_offload)


def _placements(task: Task, so_far: Trial | None) -> Iterator[Choice]:
    if so_far is not None and task.planner.machine.gpus:
        smallest = min(gpu.memory_bytes or 0 for gpu in task.planner.machine.gpus)
        for share in (8, 4):
            yield replace(so_far.choice, spare=smallest // share // _MIB * _MIB)


def _kv_types(task: Task, so_far: Trial | None) -> Iterator[Choice]:
    if so_far is not None:
        for kv_type in task.kv_types[1:]:
            yield replace(so_far.choice, kv_type=kv_type)


def _tried(task: Task, effort: Effort, choice: Choice) -> Trial:
    """Plan, load and measure; what cannot be is a trial too."""
    try:
        made = plan_of(task, choice)
        return _measured(task, effort, choice, made)
    except KtllamaError as fault:
        return Trial(choice=choice, failure=str(fault).splitlines()[0])


def _measured(task: Task, effort: Effort, choice: Choice, made: Plan) -> Trial:
    translation = made.translation
    prefill = _prefill_tokens(task, effort)
    started = time.monotonic()
    found: list[Timed] = []
    with TimingSession(
        task.model_path,
        translation.settings,
        made.context,
        explicit_devices=tuple(translation.options.device_map.chosen.values()),
        stand_ins=task.stand_ins,
        cpu_bytes=translation.placement.bytes_by_device().get(devices.CPU, 0),
    ) as session:
        while not found or (len(found) < effort.repetitions and time.monotonic() - started < _ENOUGH_SECONDS):
            found.append(session.measure(effort.depth, prefill, effort.decode_tokens))
    return Trial(
        choice=choice,
        ubatch=made.context.n_ubatch,
        op_offload=translation.settings.op_offload,
        rules=made.rules,
        predicted_decode=1 / _predicted(made, effort.depth + effort.decode_tokens / 2),
        decode=tuple(one.decode_tokens / one.decode_seconds for one in found),
        prefill=tuple(one.prefill_tokens / one.prefill_seconds for one in found),
    )


def _prefill_tokens(task: Task, effort: Effort) -> int:
    """The same for all trials of a search: speeds over prompts of different lengths cannot be compared, and an ubatch
    that is never filled is a smaller one."""
    wishes = task.planner.wishes
    room = wishes.n_ctx // wishes.n_seq_max - effort.depth
    return int(min(max(effort.prefill_tokens, *_tried_ubatches(task)), room))


def _predicted(made: Plan, depth: float) -> float:
    return decode_seconds(made.translation.placement, made.machine, made.context, depth, made.n_nodes)
