"""What PyYAML says about text that is no YAML, in plain words, with the line, a caret and a hint."""

from __future__ import annotations

import re

import yaml
from yaml.reader import Reader

from ktllama.ruleset.findings import Findings, Place
from ktllama.ruleset.wording import printable, shown
from ktllama.units import counted

EXCERPT_CHARACTERS = 100
#: The pure Python scanner, which alone tells where ktransformers stumbles over tabs, is slow.
_MAX_SCANNED_FOR_TABS = 200_000
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_DEVICE_WITH_SPACE = re.compile(r"\b(cuda|xpu|npu)\s*:\s+(\d+)")
_TAB_ADVICE = "YAML does not allow a tab here; write spaces instead"

#: Problems that are noticed far behind the place to repair.
_BLAMES_BEGINNING = ("found unexpected end of stream", "could not find expected ':'")

#: Beginnings of PyYAML's problem texts (libyaml's words, then its own scanner's) and what they mean.
_PLAIN_WORDS: tuple[tuple[str, str], ...] = (
    ("mapping values are not allowed", "a ':' stands where no key can be"),
    ("did not find expected key", "expected the next key of the mapping"),
    ("did not find expected '-' indicator", "expected the next '- ' of the list"),
    ("could not find expected ':'", "expected ':' after a key"),
    ("found unexpected end of stream", "the quote that opens here is never closed"),
    ("found unknown escape character", "an escape that double-quoted YAML text does not have"),
    ("did not find expected ',' or ']'", "expected ',' or the ']' that closes the list"),
    ("did not find expected ',' or '}'", "expected ',' or the '}' that closes the mapping"),
    ("did not find expected <document start>", "text follows the end of the document"),
)


def excerpt(text: str, place: Place) -> tuple[str, ...]:
    """The line of ``place`` and a caret below its column; of a long line, the part around it."""
    lines = _BREAK.split(text)
    line, column = lines[min(place[0], len(lines)) - 1], place[1]
    return pointed(line, column - 1)


