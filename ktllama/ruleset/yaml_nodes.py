"""YAML text → a tree of values with the place of every key and value.

The values are those of ``yaml.FullLoader`` (YAML 1.1: ``yes`` is true, ``0o17`` a text, ``1_000`` a number; the last of
duplicate keys wins; a mapping's own keys win over merged ones; of several merged mappings the first of a list and the
last ``<<`` win, as YAML and PyYAML before 6.0.4 have it), which ktransformers reads rule files with. The tree is
built from libyaml's event stream without recursion, so neither deep nesting nor alias bombs cost more than their text.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import yaml
from yaml.constructor import FullConstructor
from yaml.resolver import Resolver

from ktllama.ruleset.findings import Findings, Place
from ktllama.ruleset.wording import shown

MAX_DEPTH = 100
#: Nodes that aliases and merge keys may repeat in one file.
MAX_REPEATED_NODES = 100_000
#: A longer number is none; YAML's base 60 would make it expensive.
MAX_NUMBER_CHARACTERS = 1000

_TAG = "tag:yaml.org,2002:"
_MERGE_TAG, _EQUALS_TAG = f"{_TAG}merge", f"{_TAG}value"
_SCALAR_KINDS = frozenset({"null", "bool", "int", "float", "binary", "timestamp", "str"})
_STRING_TAG = f"{_TAG}str"
#: libyaml has a limit of its own since PyYAML 6.0.4, and looks far enough ahead to meet it before ours.
_LIBYAML_TOO_DEEP = "exceeded maximum nesting depth"


# Named tuples, not dataclasses: a file has thousands of nodes, and these cost a third to make.
class Scalar(NamedTuple):
    """A plain value. ``broken`` where it could not be read, which is already reported."""

    place: Place
    value: Hashable
    broken: bool = False

    @property
    def size(self) -> int:
        """Nodes in this tree, aliases written out."""
        return 1

    @property
    def depth(self) -> int:
        """Levels of this tree."""
        return 1


class Sequence(NamedTuple):
    """A list."""

    place: Place
    items: tuple[Node, ...]
    broken: bool
    size: int
    depth: int


class Entry(NamedTuple):
    """A key and its value in a mapping. A merged entry keeps the place that it was written at."""

    key: Hashable
    place: Place
    node: Node


class Mapping(NamedTuple):
    """A mapping, duplicates resolved and merge keys merged, in the order of FullLoader's dict.

    ``incomplete`` where a key or a merge could not be read, so that other keys may seem to be missing.
    """

    place: Place
    entries: dict[Hashable, Entry]
    broken: bool
    incomplete: bool
    size: int
    depth: int


Node = Scalar | Sequence | Mapping


def python_value(node: Node) -> object:
    """The value as ``yaml.FullLoader`` gives it. ``node`` is at most ``MAX_DEPTH`` deep."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [python_value(item) for item in node.items]
    return {entry.key: python_value(entry.node) for entry in node.entries.values()}


class AbandonedError(Exception):
    """Reading stopped; the reason is among the findings."""


@dataclass(frozen=True, slots=True)
class _Special:
    """A plain ``<<`` or ``=``, which has a meaning as a key only."""

    text: str


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet; a mapping's ``nodes`` are key, value, key, value."""

    place: Place
    is_mapping: bool
    anchor: str | None
    broken: bool
    nodes: list[Node] = field(default_factory=list)


