"""The planner beside ``llama-fit-params`` over models, cards and contexts, held against every budget.

    python -m bench.planner.grid RECORDS.jsonl [PATH/TO/llama-fit-params] [--seconds N] [--only TEXT] [--sides a,b]
    python -m bench.planner.grid RECORDS.jsonl --table

Every case has sides, each a line of RECORDS.jsonl, and what is there already is not run again, so the grid may be run
in slices of ``--seconds``:

``plan``   our plan with a ubatch of 512 and without streaming, which is the question that the peer answers
``peer``   what llama-fit-params fits with the same margin; not asked where our plan reads nothing from the host
``short``  the host one MiB smaller than any placement needs (``bound.py``), and a little larger, at 32k
``free``   our plan as users ask for it: ubatch and streaming chosen, decode may cost 2% for prefill; at 32k

Host RAM is without limit but in ``short``, since llama-fit-params knows no such limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.planner import bound, grid_table
from bench.planner.accounting import Account, account
from bench.planner.cases import CONTEXTS, MARGIN, Case, every
from bench.planner.fit_params import FitParams
from ktllama.lower.settings import LlamaSettings, TensorOverride
from ktllama.model import presets, sparse
from ktllama.model.model_file import ModelFile
from ktllama.planner import hardware
from ktllama.planner.errors import BudgetError, PlanError
from ktllama.planner.plan import Plan
from ktllama.planner.planning import planner
from ktllama.planner.wishes import ContextWishes
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.dry_run import DryRun
from ktllama.runtime.dry_run_session import DryRunSession
from ktllama.runtime.stand_ins import serving

Record = dict[str, Any]
_SIDES = ("plan", "peer", "short", "free")

#: What is run, in this order: if time is short, the middle of the contexts is complete first.
_STEPS = (
    *((side, CONTEXTS[1:2]) for side in _SIDES),
    ("plan", CONTEXTS),
    ("peer", CONTEXTS),
)
_MOST_GPUS = 4
_SLACK = 1 << 29

#: The last layer alone on a GPU, the output on the host; and its attention alone: no GPU in use has smaller buffers.
_LAST_LAYER = LlamaSettings(n_gpu_layers=2, devices=("CUDA0", "CPU"), tensor_split=(1, 1))
_LAST_CORE = replace(_LAST_LAYER, tensor_overrides=(TensorOverride(pattern=r"\.ffn_.*_exps", device="CPU"),))


class Grid:
    """One model at a time, with its sparse file, a session of dry runs for accounts, and stand-ins for the peer."""

    def __init__(self, preset: str, peer: str | None, endpoint: str, session: DryRunSession, folder: Path) -> None:
        self.model: ModelFile = presets.load(preset)
        self.path = folder / f"{preset}.gguf"
        self.session = session
        sparse.write(self.model, self.path)
        self.peer = FitParams(path=peer, endpoint=endpoint, model=self.path) if peer else None

    def run(self, case: Case, side: str) -> Iterator[Record]:
        """The records of one side of a case."""
        started = time.perf_counter()
        made = {"peer": self._peer, "plan": self._equal, "free": self._free, "short": self._short}[side](case)
        for record in made:
            yield {"case": case.key, "side": side, "seconds": round(time.perf_counter() - started, 2), **record}

    def _peer(self, case: Case) -> Iterator[Record]:
        assert self.peer is not None
        context = _equal_wishes(case).context(512)
        started = time.perf_counter()
        found = self.peer.fit(list(case.budgets.values()), MARGIN, context, self.model.n_layers)
        seconds = time.perf_counter() - started
        if found is None:
            yield {"failed": True, "seconds": round(seconds, 2)}
            return
        said = self._account(self.session.run(self.path, found, context), context)
        yield {**_spent(said, case), "seconds": round(seconds, 2)}

    def _equal(self, case: Case) -> Iterator[Record]:
        yield self._planned(case, _equal_wishes(case), None)

    def _free(self, case: Case) -> Iterator[Record]:
        yield self._planned(case, ContextWishes(n_ctx=case.n_ctx, margin=MARGIN), None)

    def _short(self, case: Case) -> Iterator[Record]:
        """A host on either side of what the bound says; a refusal below it is right, a plan above it shows the same."""
        wishes = _equal_wishes(case)
        context = wishes.context(512)
        alone = [self.session.run(self.path, one, context) for one in (_LAST_LAYER, _LAST_CORE)]
        rooms = [n_bytes - MARGIN for n_bytes in case.budgets.values()]
        compute = min(one.compute_bytes["CUDA0"] for one in alone)
        least = bound.least_host_bytes(self.model, context, alone[0].tensors or (), rooms, compute) + MARGIN
        for ram in (least - (1 << 20), least + least // 100 + _SLACK):
            yield {"ram": ram, "least": least, **self._planned(case, wishes, ram)}

    def _planned(self, case: Case, wishes: ContextWishes, ram: int | None) -> Record:
        machine = hardware.machine(case.budgets, ram)
        try:
            with planner(None, self.model, self.session, machine=machine, wishes=wishes) as ready:
                ready.suggests = False  # what would fit takes several plans more
                made = ready.plan()
        except BudgetError as fault:
            return {"refused": "budget", "why": str(fault)}
        except PlanError as fault:
            return {"refused": "memory", "why": str(fault)}
        return self._checked(case, made, ram)

    def _checked(self, case: Case, made: Plan, ram: int | None) -> Record:
        settings = made.translation.settings
        said = self._account(self.session.run(self.path, settings, made.context), made.context)
        record = {
            **_spent(said, case),
            "ubatch": made.context.n_ubatch,
            "offload": settings.op_offload,
            "planned": {one.device: one.used for one in made.memory},
            "over": [one.device for one in made.memory if one.free is not None and one.used and one.free < 0],
        }
        if ram is not None and said.used("CPU") + MARGIN > ram:
            record["over"].append("cpu, by the dry run")
        if self.peer is not None and "CPU" not in settings.devices:
            printed = self.peer.accounted(settings, made.context)
            record["printed"] = printed
            for index, budget in enumerate(case.budgets.values()):
                if (printed.get(f"CUDA{index}", 0) << 20) > budget - MARGIN:
                    record["over"].append(f"cuda:{index}, by --fit-print")
        return record

    def _account(self, done: DryRun, context: ContextOptions) -> Account:
        return account(self.model, done, context)


def _equal_wishes(case: Case) -> ContextWishes:
    return ContextWishes(n_ctx=case.n_ctx, margin=MARGIN, ubatch=512, op_offload=False)


def _spent(said: Account, case: Case) -> Record:
    over = [
        f"cuda:{index}, by the dry run"
        for index, budget in enumerate(case.budgets.values())
        if said.held(f"CUDA{index}") and said.used(f"CUDA{index}") + MARGIN > budget
    ]
    return {"host_read": round(said.host_read_bytes), "by_device": said.by_device, "over": over}


def main() -> int:
    words = _words()
    records = _read(words.records)
    if not words.table:
        _run(words, records)
        records = _read(words.records)
    return grid_table.show(records)


def _run(words: argparse.Namespace, records: list[Record]) -> None:
    ends = time.monotonic() + words.seconds
    done = {(one["case"], one["side"]): one for one in records}
    with ExitStack() as stack, words.records.open("a", encoding="utf-8") as file:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ktllama-")))
        endpoint = stack.enter_context(serving(_MOST_GPUS))
        session = stack.enter_context(DryRunSession([f"CUDA{index}" for index in range(_MOST_GPUS)]))
        grids: dict[str, Grid] = {}
        for case, side in _wanted(words):
            if time.monotonic() > ends:
                break
            if (case.key, side) in done:
                continue
            if case.model not in grids:
                grids[case.model] = Grid(case.model, words.peer, endpoint, session, folder)
            if side == "peer" and done.get((case.key, "plan"), {}).get("host_read") == 0:
                made = [{"case": case.key, "side": side, "skipped": True}]
            else:
                made = list(grids[case.model].run(case, side))
            done[case.key, side] = made[0]
            file.writelines(json.dumps(record) + "\n" for record in made)
            file.flush()


def _wanted(words: argparse.Namespace) -> Iterator[tuple[Case, str]]:
    """What is asked for: the plans first, since where one reads nothing no peer can read less."""
    sides = words.sides.split(",")
    for side, contexts in _STEPS:
        for case in every():
            asked = side in sides and (side != "peer" or words.peer)
            if asked and case.n_ctx in contexts and words.only in case.key:
                yield case, side


def _read(path: Path) -> list[Record]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.planner.grid")
    parser.add_argument("records", type=Path)
    parser.add_argument("peer", nargs="?")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--only", default="")
    parser.add_argument("--sides", default=",".join(_SIDES))
    parser.add_argument("--table", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
