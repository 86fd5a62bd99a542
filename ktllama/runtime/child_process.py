"""How ktllama starts its own modules as child processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ktllama


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``module`` with this interpreter."""
    return [sys.executable, "-P", "-m", module, *arguments]  # -P: modules in the current folder must not shadow ours


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which the child finds the same ``ktllama``, with ``changes`` applied."""
    package_root = str(Path(ktllama.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    python_path = package_root if not inherited else os.pathsep.join((package_root, inherited))
    return {**os.environ, "PYTHONPATH": python_path, **changes}
