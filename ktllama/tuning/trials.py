"""Trials: settings to try, what came of them, and the file that keeps it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pydantic

from ktllama.errors import PathError
from ktllama.planner.machine import Machine

_VERSION = 2

#: Decode that is slower by no more than this share is as good, and then prefill decides.
ALIKE = 0.03


class StateFileError(PathError):
    """A file of trials that cannot be read or written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Settings that a trial is of. ``ubatch`` and ``op_offload`` None leave them to the plan; ``spare`` bytes more than
    the margin stay free on every GPU, which makes for other placements."""

    n_threads: int
    ubatch: int | None = None
    op_offload: bool | None = None
    kv_type: str = "f16"
    spare: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What came of a choice: tokens a second, measured (each repetition) and predicted. ``failure`` is why it could not
    be tried; ``rules`` is the rule file of its plan, and ``machine`` what that was planned for (:func:`digest`)."""

    choice: Choice
    machine: str = ""
    ubatch: int = 0
    op_offload: bool = False
    rules: str = ""
    predicted_decode: float = 0.0
    decode: tuple[float, ...] = ()
    prefill: tuple[float, ...] = ()
    failure: str = ""

    @property
    def decode_speed(self) -> float:
        """The median of what was measured; 0 where it failed."""
        return _median(self.decode)

    @property
    def prefill_speed(self) -> float:
        """The median of what was measured; 0 where it failed."""
        return _median(self.prefill)


def best(trials: list[Trial]) -> Trial | None:
    """The trial with the fastest prefill among those whose decode is within :data:`ALIKE` of the fastest."""
    done = [trial for trial in trials if trial.decode]
    if not done:
        return None
    limit = max(trial.decode_speed for trial in done) * (1 - ALIKE)
    return max((trial for trial in done if trial.decode_speed >= limit), key=lambda trial: trial.prefill_speed)


def best_prefill(trials: list[Trial]) -> Trial | None:
    """The trial with the fastest prefill, of settings that decode alike wherever the same weights are on a device.

    So measured decode differs by noise alone, and does not count; what is predicted of decode does, since a larger
    buffer may leave room for fewer weights.
    """
    done = [trial for trial in trials if trial.decode]
    limit = max((trial.predicted_decode for trial in done), default=0.0) * (1 - ALIKE)
    alike = (trial for trial in done if trial.predicted_decode >= limit)
    return max(alike, key=lambda trial: trial.prefill_speed, default=None)


class _State(pydantic.BaseModel, extra="forbid"):
    version: int
    asked: dict[str, object]
    trials: list[Trial]

    @pydantic.field_validator("trials")
    @classmethod
    def _speeds(cls, trials: list[Trial]) -> list[Trial]:
        figures = [speed for one in trials for speed in (*one.decode, *one.prefill)]
        if not all(math.isfinite(speed) and speed > 0 for speed in figures):
            raise ValueError("a speed is none")
        return trials


@dataclass(slots=True, kw_only=True)
class State:
    """The trials of one question, kept in ``path`` after each. ``asked`` is everything that the question depends on."""

    path: Path
    asked: Mapping[str, object]
    trials: list[Trial] = field(default_factory=list)

    def find(self, choice: Choice, machine: str) -> Trial | None:
        """What came of ``choice``, if it was tried as planned for ``machine``: with other memory or other speeds the
        same choice is another plan."""
        return next((one for one in self.trials if (one.choice, one.machine) == (choice, machine)), None)

    def add(self, trial: Trial) -> None:
        """Keep ``trial``.

        Raises:
            StateFileError: when the file cannot be written.
        """
        self.trials.append(trial)
        document = {"version": _VERSION, "asked": self.asked, "trials": [asdict(one) for one in self.trials]}
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(document, indent=1), encoding="utf-8")
            beside.replace(self.path)
        except OSError as fault:
            raise StateFileError(str(self.path), f"cannot be written: {fault.strerror}") from fault


def digest(machine: Machine) -> str:
    """Stands for the budgets, to the byte, and the speeds that a plan is made for."""
    return _hashed(asdict(machine))


def name_of(asked: Mapping[str, object]) -> str:
    """The name of the state file of a question."""
    return f"tune-{_hashed(asked)}.json"


def open_state(path: Path, asked: Mapping[str, object], *, again: bool = False) -> State:
    """The trials kept in ``path``; none where it does not exist, or where ``again`` forgets them.

    Raises:
        StateFileError: when it cannot be read, holds something else (which is never overwritten), or, unless they are
            forgotten, trials of another question.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return State(path=path, asked=asked)
    except OSError as fault:
        raise StateFileError(str(path), f"cannot be read: {fault.strerror}") from fault
    try:
        found = _State.model_validate_json(text)
    except pydantic.ValidationError as fault:
        raise StateFileError(str(path), "holds no trials of ktllama tune; name another file") from fault
    if again:
        return State(path=path, asked=asked)
    if found.version != _VERSION or found.asked != json.loads(json.dumps(asked)):
        raise StateFileError(
            str(path),
            "holds trials of another model, machine or question; name another file, or take --again to forget them",
        )
    return State(path=path, asked=asked, trials=list(found.trials))


def _hashed(value: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _median(values: tuple[float, ...]) -> float:
    from statistics import median

    return median(values) if values else 0.0