class Composer:
    """Builds the tree of one document from its events.

    Raises nothing but ``yaml.YAMLError`` from the parser and ``AbandonedError``.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._resolver = Resolver()
        self._constructor = FullConstructor()
        self._values: dict[str, tuple[Hashable, bool]] = {}
        self._anchors: dict[str, Node | None] = {}
        self._open: list[_Open] = []
        self._repeated = 0
        self._documents = 0

    def compose(self, text: str) -> Node | None:
        """The document's tree, or None when it holds nothing."""
        root: Node | None = None
        try:
            for event in _events(text):
                node = self._node(event)
                if node is None:
                    continue
                if self._open:
                    self._open[-1].nodes.append(node)
                else:
                    root = self._as_value(node)
        except yaml.MarkedYAMLError as fault:
            mark = fault.problem_mark
            if mark is None or not str(fault.problem).startswith(_LIBYAML_TOO_DEEP):
                raise
            self._too_deep((mark.line + 1, mark.column + 1))
        return root

    def _node(self, event: yaml.Event) -> Node | None:
        """The node that ``event`` completes, if it completes one."""
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.CollectionStartEvent):
            self._start(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            return self._end()
        elif isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._findings.add(
                    "several-documents",
                    "a second YAML document begins here; expected one list of rules: remove the '---'",
                    _place(event),
                )
                raise AbandonedError
        return None

    # Scalars

    def _scalar(self, event: yaml.ScalarEvent) -> Node:
        place = _place(event)
        tag = event.tag or "!"
        if tag != "!":
            value, broken = self._value(tag, event.value, place)
        elif event.implicit[0] or (event.tag == "!" and not event.value):
            value, broken = self._plain_value(event.value, place)
        else:
            value, broken = event.value, False
        node = Scalar(place, value, broken)
        if event.anchor is not None:
            self._define(event.anchor, node, place)
        return node

    def _plain_value(self, text: str, place: Place) -> tuple[Hashable, bool]:
        """The value of a scalar without quotes or tag; files repeat few of them, so they are remembered."""
        known = self._values.get(text)
        if known is None:
            tag: str = self._resolver.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
            known = self._value(tag, text, place)
            if not known[1]:
                self._values[text] = known
        return known

    def _value(self, tag: str, text: str, place: Place) -> tuple[Hashable, bool]:
        """The value of a scalar and whether it is broken."""
        if tag == _STRING_TAG:
            return text, False
        if tag in (_MERGE_TAG, _EQUALS_TAG):
            return _Special(text), False
        kind = tag.removeprefix(_TAG)
        if kind not in _SCALAR_KINDS or not tag.startswith(_TAG):
            self._report_tag(tag, place)
            return None, True
        try:
            if len(text) > MAX_NUMBER_CHARACTERS and kind != "binary":
                raise ValueError(len(text))
            value: Hashable = getattr(self._constructor, f"construct_yaml_{kind}")(yaml.ScalarNode(tag, text))
        except (ValueError, LookupError, AttributeError, OverflowError, yaml.YAMLError):
            # PyYAML's constructors expect what its resolver lets through; a tag brings them anything.
            message = f"'{shown(text)}' is read as a YAML {kind} and is none; quote it if it is text"
            self._findings.add("yaml-value", message, place)
            return None, True
        return value, False

    # Lists and mappings

    def _start(self, event: yaml.CollectionStartEvent) -> None:
        place = _place(event)
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        tag = event.tag or "!"
        broken = tag not in ("!", f"{_TAG}map" if is_mapping else f"{_TAG}seq")
        if broken:
            self._report_tag(tag, place)
        if event.anchor is not None:
            self._define(event.anchor, None, place)
        self._open.append(_Open(place, is_mapping, event.anchor, broken))
        if len(self._open) > MAX_DEPTH:
            self._too_deep(place)

    def _end(self) -> Node:
        frame = self._open.pop()
        depth = 1 + max((node.depth for node in frame.nodes), default=0)
        if depth > MAX_DEPTH:
            self._too_deep(frame.place)
        node = self._mapping(frame, depth) if frame.is_mapping else self._sequence(frame, depth)
        if frame.anchor is not None:
            self._anchors[frame.anchor] = node
        return node

    def _sequence(self, frame: _Open, depth: int) -> Sequence:
        items = tuple([self._as_value(node) for node in frame.nodes])
        broken = frame.broken or any(item.broken for item in items)
        return Sequence(frame.place, items, broken, 1 + sum([item.size for item in items]), depth)

    def _mapping(self, frame: _Open, depth: int) -> Mapping:
        own: dict[Hashable, Entry] = {}
        merged: list[Entry] = []
        incomplete = frame.broken
        first_merge: Place | None = None
        for key, value in zip(frame.nodes[::2], frame.nodes[1::2], strict=True):
            if isinstance(key, Scalar) and isinstance(key.value, _Special) and key.value.text == "<<":
                first_merge = self._note_repetition("<<", key, first_merge)
                sources = self._merge_sources(value)
                incomplete |= not sources
                merged += [entry for source in sources for entry in source.entries.values()]
            elif isinstance(key, Scalar):
                entry = self._entry(key, self._as_value(value), own)
                incomplete |= key.broken
                own[entry.key] = entry
            else:
                incomplete = True
                kind = "list" if isinstance(key, Sequence) else "mapping"
                self._findings.add("yaml-key", f"a {kind} cannot be a key; expected a plain key", key.place)
        # A merge puts its keys first, and a later one of the same name keeps the first's place in the order.
        entries = {entry.key: entry for entry in merged} | own if merged else own
        broken = incomplete or any(entry.node.broken for entry in entries.values())
        size = 1 + sum([1 + entry.node.size for entry in entries.values()])
        return Mapping(frame.place, entries, broken, incomplete, size, depth)

    def _entry(self, key: Scalar, value: Node, earlier: dict[Hashable, Entry]) -> Entry:
        name = key.value.text if isinstance(key.value, _Special) else key.value
        first = earlier.get(name)
        if not key.broken:
            self._note_repetition(name, key, first and first.place)
        return Entry(name, key.place, value)

    def _note_repetition(self, name: Hashable, key: Scalar, first: Place | None) -> Place:
        """Report a key that was at ``first`` already; gives the place for the next one's ``first``."""
        if first is not None:
            self._findings.add(
                "duplicate-key",
                f"key '{shown(str(name))}' appears twice in this mapping, on line {first[0]} and line "
                f"{key.place[0]}; the last one wins, delete one of them",
                key.place,
            )
        return first or key.place

    def _merge_sources(self, node: Node) -> list[Mapping]:
        """The mappings that ``<<: node`` merges, weakest first: of a list of mappings, the first one wins."""
        sources = (node,) if not isinstance(node, Sequence) else node.items
        wrong = [source for source in sources if not isinstance(source, Mapping)]
        if wrong and not wrong[0].broken:
            self._findings.add("yaml-merge", "'<<' expects a mapping, or a list of mappings, to merge", wrong[0].place)
        return [source for source in reversed(sources) if isinstance(source, Mapping) and not wrong]

    def _as_value(self, node: Node) -> Node:
        """``node``, unless it has a meaning as a key only."""
        if isinstance(node, Scalar) and isinstance(node.value, _Special):
            self._findings.add(
                "yaml-tag", f"a plain '{node.value.text}' is no value in YAML 1.1; quote it if it is text", node.place
            )
            return Scalar(node.place, None, True)
        return node

    # Anchors and aliases

    def _define(self, anchor: str, node: Node | None, place: Place) -> None:
        """Make an anchor known; its node is None while it is still open."""
        if anchor in self._anchors:
            self._findings.add(
                "yaml-alias", f"anchor '&{shown(anchor)}' is defined twice; give this one another name", place
            )
        self._anchors[anchor] = node

    def _alias(self, event: yaml.AliasEvent) -> Node:
        place, anchor = _place(event), event.anchor or ""
        name, target = shown(anchor), self._anchors.get(anchor)
        if target is None:
            what = "refers to itself" if anchor in self._anchors else "is not defined before this line"
            self._findings.add("yaml-alias", f"alias '*{name}' {what}; write the value out", place)
            return Scalar(place, None, True)
        self._repeated += target.size
        if self._repeated > MAX_REPEATED_NODES:
            self._findings.add(
                "yaml-alias",
                f"aliases repeat more than {MAX_REPEATED_NODES} values up to '*{name}'; write the rules out",
                place,
            )
            raise AbandonedError
        return target

    # Findings

    def _too_deep(self, place: Place) -> None:
        self._findings.add(
            "yaml-depth", f"lists and mappings are nested more than {MAX_DEPTH} deep; a rule needs five levels", place
        )
        raise AbandonedError

    def _report_tag(self, tag: str, place: Place) -> None:
        short = f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) else tag
        self._findings.add(
            "yaml-tag", f"tag '{shown(short)}' is not used in rules and was not obeyed; delete it", place
        )


def _events(text: str) -> Iterator[yaml.Event]:
    """libyaml's events; the pure Python parser's where PyYAML was built without libyaml."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        while (event := loader.get_event()) is not None:
            yield event
    finally:
        loader.dispose()


def _place(event: yaml.Event) -> Place:
    mark = event.start_mark
    assert mark is not None
    return (mark.line + 1, mark.column + 1)
