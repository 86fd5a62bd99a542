"""The rules as values: what a rule file says, with the place of everything it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ktllama.diagnostics import Diagnostic, Position

DEFAULT_CLASS = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry of a rule file, checked.

    ``name`` is a Python regular expression for ``re.search``; ``class_path`` a dotted class path, or a bare
    class name. At least one of them is set. Devices are canonical (``cuda`` is ``cuda:0``) or None where the
    rule does not say. ``kwargs`` holds all of ``replace.kwargs`` as written. ``positions`` maps a path such as
    ``match.name`` or ``replace.kwargs.generate_device`` to its value's place; ``""`` is the rule itself.
    """

    index: int
    name: str | None
    class_path: str | None
    replace_class: str = DEFAULT_CLASS
    generate_device: str | None = None
    prefill_device: str | None = None
    out_device: str | None = None
    generate_op: str | None = None
    prefill_op: str | None = None
    transfer_map: Mapping[int, str] = field(default_factory=dict)
    kwargs: Mapping[str, object] = field(default_factory=dict)
    recursive: bool = True
    positions: Mapping[str, Position] = field(default_factory=dict)

    def position(self, path: str = "") -> Position | None:
        """The place of ``path``, or of the nearest thing around it that has one."""
        while path and path not in self.positions:
            path = path.rpartition(".")[0]
        return self.positions.get(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """A rule file. ``rules`` holds the entries that could be understood, each with its index in the file.

    ``diagnostics`` holds everything found while reading; the file may be compiled only if none is an error.
    """

    file: str
    rules: tuple[Rule, ...]
    diagnostics: tuple[Diagnostic, ...] = ()
