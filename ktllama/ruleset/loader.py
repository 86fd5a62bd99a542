"""A rule file → a Ruleset with everything that was found in it."""

from __future__ import annotations

from pathlib import Path

import yaml

from ktllama.errors import RuleFileError
from ktllama.ruleset.findings import Findings
from ktllama.ruleset.rule_reader import RULE_KEYS, describe, read_rule
from ktllama.ruleset.rules import Rule, Ruleset
from ktllama.ruleset.wording import printable
from ktllama.ruleset.yaml_faults import report_characters, report_fault, report_tabs
from ktllama.ruleset.yaml_nodes import AbandonedError, Composer, Mapping, Node, Scalar, Sequence

MAX_FILE_BYTES = 10_000_000
#: The longest files in use have about fifty.
MAX_RULES = 10_000


def load(path: str | Path) -> Ruleset:
    """Read a rule file. What is wrong with its content is in the result's ``diagnostics``.

    Raises:
        RuleFileError: when there is nothing to read: no such file, a directory, no permission, too large, not UTF-8.
    """
    shown_path = printable(str(path))
    if not str(path):
        raise RuleFileError(shown_path, "the path of the rule file is empty")
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as fault:
        raise RuleFileError(shown_path, _reason(fault)) from fault
    if len(content) > MAX_FILE_BYTES:
        raise RuleFileError(shown_path, f"larger than {MAX_FILE_BYTES // 1_000_000} MB, which no rule file is")
    if content.startswith(b"GGUF"):
        raise RuleFileError(shown_path, "a GGUF model, not a rule file; the rules come first, the model after --model")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RuleFileError(shown_path, "UTF-16 text; expected UTF-8: save it again in that encoding")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise RuleFileError(
            shown_path, f"not UTF-8 text: byte {fault.start} is 0x{content[fault.start]:02x}"
        ) from fault
    return loads(text, shown_path)


def _reason(fault: OSError | ValueError) -> str:
    if isinstance(fault, FileNotFoundError):
        return "no such file"
    if isinstance(fault, IsADirectoryError):
        return "a directory, not a rule file"
    if isinstance(fault, PermissionError):
        return "no permission to read it"
    return printable(fault.strerror or str(fault)) if isinstance(fault, OSError) else printable(str(fault))


def loads(text: str, file: str = "<rules>") -> Ruleset:
    """Read rules from ``text``; ``file`` is what positions call it. Never raises for what the text holds."""
    findings = Findings(file)
    root = _tree(text.removeprefix("\ufeff"), findings)
    rules = () if root is None else _rules(root, findings)
    return Ruleset(file=file, rules=rules, diagnostics=findings.diagnostics())


def _tree(text: str, findings: Findings) -> Node | None:
    """The text's YAML tree, or None after reporting why there is none."""
    if report_characters(text, findings):
        return None
    try:
        root = Composer(findings).compose(text)
    except AbandonedError:
        return None
    except yaml.YAMLError as fault:
        report_fault(text, fault, findings)
        return None
    report_tabs(text, findings)
    if root is None or (isinstance(root, Scalar) and root.value is None and not root.broken):
        findings.add(
            "empty-file", "the file holds no rules; expected a list of rules, or '[]' if none are meant", (1, 1)
        )
        return None
    return root


def _rules(root: Node, findings: Findings) -> tuple[Rule, ...]:
    if not isinstance(root, Sequence):
        if not root.broken:
            message = f"the file is {describe(root)}; expected a list of rules{_list_hint(root)}"
            findings.add("not-a-list", message, root.place)
        return ()
    if len(root.items) > MAX_RULES:
        message = f"the file has {len(root.items)} rules; at most {MAX_RULES} are read"
        findings.add("too-many-rules", message, root.items[MAX_RULES].place)
        return ()
    read = (read_rule(index, node, findings) for index, node in enumerate(root.items))
    return tuple(rule for rule in read if rule is not None)


def _list_hint(root: Node) -> str:
    if not isinstance(root, Mapping):
        return ""
    if any(key in RULE_KEYS for key in root.entries):
        return ": put '- ' before the first key and indent the others by two spaces"
    entries = list(root.entries.values())
    if len(entries) == 1 and isinstance(entries[0].node, Sequence):
        return f": remove the key '{printable(str(entries[0].key))[:40]}' above the list"
    return ""
