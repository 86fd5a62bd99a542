"""Every shipped rule file with its experts open: the plan keeps what the rules fix, and fits.

``python -m bench.planner.kept_rules``. The budgets are those that a file's name says, 24 GiB a GPU where it says none.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace

from ktllama import devices, shipped_rules
from ktllama.errors import KtllamaError
from ktllama.model.guess import guess_preset
from ktllama.planner import hardware
from ktllama.planner.opening import open_rules
from ktllama.planner.planning import plan
from ktllama.planner.wishes import ContextWishes
from ktllama.ruleset import loader
from ktllama.ruleset.rules import Ruleset
from ktllama.translation import Options

GIB = 1 << 30


def main() -> int:
    n_wrong = 0
    for shipped in shipped_rules.every():
        rules = opened(loader.load(shipped.path))
        if not any(rule.generate_device == devices.AUTO for rule in rules.rules):
            continue
        try:
            verdict = kept(rules, budgets(shipped.name, rules))
        except KtllamaError as fault:
            verdict = f"REFUSED {type(fault).__name__}: {fault}"
        n_wrong += not verdict.startswith("kept")
        print(f"{shipped.name:28} {verdict}")
    print(f"{n_wrong} not kept")
    return int(n_wrong > 0)


def opened(rules: Ruleset) -> Ruleset:
    """The rules with every expert operator ``auto``."""
    return replace(
        rules,
        rules=tuple(
            replace(rule, generate_device=devices.AUTO, prefill_device=None)
            if "Experts" in rule.replace_class
            else rule
            for rule in rules.rules
        ),
    )


def budgets(name: str, rules: Ruleset) -> dict[str, int]:
    """``2x24gb``, ``24+12gb`` → the GPUs."""
    said = name.rpartition("/")[2]
    if found := re.fullmatch(r"(\d+)x(\d+)gb", said):
        return {f"cuda:{index}": int(found[2]) * GIB for index in range(int(found[1]))}
    if found := re.fullmatch(r"(\d+)\+(\d+)gb", said):
        return {f"cuda:{index}": int(found[index + 1]) * GIB for index in range(2)}
    named = {rule.generate_device for rule in rules.rules} - {None, devices.CPU, devices.AUTO}
    return dict.fromkeys(sorted(device for device in named if device), 24 * GIB)


def kept(rules: Ruleset, vram: dict[str, int]) -> str:
    preset = guess_preset(rules)
    machine = hardware.machine(vram, 1024 * GIB)
    before = open_rules(rules, None, preset, None, Options(), machine).placement
    made = plan(rules, preset=preset, machine=machine, wishes=ContextWishes(n_ctx=8192))
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
