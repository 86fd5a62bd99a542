from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.ruleset.findings import Findings
from ktllama.ruleset.yaml_nodes import AbandonedError, Composer, Entry, Mapping, Node, Scalar, Sequence, python_value


def compose(text: str) -> tuple[Node | None, list[str]]:
    findings = Findings("r.yaml")
    try:
        root = Composer(findings).compose(text)
    except AbandonedError:
        root = None
    return root, [str(found) for found in findings.diagnostics()]


def value_of(text: str) -> object:
    root, found = compose(text)
    assert found == []
    assert root is not None
    return python_value(root)


@pytest.mark.parametrize(
    "text",
    [
        "[yes, no, on, off, Yes, TRUE, y, n]",
        "[0o17, 017, 0x1F, 0b11, 1_000, 1:30, 190:20:30, -1, +1]",
        "[1.5, 1e3, 1.0e+3, .5, -.inf, 1_0.5, 1:30.5]",
        "[null, ~, Null, none]",
        "[2020-01-01, 2020-01-01 10:00:00, '2020-01-01', \"yes\"]",
        "[! 12, ! '12', !!str 12, !!int '12', !!float 3, !!binary aGk=, !!null '', ! ]",
        "{a: 1, b: [x, {c: d}]}",
        "{=: a}",
        "a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3, r: 4}\n",
        "a: &x {p: 1}\nb: &y {p: 2, q: 2}\nc: {<<: [*x, *y]}\nd: {<<: [*y, *x]}\n",
        "a: &x {p: 1}\nb: &y {<<: *x, q: 2}\nc: {r: 3, <<: *y}\n",
        "a: {'<<': 1}\n",
        "- |\n  text\n- >-\n  folded\n  text\n",
        "? a\n: b\n",
        "%YAML 1.1\n---\n- a\n...\n",
        "{generate_device: cuda:0}",
    ],
)
def test_values_are_those_of_full_loader(text: str) -> None:
    expected = yaml.load(text, Loader=yaml.FullLoader)
    assert repr(value_of(text)) == repr(expected)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates()
_TREES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner), max_leaves=20
)


@given(_TREES, st.booleans())
@settings(deadline=None)
def test_any_dumped_structure_is_read_back(tree: object, flow: bool) -> None:
    text = yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True).replace("\ufeff", "")
    root, _ = compose(text)
    assert root is not None
    assert python_value(root) == yaml.load(text, Loader=yaml.FullLoader)


def test_every_key_and_value_has_its_place() -> None:
    root, _ = compose("- a: x\n  bc:\n    - 'y'\n")
    inner = Sequence(place=(3, 5), items=(Scalar((3, 7), "y"),), broken=False, size=2, depth=2)
    mapping = Mapping(
        place=(1, 3),
        entries={"a": Entry("a", (1, 3), Scalar((1, 6), "x")), "bc": Entry("bc", (2, 3), inner)},
        broken=False,
        incomplete=False,
        size=6,
        depth=3,
    )
    assert root == Sequence(place=(1, 1), items=(mapping,), broken=False, size=7, depth=4)


def test_the_last_of_two_merges_wins_and_the_repetition_is_told() -> None:
    root, found = compose("a: &x {pp: 1}\nb: &y {pp: 2, q: 2}\nc: {<<: *x, <<: *y}\n")

    assert isinstance(root, Mapping)
    assert python_value(root.entries["c"].node) == {"pp": 2, "q": 2}
    assert found == [
        "r.yaml:3:13: warning: key '<<' appears twice in this mapping, on line 3 and line 3; the last one wins, "
        "delete one of them [duplicate-key]"
    ]


def test_of_a_list_of_merges_the_first_wins() -> None:
    root, found = compose("a: &x {pp: 1}\nb: &y {pp: 2, q: 2}\nc: {<<: [*x, *y]}\n")

    assert isinstance(root, Mapping)
    assert python_value(root.entries["c"].node) == {"pp": 1, "q": 2}
    assert found == []


