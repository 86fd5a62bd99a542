"""Every rule file with its experts open: the plan keeps what the rules fix, and fits.

``python -m bench.planner.kept_rules [FOLDER…]``: the shipped files and those of the folders. The budgets are those that
a file's name says (``2x24gb``), 24 GiB for each GPU that it names where it says none.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ktllama import devices, shipped_rules
from ktllama.errors import KtllamaError
from ktllama.model.guess import guess_preset
from ktllama.placing.ir import Placement
from ktllama.planner import hardware
from ktllama.planner.errors import FixedPartError
from ktllama.planner.machine import Machine
from ktllama.planner.opening import open_rules
from ktllama.planner.planning import plan
from ktllama.planner.wishes import ContextWishes
from ktllama.ruleset import loader
from ktllama.ruleset.rules import Rule, Ruleset
from ktllama.translation import Options

GIB = 1 << 30


def main() -> int:
    n_wrong = n_open = n_without = 0
    for name, path in rule_files(map(Path, sys.argv[1:])):
        try:
            verdict = kept_within(loader.load(path), budgets(name, loader.load(path)))
        except KtllamaError as fault:
            verdict = f"REFUSED {type(fault).__name__}: {fault}"
        if verdict is None:
            n_without += 1
            continue
        n_open += 1
        n_wrong += not verdict.startswith("kept")
        print(f"{name:48} {verdict}", flush=True)
    print(f"{n_open} files with experts, {n_wrong} not kept; {n_without} of models without experts")
    return int(n_wrong > 0)


def rule_files(folders: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """The shipped files, by name, and those of folders."""
    yield from ((shipped.name, shipped.path) for shipped in shipped_rules.every())
    for folder in folders:
        yield from ((path.stem, path) for path in sorted(folder.glob("*.yaml")))


def openings(rules: Ruleset) -> Iterator[Ruleset]:
    """The rules with every expert operator ``auto``; for files where none decides about experts, with a rule first
    that leaves them open."""
    yield replace(
        rules,
        rules=tuple(
            replace(rule, generate_device=devices.AUTO, prefill_device=None)
            if "Experts" in rule.replace_class
            else rule
            for rule in rules.rules
        ),
    )
    first = Rule(index=-1, name=r"\.experts$", class_path=None, generate_device=devices.AUTO, recursive=False)
    yield replace(rules, rules=(first, *rules.rules))


def budgets(name: str, rules: Ruleset) -> dict[str, int]:
    """``2x24gb``, ``24+12gb`` → the GPUs."""
    said = name.rpartition("/")[2]
    if found := re.fullmatch(r"(\d+)x(\d+)gb", said):
        return {f"cuda:{index}": int(found[2]) * GIB for index in range(int(found[1]))}
    if found := re.fullmatch(r"(\d+)\+(\d+)gb", said):
        return {f"cuda:{index}": int(found[index + 1]) * GIB for index in range(2)}
    named = {rule.generate_device for rule in rules.rules} - {None, devices.CPU, devices.AUTO}
    return dict.fromkeys(sorted(device for device in named if device), 24 * GIB)


def kept_within(rules: Ruleset, vram: dict[str, int]) -> str | None:
    """The verdict with these budgets; a file that fixes more than that on a GPU by itself gets one that holds it.

    None for a file whose model has no experts.
    """
    preset = guess_preset(rules)
    # what no rule matches goes to the first GPU, cuda:0 unless the file is for others
    options = Options(default_device=next(iter(vram), devices.CPU))
    for opened in openings(rules):
        machine = hardware.machine(vram, 1024 * GIB)
        before = open_rules(opened, None, preset, None, options, machine).placement
        if any(one.device == devices.AUTO for one in before.tensors.values()):
            break
    else:
        return None
    try:
        return kept(opened, before, options, machine)
    except FixedPartError as fault:
        if fault.device not in vram:
            raise
        larger = fault.needed_bytes + GIB
        machine = hardware.machine({**vram, fault.device: larger}, 1024 * GIB)
        return f"{kept(opened, before, options, machine)} ({larger / GIB:.0f} GiB of budget: the file needs it)"


def kept(rules: Ruleset, before: Placement, options: Options, machine: Machine) -> str:
    made = plan(rules, before.model, machine=machine, wishes=ContextWishes(n_ctx=8192), options=options)
    after = made.translation.placement
    fixed = {name: one.device for name, one in before.tensors.items() if one.device != devices.AUTO and one.loaded}
    moved = [name for name, device in fixed.items() if after.tensors[name].device != device]
    over = [one.device for one in made.memory if not one.fits]
    if moved or over or after.layers != before.layers:
        return f"WRONG moved {moved[:3]}, over budget {over}"
    free = ", ".join(f"{one.device} {(one.free or 0) / GIB:.2f}" for one in made.memory[:-1])
    return f"kept {len(fixed)} tensors, {len(before.tensors) - len(fixed)} placed; GiB free: {free}"


if __name__ == "__main__":
    sys.exit(main())
