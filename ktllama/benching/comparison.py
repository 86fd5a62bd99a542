"""Placements measured in turn: one repetition of each, then the next repetition.

What disturbs a machine for a while disturbs all of them alike, so their ratios are surer than their speeds. Every
placement has a process of its own. If all fit the memory together they stay loaded; else each is loaded for each of its
repetitions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from ktllama.benching.intervals import Interval, of_median, of_ratio
from ktllama.benching.room import fit_together
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.timing import Timed
from ktllama.runtime.timing_session import Loaded, TimingSession

_CELLS = 256  # llama.cpp pads the context to it (``llama_context::llama_context``)
_WARM_UP_TOKENS = 8

#: What is being measured: the placement's name, repetition, depth.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One placement of the model at ``model_path``. ``cpu_bytes`` are the weights that stay in host memory,
    ``gpu_bytes`` what is planned on each GPU, by llama.cpp's name (None: not known)."""

    name: str
    model_path: str
    settings: LlamaSettings
    context: ContextOptions
    cpu_bytes: int | None = None
    gpu_bytes: Mapping[str, int] | None = None
    explicit_devices: tuple[str, ...] = ()

    def load(self, *, stand_ins: bool) -> TimingSession:
        """The placement in a process of its own."""
        return TimingSession(
            self.model_path,
            self.settings,
            self.context,
            explicit_devices=self.explicit_devices,
            stand_ins=stand_ins,
            cpu_bytes=self.cpu_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is measured of each placement: at each depth so many tokens read, and so many decoded."""

    depths: tuple[int, ...] = (0, 1024)
    prefill_tokens: int = 256
    decode_tokens: int = 16
    repetitions: int = 6

    @property
    def n_ctx(self) -> int:
        """Tokens of context that it needs, in llama.cpp's whole cells."""
        needed = max(self.depths) + max(self.prefill_tokens, self.decode_tokens, _WARM_UP_TOKENS)
        return -(-needed // _CELLS) * _CELLS


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """One placement at one depth, in tokens a second; ``*_ratio`` is to the first placement, repetition by repetition.

    None where nothing was measured.
    """

    depth: int
    prefill: Interval | None
    decode: Interval | None
    prefill_ratio: Interval | None
    decode_ratio: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Everything about one placement: what its load said, every measurement, and what follows from them."""

    contender: Contender
    loaded: Loaded
    samples: Mapping[int, tuple[Timed, ...]]
    speeds: tuple[Speeds, ...] = field(default=())


def compare(
    contenders: Sequence[Contender],
    workload: Workload,
    *,
    stand_ins: bool = False,
    progress: Progress | None = None,
) -> tuple[Measured, ...]:
    """Measure ``contenders`` in turn.

    Raises:
        LlamaCppError: when llama.cpp is missing, refuses a placement or dies under it.
        DeviceError: when a device is missing and ``stand_ins`` is False.
    """
    samples: list[dict[int, list[Timed]]] = [defaultdict(list) for _ in contenders]
    loaded: dict[int, Loaded] = {}
    with _sessions(contenders, stand_ins=stand_ins) as opened:
        for repetition in range(workload.repetitions):
            for index in _turn(len(contenders), repetition):
                with opened(index) as session:
                    loaded.setdefault(index, session.loaded)
                    for depth in workload.depths:
                        if progress is not None:
                            progress(contenders[index].name, repetition, depth)
                        timed = session.measure(depth, workload.prefill_tokens, workload.decode_tokens)
                        samples[index][depth].append(timed)
    measured = [
        Measured(
            contender=contender,
            loaded=loaded[index],
            samples={depth: tuple(found) for depth, found in samples[index].items()},
        )
        for index, contender in enumerate(contenders)
    ]
    return tuple(_with_speeds(one, measured[0], is_first=number == 0) for number, one in enumerate(measured))


def _turn(n: int, repetition: int) -> Iterator[int]:
    """Every placement is first in turn, and last."""
    return ((repetition + step) % n for step in range(n))


@contextmanager
def _sessions(contenders: Sequence[Contender], *, stand_ins: bool) -> Iterator[Callable[[int], _Opened]]:
    with ExitStack() as kept:
        if fit_together(contenders):
            sessions = [kept.enter_context(contender.load(stand_ins=stand_ins)) for contender in contenders]
            yield lambda index: _Opened(sessions[index], closes=False)
        else:
            yield lambda index: _Opened(contenders[index].load(stand_ins=stand_ins), closes=True)


class _Opened:
    """A session for one turn, closed after it unless it stays."""

    def __init__(self, session: TimingSession, *, closes: bool) -> None:
        self._session = session
        self._closes = closes

    def __enter__(self) -> TimingSession:
        return self._session

    def __exit__(self, *_: object) -> None:
        if self._closes:
            self._session.close()


def _with_speeds(one: Measured, first: Measured, *, is_first: bool) -> Measured:
    speeds = tuple(
        _speeds(depth, found, None if is_first else first.samples[depth]) for depth, found in one.samples.items()
    )
    return Measured(contender=one.contender, loaded=one.loaded, samples=one.samples, speeds=speeds)


def _speeds(depth: int, found: Sequence[Timed], first: Sequence[Timed] | None) -> Speeds:
    prefill, decode = _rates(found)
    first_prefill, first_decode = ([], []) if first is None else _rates(first)
    return Speeds(
        depth=depth,
        prefill=of_median(prefill) if prefill else None,
        decode=of_median(decode) if decode else None,
        prefill_ratio=of_ratio(prefill, first_prefill) if prefill and first_prefill else None,
        decode_ratio=of_ratio(decode, first_decode) if decode and first_decode else None,
    )


def _rates(samples: Sequence[Timed]) -> tuple[list[float], list[float]]:
    """Tokens a second of each sample: prefill, decode."""
    prefill = [one.prefill_tokens / one.prefill_seconds for one in samples if one.prefill_seconds]
    decode = [one.decode_tokens / one.decode_seconds for one in samples if one.decode_seconds]
    return prefill, decode