def test_a_merged_entry_keeps_the_place_it_was_written_at() -> None:
    root, _ = compose("- &x {a: 1}\n- {<<: *x, b: 2}\n")
    assert isinstance(root, Sequence)
    assert isinstance(root.items[1], Mapping)
    assert {key: entry.place for key, entry in root.items[1].entries.items()} == {"a": (1, 7), "b": (2, 12)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a: 1\nb: 2\na: 3\na: 4\n",
            [
                "r.yaml:3:1: warning: key 'a' appears twice in this mapping, on line 1 and line 3; the last one wins, "
                "delete one of them [duplicate-key]",
                "r.yaml:4:1: warning: key 'a' appears twice in this mapping, on line 3 and line 4; the last one wins, "
                "delete one of them [duplicate-key]",
            ],
        ),
        (
            "{1: a, 1.0: b}",
            [
                "r.yaml:1:8: warning: key '1.0' appears twice in this mapping, on line 1 and line 1; the last one "
                "wins, delete one of them [duplicate-key]"
            ],
        ),
        ("- &x {a: 1}\n- {<<: *x, a: 2}\n", []),
        (
            "- *x\n",
            ["r.yaml:1:3: error: alias '*x' is not defined before this line; write the value out [yaml-alias]"],
        ),
        ("- &x [*x]\n", ["r.yaml:1:7: error: alias '*x' refers to itself; write the value out [yaml-alias]"]),
        (
            "- &x a\n- &x b\n",
            ["r.yaml:2:3: error: anchor '&x' is defined twice; give this one another name [yaml-alias]"],
        ),
        (
            "- !!python/name:os.system\n",
            [
                "r.yaml:1:3: error: tag '!!python/name:os.system' is not used in rules and was not obeyed; delete it "
                "[yaml-tag]"
            ],
        ),
        (
            "- !x {a: b}\n",
            ["r.yaml:1:3: error: tag '!x' is not used in rules and was not obeyed; delete it [yaml-tag]"],
        ),
        (
            "- !!map [a]\n",
            ["r.yaml:1:3: error: tag '!!map' is not used in rules and was not obeyed; delete it [yaml-tag]"],
        ),
        ("- =\n", ["r.yaml:1:3: error: a plain '=' is no value in YAML 1.1; quote it if it is text [yaml-tag]"]),
        (
            "- 2020-13-45\n- 2020-13-45\n",
            [
                "r.yaml:1:3: error: '2020-13-45' is read as a YAML timestamp and is none; quote it if it is text "
                "[yaml-value]",
                "r.yaml:2:3: error: '2020-13-45' is read as a YAML timestamp and is none; quote it if it is text "
                "[yaml-value]",
            ],
        ),
        (
            "- !!int ''\n",
            ["r.yaml:1:3: error: '' is read as a YAML int and is none; quote it if it is text [yaml-value]"],
        ),
        ("- [a]: b\n", ["r.yaml:1:3: error: a list cannot be a key; expected a plain key [yaml-key]"]),
        ("- ? {a: b}\n  : c\n", ["r.yaml:1:5: error: a mapping cannot be a key; expected a plain key [yaml-key]"]),
        (
            "- <<: [{a: b}, 5]\n",
            ["r.yaml:1:16: error: '<<' expects a mapping, or a list of mappings, to merge [yaml-merge]"],
        ),
        (
            "- a\n---\n- b\n",
            [
                "r.yaml:2:1: error: a second YAML document begins here; expected one list of rules: remove the '---' "
                "[several-documents]"
            ],
        ),
    ],
)
def test_what_yaml_cannot_mean_is_reported(text: str, expected: list[str]) -> None:
    assert compose(text)[1] == expected


def test_an_alias_bomb_stops_at_its_budget() -> None:
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 12)]
    assert compose("\n".join(lines)) == (
        None,
        [
            "r.yaml:5:43: error: aliases repeat more than 100000 values up to '*a3'; write the rules out [yaml-alias]",
        ],
    )


def test_a_merge_bomb_stops_at_its_budget() -> None:
    keys = ", ".join(f"k{number}: 1" for number in range(100))
    text = f"- &x {{{keys}}}\n" + "- {<<: *x}\n" * 1000
    assert compose(text)[1] == [
        "r.yaml:499:8: error: aliases repeat more than 100000 values up to '*x'; write the rules out [yaml-alias]"
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[" * 500, "1:101"),
        ("{a: " * 1_000, "1:401"),
        ("- " * 1_000 + "a", "1:201"),
        ("- &a " + "[" * 90 + "]" * 90 + "\n- " + "[" * 20 + "*a" + "]" * 20 + "\n", "2:12"),
    ],
)
def test_deep_nesting_stops_early_also_through_aliases(text: str, place: str) -> None:
    assert compose(text) == (
        None,
        [
            f"r.yaml:{place}: error: lists and mappings are nested more than 100 deep; a rule needs five levels "
            "[yaml-depth]"
        ],
    )


def test_nesting_that_libyaml_refuses_itself_is_told_alike() -> None:
    places = ("1:101", "1:1001")  # before and since PyYAML 6.0.4
    root, found = compose("[" * 1_000_000)

    assert root is None
    assert found in [
        [
            f"r.yaml:{place}: error: lists and mappings are nested more than 100 deep; a rule needs five levels "
            "[yaml-depth]"
        ]
        for place in places
    ]


def test_a_number_of_a_thousand_digits_is_none() -> None:
    root, found = compose("1:" * 100_000 + "1")
    assert root == Scalar((1, 1), None, True)
    assert found == [
        f"r.yaml:1:1: error: '{('1:' * 59)[:117]}...' is read as a YAML int and is none; quote it if it is text "
        "[yaml-value]"
    ]
