"""One entry of a rule file → a Rule, or the reasons why it is none.

What a rule means is ktransformers' ``optimize.py``, tag v0.3.2 (``gen_optimize_config``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from dataclasses import field as dataclass_field

from ktllama.diagnostics import Position
from ktllama.ruleset.catalogue import (
    KNOWN_KWARGS,
    REPLACE_CLASS_NAMES,
    REPLACE_CLASSES,
    is_replace_class,
    todays_name,
)
from ktllama.ruleset.findings import Findings
from ktllama.ruleset.kwargs import Kwargs, read_kwargs
from ktllama.ruleset.patterns import check_pattern
from ktllama.ruleset.rules import DEFAULT_CLASS, Rule
from ktllama.ruleset.wording import described_value, did_you_mean, shown
from ktllama.ruleset.yaml_nodes import Entry, Mapping, Node, Scalar, python_value

RULE_KEYS = ("match", "replace", "recursive")
MATCH_KEYS = ("name", "class")
REPLACE_KEYS = ("class", "kwargs")
MAX_CLASS_CHARACTERS = 300

_CLASS_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_FALSE_WORDS = frozenset({"false", "no", "off", "0", "n", "f", "none", "null"})

#: A known key at a wrong place: (where it stands, key) → where it belongs.
_BELONGS: dict[tuple[str, str], str] = {
    ("the rule", "name"): "put it under match",
    ("the rule", "class"): "put it under match to select, under replace to say what replaces",
    ("the rule", "kwargs"): "put it under replace",
    ("match", "recursive"): "put it beside match and replace",
    ("match", "replace"): "put it beside match",
    ("match", "kwargs"): "put it under replace",
    ("replace", "recursive"): "put it beside match and replace",
    ("replace", "match"): "put it beside replace",
    ("replace", "name"): "put it under match",
    ("replace", "device"): "write generate_device, and prefill_device if it differs, under kwargs",
}


@dataclass(slots=True)
class _Parts:
    """What has been read of a rule so far."""

    name: str | None = None
    class_path: str | None = None
    replace_class: str = DEFAULT_CLASS
    kwargs: Kwargs = dataclass_field(default_factory=Kwargs)
    raw_kwargs: dict[str, object] = dataclass_field(default_factory=dict)
    recursive: bool = True


def read_rule(index: int, node: Node, findings: Findings) -> Rule | None:
    """The rule at ``index``, or None when it has an error; everything found goes to ``findings``."""
    errors_before = findings.errors
    if not isinstance(node, Mapping):
        if not node.broken:
            findings.add(
                "rule-not-a-mapping",
                f"rule {index} is {describe(node)}; expected a mapping with match and replace",
                node.place,
            )
        return None
    parts = _Parts()
    _report_unknown_keys(node, "the rule", RULE_KEYS, findings)
    _read_match(node, parts, findings)
    _read_replace(node, parts, findings)
    _read_recursive(node, parts, findings)
    if node.broken or findings.errors > errors_before:
        return None
    return _rule(index, node, parts, findings)


def _rule(index: int, node: Mapping, parts: _Parts, findings: Findings) -> Rule:
    devices, operators = parts.kwargs.devices, parts.kwargs.operators
    return Rule(
        index=index,
        name=parts.name,
        class_path=parts.class_path,
        replace_class=parts.replace_class,
        generate_device=devices.get("generate_device"),
        prefill_device=devices.get("prefill_device"),
        out_device=devices.get("out_device"),
        generate_op=operators.get("generate_op"),
        prefill_op=operators.get("prefill_op"),
        transfer_map=parts.kwargs.transfer_map,
        kwargs=parts.raw_kwargs,
        recursive=parts.recursive,
        positions=_positions(node, findings),
    )


def describe(node: Node) -> str:
    """What a value is, for "expected a string, found ..."."""
    if isinstance(node, Scalar):
        return described_value(node.value)
    return "a mapping" if isinstance(node, Mapping) else "a list"


# match


def _read_match(rule: Mapping, parts: _Parts, findings: Findings) -> None:
    match = _child(rule, "match", "name, class or both", findings)
    if match is None:
        return
    _report_unknown_keys(match, "match", MATCH_KEYS, findings)
    if not (match.incomplete or "name" in match.entries or "class" in match.entries):
        findings.add("missing-key", "match has neither name nor class; expected at least one of them", match.place)
    name = _text(match, "match", "name", findings)
    if name is not None:
        check_pattern(name, match.entries["name"].node.place, findings)
    parts.name = name
    parts.class_path = _class_path(match, "match", findings)


# replace


def _read_replace(rule: Mapping, parts: _Parts, findings: Findings) -> None:
    replace = _child(rule, "replace", "class and kwargs", findings)
    if replace is None:
        return
    _report_unknown_keys(replace, "replace", REPLACE_KEYS, findings)
    path = _class_path(replace, "replace", findings)
    if path is not None:
        parts.replace_class = path
        _check_replace_class(path, replace.entries["class"].node, findings)
    entry = replace.entries.get("kwargs")
    if entry is None or entry.node.broken:
        return
    if isinstance(entry.node, Mapping):
        parts.kwargs = read_kwargs(entry.node, findings)
        parts.raw_kwargs = {str(kwarg.key): python_value(kwarg.node) for kwarg in entry.node.entries.values()}
    elif not isinstance(entry.node, Scalar) or entry.node.value is not None:
        message = f"replace.kwargs expects a mapping of arguments, found {describe(entry.node)}"
        findings.add("wrong-type", message, entry.node.place)


def _check_replace_class(path: str, node: Node, findings: Findings) -> None:
    if path == DEFAULT_CLASS or is_replace_class(path) or not findings.takes_more():
        return
    today = todays_name(path)
    if today is not None:
        findings.add("old-name", f"class '{shown(path)}' is from an old ktransformers; write {today}", node.place)
        return
    known = (DEFAULT_CLASS, *(REPLACE_CLASSES if "." in path else REPLACE_CLASS_NAMES))
    findings.add(
        "unknown-class",
        f"ktransformers has no class '{shown(path)}' for replace; placement does not depend on it"
        f"{did_you_mean(path, known)}",
        node.place,
    )


# recursive


def _read_recursive(rule: Mapping, parts: _Parts, findings: Findings) -> None:
    entry = rule.entries.get("recursive")
    if entry is None or entry.node.broken:
        return
    node = entry.node
    value = python_value(node)
    parts.recursive = bool(value)
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return
    effect = "does not cut the subtree" if parts.recursive else "cuts the subtree"
    meant = "False" if isinstance(value, str) and value.strip().lower() in _FALSE_WORDS else "True or False"
    findings.add(
        "odd-recursive",
        f"recursive is {describe(node)}, which {effect}; write {meant}, without quotes",
        node.place,
    )


# Getters that report and return None


def _child(parent: Mapping, key: str, holds: str, findings: Findings) -> Mapping | None:
    entry = parent.entries.get(key)
    if entry is None and parent.incomplete:
        return None
    if entry is None:
        findings.add("missing-key", f"the rule has no {key}; expected {key} with {holds}", parent.place)
        return None
    if isinstance(entry.node, Mapping):
        return entry.node
    if not entry.node.broken:
        findings.add(
            "wrong-type", f"{key} expects a mapping with {holds}, found {describe(entry.node)}", entry.node.place
        )
    return None


def _text(parent: Mapping, where: str, key: str, findings: Findings) -> str | None:
    entry = parent.entries.get(key)
    if entry is None or entry.node.broken:
        return None
    node = entry.node
    if isinstance(node, Scalar) and isinstance(node.value, str):
        return node.value
    advice = "; quote it" if isinstance(node, Scalar) and node.value is not None else ""
    findings.add("wrong-type", f"{where}.{key} expects a text, found {describe(node)}{advice}", node.place)
    return None


def _class_path(parent: Mapping, where: str, findings: Findings) -> str | None:
    path = _text(parent, where, "class", findings)
    if path is None:
        return None
    if len(path) > MAX_CLASS_CHARACTERS or not _CLASS_PATH.fullmatch(path):
        findings.add(
            "bad-class",
            f"{where}.class '{shown(path)}' is no class; expected a dotted path such as torch.nn.Linear",
            parent.entries["class"].node.place,
        )
        return None
    return path


def _report_unknown_keys(mapping: Mapping, where: str, known: tuple[str, ...], findings: Findings) -> None:
    for entry in mapping.entries.values():
        if not (isinstance(entry.key, str) and entry.key in known) and findings.takes_more():
            _report_unknown_key(entry, where, known, findings)


def _report_unknown_key(entry: Entry, where: str, known: tuple[str, ...], findings: Findings) -> None:
    key = entry.key
    if not isinstance(key, str):
        findings.add("unknown-key", f"{where} has {described_value(key)} as a key; it has no effect", entry.place)
        return
    belongs = _BELONGS.get((where, key))
    if belongs is None and key in KNOWN_KWARGS:
        belongs = "put it under replace, in kwargs" if where != "replace" else "put it under kwargs"
    if belongs is not None:
        findings.add("misplaced-key", f"'{key}' has no effect in {where}; {belongs}", entry.place)
        return
    findings.add(
        "unknown-key",
        f"{where} has an unknown key '{shown(key)}', which has no effect{did_you_mean(key, known)}",
        entry.place,
    )


def _positions(rule: Mapping, findings: Findings) -> dict[str, Position]:
    """The places of all values, by path."""
    found = {"": findings.position(rule.place)}
    pending: list[tuple[str, Mapping]] = [("", rule)]
    while pending:
        prefix, mapping = pending.pop()
        for entry in mapping.entries.values():
            path = f"{prefix}{entry.key}"
            found[path] = findings.position(entry.node.place)
            if isinstance(entry.node, Mapping):
                pending.append((f"{path}.", entry.node))
    return found
