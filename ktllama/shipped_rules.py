"""The rule files that come with ktllama, by name: ``deepseek-r1/1x24gb``.

In a checkout they are the folder ``rules/``; an installation has them below ``share/ktllama/rules``.
"""

from __future__ import annotations

import difflib
import os
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ktllama.errors import RuleFileError

_SUFFIX = ".yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedRules:
    """One shipped file. ``summary`` is the first sentence of its comment, ``verified`` what it was verified to take."""

    name: str
    path: Path
    summary: str
    verified: tuple[str, ...]


@cache
def folder() -> Path | None:
    """Where the shipped rule files are, or None if this installation has none."""
    checkout = Path(__file__).parents[1] / "rules"
    installed = Path(sysconfig.get_path("data")) / "share" / "ktllama" / "rules"
    return next((path for path in (checkout, installed) if path.is_dir()), None)


def every() -> tuple[ShippedRules, ...]:
    """All shipped rule files, by name."""
    root = folder()
    if root is None:
        return ()
    return tuple(_described(root, path) for path in sorted(root.glob(f"*/*{_SUFFIX}")))


def find(name: str | os.PathLike[str]) -> str:
    """The path of a rule file given as a path or as the name of a shipped one. An existing path wins.

    Raises:
        RuleFileError: when there is neither a file nor a shipped rule file of that name.
    """
    given = os.fspath(name)
    if not given or os.path.lexists(given):
        return given
    root = folder()
    if root is None or given.endswith((_SUFFIX, ".yml")):
        return given
    path = (root / f"{given}{_SUFFIX}").resolve()
    if path.is_relative_to(root.resolve()) and path.is_file():
        return str(path)
    names = [shipped.name for shipped in every()]
    if family := [name for name in names if name.startswith(f"{given}/")]:
        raise RuleFileError(given, f"no such file; of that family, ktllama has {', '.join(family)}")
    if "/" not in given or given.startswith((".", "/")):
        return given
    close = difflib.get_close_matches(given, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "'ktllama rules' lists those that are shipped"
    raise RuleFileError(given, f"no such file, and no rule file of that name comes with ktllama; {hint}")


def _described(root: Path, path: Path) -> ShippedRules:
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines[: _end_of_comment(lines)]]
    paragraph = comment[: comment.index("")] if "" in comment else comment
    return ShippedRules(
        name=path.relative_to(root).with_suffix("").as_posix(),
        path=path,
        summary=" ".join(paragraph),
        verified=tuple(line.removeprefix("Verified: ") for line in comment if line.startswith("Verified: ")),
    )


def _end_of_comment(lines: list[str]) -> int:
    return next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