def pointed(line: str, offset: int) -> tuple[str, ...]:
    """``line`` and a caret below its character at ``offset``; of a long line, the part around it."""
    start = max(0, offset - EXCERPT_CHARACTERS // 2) if len(line) > EXCERPT_CHARACTERS else 0
    before = printable(line[start:offset])
    after = printable(line[offset : start + EXCERPT_CHARACTERS])
    return (f"{before}{after}".rstrip(), f"{' ' * len(before)}^")


def report_characters(text: str, findings: Findings) -> bool:
    """Report the first character that no YAML may hold. True when there is one."""
    found = Reader.NON_PRINTABLE.search(text)
    at = found.start() if found else text.find("\ufeff")
    if at < 0:
        return False
    lines = _BREAK.split(text[:at])
    place = (len(lines), len(lines[-1]) + 1)
    message = f"character U+{ord(text[at]):04X} is not allowed in YAML; delete it"
    findings.add("yaml-character", message, place, excerpt(text, place))
    return True


def report_tabs(text: str, findings: Findings) -> None:
    """Report a tab that ktransformers' YAML reader refuses and libyaml does not, such as one after a colon."""
    if "\t" not in text or len(text) > _MAX_SCANNED_FOR_TABS:
        return
    try:
        for _ in yaml.scan(text, Loader=yaml.FullLoader):
            pass
    except yaml.MarkedYAMLError as fault:
        place = _mark_place(fault.problem_mark)
        if place is not None and _character(text, place) == "\t":
            findings.add("yaml-tab", _TAB_ADVICE, place, excerpt(text, place))


def report_fault(text: str, fault: yaml.YAMLError, findings: Findings) -> None:
    """Report why ``text`` is no YAML."""
    if not isinstance(fault, yaml.MarkedYAMLError) or fault.problem is None:
        findings.add("yaml-syntax", f"not YAML: {shown(str(fault).splitlines()[0])}", (1, 1))
        return
    place = _mark_place(fault.problem_mark) or _mark_place(fault.context_mark) or (1, 1)
    opened = _mark_place(fault.context_mark)
    if fault.problem.startswith(_BLAMES_BEGINNING) and opened:
        place = opened
    tab = _tab(text, place)
    if tab is not None:
        findings.add("yaml-tab", _TAB_ADVICE, tab, excerpt(text, tab))
        return
    hint = _hint(text, place, fault.problem)
    message = f"not YAML: {_words(fault, text, place)}{_context(fault, opened, place)}{hint and f'; {hint}'}"
    findings.add("yaml-syntax", message, place, excerpt(text, place))


def _words(fault: yaml.MarkedYAMLError, text: str, place: Place) -> str:
    problem = str(fault.problem)
    if problem.startswith("found character that cannot start any token"):
        return f"no plain value can begin with '{printable(_character(text, place))}'"
    return next((words for start, words in _PLAIN_WORDS if problem.startswith(start)), shown(problem))


def _context(fault: yaml.MarkedYAMLError, opened: Place | None, place: Place) -> str:
    if opened is None or opened == place or fault.context is None:
        return ""
    what = fault.context.removeprefix("while parsing ").removeprefix("while scanning ")
    return f" ({shown(what)} that begins at line {opened[0]}, column {opened[1]})"


def _hint(text: str, place: Place, problem: str) -> str:
    """What most likely happened, or nothing."""
    line = _lines_to(text, place)[-1]
    if problem.startswith("found unknown escape character"):
        return r"""in double quotes write each backslash twice, as in "\\.", or use single quotes"""
    if problem.startswith("found character that cannot start"):
        return "put the value in quotes"
    spaced = _DEVICE_WITH_SPACE.search(line)
    if problem.startswith("mapping values") and spaced:
        return f'write "{spaced.group(1)}:{spaced.group(2)}" without the space'
    if "expected ',' or" in problem or problem.startswith(_BLAMES_BEGINNING):
        return ""
    return _indentation_hint(text, place)


def _indentation_hint(text: str, place: Place) -> str:
    """Say so when the line is indented unlike every list and mapping that is open above it."""
    *above, line = _lines_to(text, place)
    fitting = _open_indents(above)
    spaces = len(line) - len(line.lstrip(" "))
    if not fitting or spaces in fitting:
        return ""
    *others, widest = [str(indent) for indent in sorted(fitting)]
    expected = f"{', '.join(others)} or {widest}" if others else widest
    return f"the line is indented by {counted(spaces, 'space')}, its neighbours ask for {expected}"


def _open_indents(above: list[str]) -> set[int]:
    """The indentations at which the lists and mappings open above could go on."""
    fitting: set[int] = set()
    for line in reversed(above):
        content = line.lstrip(" ")
        if not content or content.startswith("#"):
            continue
        indent = len(line) - len(content)
        if fitting and indent >= min(fitting):
            continue
        fitting.add(indent)
        dashes = re.match(r"(- +)+", content)
        if dashes is not None:
            fitting.add(indent + dashes.end())
        if indent == 0:
            break
    return fitting


def _lines_to(text: str, place: Place) -> list[str]:
    """The lines up to ``place``'s, at most 1,000 of them."""
    lines = _BREAK.split(text)[: place[0]]
    return lines[-1000:]


def _tab(text: str, place: Place) -> Place | None:
    """The tab to blame: at ``place``, or in its line's indentation."""
    if _character(text, place) == "\t":
        return place
    line = _lines_to(text, place)[-1]
    indentation = line[: len(line) - len(line.lstrip(" \t"))]
    at = indentation.find("\t")
    return None if at < 0 else (place[0], at + 1)


def _character(text: str, place: Place) -> str:
    line = (_lines_to(text, place) or [""])[-1]
    return line[place[1] - 1 : place[1]]


def _mark_place(mark: yaml.Mark | None) -> Place | None:
    return None if mark is None else (mark.line + 1, mark.column + 1)
