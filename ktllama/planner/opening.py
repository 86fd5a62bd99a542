"""What a plan begins with: rules held against a model, with ``auto`` where they leave the place open, and a file for
llama.cpp's dry runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ktllama import devices
from ktllama.errors import LlamaCppError, ModelFileError, RulesetError
from ktllama.model import sparse
from ktllama.model.model_file import ModelFile
from ktllama.planner import fixed_part
from ktllama.planner.machine import Machine
from ktllama.ruleset.rules import Rule, Ruleset
from ktllama.runtime import preconditions
from ktllama.translation import Options, Translation, analyse

#: Stands for the rule file where there is none.
NO_RULES = "(no rules)"

#: Rules that leave everything open.
EVERYTHING_AUTO = Ruleset(
    file=NO_RULES,
    rules=(Rule(index=0, name="", class_path=None, generate_device=devices.AUTO, recursive=False),),
)


def open_rules(
    rules: str | os.PathLike[str] | Ruleset | None,
    model: str | os.PathLike[str] | ModelFile | None,
    preset: str | None,
    config: str | os.PathLike[str] | None,
    options: Options,
    machine: Machine,
) -> Translation:
    """The rules held against the model; what they leave open is ``auto``.

    Raises:
        RulesetError: for errors other than ``auto``.
        BudgetError: when they name a device that has no budget.
    """
    if rules is None:
        inner = replace(options, default_device=devices.AUTO, budgets={})
        return analyse(EVERYTHING_AUTO, model, preset=preset, config=config, options=inner)
    opened = analyse(rules, model, preset=preset, config=config, options=replace(options, budgets={}))
    if errors := [found for found in opened.diagnostics if found.severity == "error" and found.code != "auto-device"]:
        raise RulesetError(tuple(errors))
    fixed_part.check_devices(opened, machine)
    return opened


@contextmanager
def sparse_file(model: ModelFile) -> Iterator[Path]:
    """A file of ``model`` for dry runs: without its vocabulary, which places nothing and takes long to read."""
    preconditions.check(model)  # while the file still has the name that the user knows
    with tempfile.TemporaryDirectory(prefix="ktllama-") as folder:
        path = Path(folder) / "model.gguf"
        try:
            sparse.write(model, path)
        except OSError as fault:
            raise ModelFileError(str(path), f"a sparse file could not be written: {fault.strerror}") from fault
        yield path


@contextmanager
def user_named(model: ModelFile, path: Path) -> Iterator[None]:
    """Let what llama.cpp says against the sparse file at ``path``, which will be gone, name the user's file."""
    name = model.paths[0] if model.paths else model.name
    try:
        yield
    except LlamaCppError as fault:
        log = tuple(line.replace(str(path), name) for line in fault.log)
        raise LlamaCppError(fault.reason.replace(str(path), name), log=log) from fault
