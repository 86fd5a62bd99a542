from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.diagnostics import Diagnostic, Position, worst
from ktllama.errors import RuleFileError
from ktllama.ruleset import findings
from ktllama.ruleset.loader import MAX_FILE_BYTES, load, loads
from ktllama.ruleset.rules import Rule, Ruleset

SHARED = Path(__file__).parents[3] / "shared/ktransformers"
RULE_FILES = sorted((SHARED / "rules").glob("*.yaml"))
TOY = SHARED / "toy.json"

EMPTY = "r.yaml:1:1: error: the file holds no rules; expected a list of rules, or '[]' if none are meant [empty-file]"
REPLACE = "  replace: {class: default, kwargs: {generate_device: cpu}}\n"


def found(text: str) -> list[str]:
    return [str(diagnostic) for diagnostic in loads(text, "r.yaml").diagnostics]


def at(line: int, column: int) -> Position:
    return Position(file="r.yaml", line=line, column=column)


# Values


def test_a_rule_is_read_whole() -> None:
    text = (
        "- match:\n    name: '^model$'\n    class: torch.nn.Linear\n  replace:\n    class: KDeepseekV2Model\n"
        "    kwargs:\n      generate_device: cuda\n      prefill_device: cuda:1\n      out_device: cpu\n"
        "      generate_op: KLinearMarlin\n      prefill_op: None\n      transfer_map:\n        30: xpu\n"
        "      absorb_for_prefill: yes\n  recursive: False\n"
    )
    positions = {
        "": at(1, 3),
        "match": at(2, 5),
        "match.name": at(2, 11),
        "match.class": at(3, 12),
        "replace": at(5, 5),
        "replace.class": at(5, 12),
        "replace.kwargs": at(7, 7),
        "replace.kwargs.generate_device": at(7, 24),
        "replace.kwargs.prefill_device": at(8, 23),
        "replace.kwargs.out_device": at(9, 19),
        "replace.kwargs.generate_op": at(10, 20),
        "replace.kwargs.prefill_op": at(11, 19),
        "replace.kwargs.transfer_map": at(13, 9),
        "replace.kwargs.transfer_map.30": at(13, 13),
        "replace.kwargs.absorb_for_prefill": at(14, 27),
        "recursive": at(15, 14),
    }
    rule = Rule(
        index=0,
        name="^model$",
        class_path="torch.nn.Linear",
        replace_class="KDeepseekV2Model",
        generate_device="cuda:0",
        prefill_device="cuda:1",
        out_device="cpu",
        generate_op="KLinearMarlin",
        prefill_op=None,
        transfer_map={30: "xpu:0"},
        kwargs={
            "generate_device": "cuda",
            "prefill_device": "cuda:1",
            "out_device": "cpu",
            "generate_op": "KLinearMarlin",
            "prefill_op": "None",
            "transfer_map": {30: "xpu"},
            "absorb_for_prefill": True,
        },
        recursive=False,
        positions=positions,
    )
    assert loads(text, "r.yaml") == Ruleset(file="r.yaml", rules=(rule,))


def test_what_a_rule_leaves_out_has_defaults() -> None:
    ruleset = loads("- match: {class: Linear}\n  replace: {}\n", "r.yaml")
    positions = {"": at(1, 3), "match": at(1, 10), "match.class": at(1, 18), "replace": at(2, 12)}
    assert ruleset == Ruleset(
        file="r.yaml", rules=(Rule(index=0, name=None, class_path="Linear", positions=positions),)
    )


def test_null_kwargs_are_none() -> None:
    (rule,) = loads("- match: {name: a}\n  replace: {kwargs: }\n").rules
    assert (rule.kwargs, rule.generate_device, rule.replace_class) == ({}, None, "default")


@pytest.mark.parametrize("text", ["[]", "--- []\n", "# nothing\n[]\n"])
def test_an_empty_list_has_no_rules(text: str) -> None:
    assert loads(text, "r.yaml") == Ruleset(file="r.yaml", rules=())


def test_a_rule_with_an_error_is_left_out_and_the_others_keep_their_index() -> None:
    ruleset = loads(f"- match: {{name: a}}\n{REPLACE}- 5\n- match: {{name: c}}\n{REPLACE}", "r.yaml")
    assert [(rule.index, rule.name) for rule in ruleset.rules] == [(0, "a"), (2, "c")]
    assert worst(ruleset.diagnostics) == "error"


@pytest.mark.parametrize(
    ("written", "recursive"),
    [("False", False), ("no", False), ("off", False), ("0", False), ("True", True), ("yes", True), ("1", True)],
)
def test_recursive_is_a_boolean_or_zero_or_one(written: str, recursive: bool) -> None:
    ruleset = loads(f"- match: {{name: a}}\n{REPLACE}  recursive: {written}\n")
    assert [rule.recursive for rule in ruleset.rules] == [recursive]
    assert ruleset.diagnostics == ()


def test_an_alias_is_read_as_what_it_stands_for() -> None:
    text = "- match: {name: a}\n  replace: &r {kwargs: {generate_device: cuda:2}}\n- match: {name: b}\n  replace: *r\n"
    assert [rule.generate_device for rule in loads(text).rules] == ["cuda:2", "cuda:2"]


# Findings in YAML


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "",
            EMPTY,
        ),
        (
            "# only a comment\n",
            EMPTY,
        ),
        ("a", "r.yaml:1:1: error: the file is the text 'a'; expected a list of rules [not-a-list]"),
        ("7", "r.yaml:1:1: error: the file is the number 7; expected a list of rules [not-a-list]"),
        (
            "match: {name: a}\nreplace: {}\n",
            "r.yaml:1:1: error: the file is a mapping; expected a list of rules: put '- ' before the first key and "
            "indent the others by two spaces [not-a-list]",
        ),
        (
            "rules:\n- match: {name: a}\n",
            "r.yaml:1:1: error: the file is a mapping; expected a list of rules: remove the key 'rules' above the list "
            "[not-a-list]",
        ),
        (
            '- match:\n    name: "^model\\.layers"\n',
            "r.yaml:2:18: error: not YAML: an escape that double-quoted YAML text does not have (a quoted scalar that "
            'begins at line 2, column 11); in double quotes write each backslash twice, as in "\\\\.", or use single '
            'quotes [yaml-syntax]\n        name: "^model\\.layers"\n                     ^',
        ),
        (
            "- match:\n    name: a\n   class: b\n",
            "r.yaml:3:4: error: not YAML: expected the next key of the mapping (a block mapping that begins at line 1, "
            "column 3); the line is indented by 3 spaces, its neighbours ask for 0, 2 or 4 [yaml-syntax]\n"
            "       class: b\n       ^",
        ),
        (
            "- match:\n    name: a\n     class: b\n",
            "r.yaml:3:11: error: not YAML: a ':' stands where no key can be; the line is indented by 5 spaces, its "
            "neighbours ask for 0, 2 or 4 [yaml-syntax]\n         class: b\n              ^",
        ),
        (
            "- match:\n    name: a\n  replace\n    class: b\n",
            "r.yaml:3:3: error: not YAML: expected ':' after a key [yaml-syntax]\n      replace\n      ^",
        ),
        (
            "- generate_device: cuda: 0\n",
            "r.yaml:1:24: error: not YAML: a ':' stands where no key can be; write \"cuda:0\" without the space "
            "[yaml-syntax]\n    - generate_device: cuda: 0\n                           ^",
        ),
        (
            "- name: 'abc\n- b\n",
            "r.yaml:1:9: error: not YAML: the quote that opens here is never closed [yaml-syntax]\n"
            "    - name: 'abc\n            ^",
        ),
        (
            "- a: [1, 2\n- c\n",
            "r.yaml:3:1: error: not YAML: expected ',' or the ']' that closes the list (a flow sequence that begins at "
            "line 1, column 6) [yaml-syntax]\n    \n    ^",
        ),
        (
            "- name: @x\n",
            "r.yaml:1:9: error: not YAML: no plain value can begin with '@'; put the value in quotes [yaml-syntax]\n"
            "    - name: @x\n            ^",
        ),
        (
            "- match:\n\tname: a\n",
            "r.yaml:2:1: error: YAML does not allow a tab here; write spaces instead [yaml-tab]\n    \\tname: a\n    ^",
        ),
        (
            "- \x1b[31m\n",
            "r.yaml:1:3: error: character U+001B is not allowed in YAML; delete it [yaml-character]\n"
            "    - \\x1b[31m\n      ^",
        ),
        (
            "a\n- \ud800\n",
            "r.yaml:2:3: error: character U+D800 is not allowed in YAML; delete it [yaml-character]\n"
            "    - \\ud800\n      ^",
        ),
    ],
)
def test_a_file_that_is_no_list_of_rules(text: str, expected: str) -> None:
    assert found(text) == [expected]


def test_a_tab_after_a_colon_is_refused_as_ktransformers_does() -> None:
    assert found(f"- match: {{name: a}}\n{REPLACE}  recursive:\tTrue\n") == [
        "r.yaml:3:13: error: YAML does not allow a tab here; write spaces instead [yaml-tab]\n"
        "      recursive:\\tTrue\n                ^"
    ]


def test_a_tab_in_a_comment_or_in_quotes_is_legal() -> None:
    assert found(f"- match: {{name: 'a\tb'}} #\tcomment\n{REPLACE}") == []


def test_a_byte_order_mark_is_skipped() -> None:
    assert found("\ufeffx") == ["r.yaml:1:1: error: the file is the text 'x'; expected a list of rules [not-a-list]"]


# Findings in rules


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "- 5\n-\n- [x]\n",
            [
                "r.yaml:1:3: error: rule 0 is the number 5; expected a mapping with match and replace "
                "[rule-not-a-mapping]",
                "r.yaml:2:2: error: rule 1 is nothing (null); expected a mapping with match and replace "
                "[rule-not-a-mapping]",
                "r.yaml:3:3: error: rule 2 is a list; expected a mapping with match and replace [rule-not-a-mapping]",
            ],
        ),
        (
            "- {}\n",
            [
                "r.yaml:1:3: error: the rule has no match; expected match with name, class or both [missing-key]",
                "r.yaml:1:3: error: the rule has no replace; expected replace with class and kwargs [missing-key]",
            ],
        ),
        (
            "- match: x\n  replace:\n",
            [
                "r.yaml:1:10: error: match expects a mapping with name, class or both, found the text 'x' [wrong-type]",
                "r.yaml:2:11: error: replace expects a mapping with class and kwargs, found nothing "
                "(null) [wrong-type]",
            ],
        ),
        (
            "- match: {name: 5, class: }\n  replace: {class: 1.5, kwargs: [a]}\n",
            [
                "r.yaml:1:17: error: match.name expects a text, found the number 5; quote it [wrong-type]",
                "r.yaml:1:27: error: match.class expects a text, found nothing (null) [wrong-type]",
                "r.yaml:2:20: error: replace.class expects a text, found the number 1.5; quote it [wrong-type]",
                "r.yaml:2:33: error: replace.kwargs expects a mapping of arguments, found a list [wrong-type]",
            ],
        ),
        (
            f"- match: {{nmae: a}}\n{REPLACE}",
            [
                "r.yaml:1:10: error: match has neither name nor class; expected at least one of them [missing-key]",
                "r.yaml:1:11: warning: match has an unknown key 'nmae', which has no effect; did you mean 'name'? "
                "[unknown-key]",
            ],
        ),
        (
            "- match: {class: not a class}\n  replace: {class: ''}\n",
            [
                "r.yaml:1:18: error: match.class 'not a class' is no class; expected a dotted path such as "
                "torch.nn.Linear [bad-class]",
                "r.yaml:2:20: error: replace.class '' is no class; expected a dotted path such as torch.nn.Linear "
                "[bad-class]",
            ],
        ),
        (
            f"- match: {{name: a}}\n{REPLACE}{REPLACE}",
            [
                "r.yaml:3:3: warning: key 'replace' appears twice in this mapping, on line 2 and line 3; the last one "
                "wins, delete one of them [duplicate-key]"
            ],
        ),
        (
            f"- match: {{name: a, recursive: no}}\n{REPLACE}  class: b\n  generate_device: cpu\n  1: 2\n  zzz: 3\n",
            [
                "r.yaml:1:20: warning: 'recursive' has no effect in match; put it beside match and replace "
                "[misplaced-key]",
                "r.yaml:3:3: warning: 'class' has no effect in the rule; put it under match to "
                "select, under replace to "
                "say what replaces [misplaced-key]",
                "r.yaml:4:3: warning: 'generate_device' has no effect in the rule; put it under replace, in kwargs "
                "[misplaced-key]",
                "r.yaml:5:3: warning: the rule has the number 1 as a key; it has no effect [unknown-key]",
                "r.yaml:6:3: warning: the rule has an unknown key 'zzz', which has no effect [unknown-key]",
            ],
        ),
        (
            "- match: {name: a}\n  replace:\n    recursive: False\n    device: cpu\n    kwarg: {}\n    prefill_op: x\n",
            [
                "r.yaml:3:5: warning: 'recursive' has no effect in replace; put it beside match and replace "
                "[misplaced-key]",
                "r.yaml:4:5: warning: 'device' has no effect in replace; write generate_device, and "
                "prefill_device if it "
                "differs, under kwargs [misplaced-key]",
                "r.yaml:5:5: warning: replace has an unknown key 'kwarg', which has no effect; did you mean 'kwargs'? "
                "[unknown-key]",
                "r.yaml:6:5: warning: 'prefill_op' has no effect in replace; put it under kwargs [misplaced-key]",
            ],
        ),
        (
            f'- match: {{name: a}}\n{REPLACE}  recursive: "False"\n',
            [
                "r.yaml:3:14: warning: recursive is the text 'False', which does not cut the subtree; write False, "
                "without quotes [odd-recursive]"
            ],
        ),
        (
            f"- match: {{name: a}}\n{REPLACE}  recursive:\n",
            [
                "r.yaml:3:13: warning: recursive is nothing (null), which cuts the subtree; write True or False, "
                "without quotes [odd-recursive]"
            ],
        ),
        (
            f"- match: {{name: a}}\n{REPLACE}  recursive: []\n",
            [
                "r.yaml:3:14: warning: recursive is a list, which cuts the subtree; write True or "
                "False, without quotes "
                "[odd-recursive]"
            ],
        ),
        (
            "- match: {name: a}\n  replace: {class: ktransformers.operators.gate.KMoEGat}\n",
            [
                "r.yaml:2:20: warning: ktransformers has no class 'ktransformers.operators.gate.KMoEGat' for replace; "
                "placement does not depend on it; did you mean 'ktransformers.operators.gate.KMoEGate'? [unknown-class]"
            ],
        ),
        (
            "- match: {name: a}\n  replace: {class: x.KTransformersMLPExpert}\n",
            [
                "r.yaml:2:20: warning: class 'x.KTransformersMLPExpert' is from an old ktransformers; write "
                "KTransformersExperts [old-name]"
            ],
        ),
        (
            "- match: {<<: *nowhere}\n  replace: {kwargs: {generate_device: *gone}}\n",
            [
                "r.yaml:1:15: error: alias '*nowhere' is not defined before this line; write the "
                "value out [yaml-alias]",
                "r.yaml:2:39: error: alias '*gone' is not defined before this line; write the value out [yaml-alias]",
            ],
        ),
    ],
)
def test_what_is_wrong_with_a_rule(text: str, expected: list[str]) -> None:
    assert found(text) == expected


def test_a_recursive_text_does_not_cut() -> None:
    (rule,) = loads(f'- match: {{name: a}}\n{REPLACE}  recursive: "False"\n').rules
    assert rule.recursive is True


# Files


def test_a_file_is_named_in_its_positions(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_bytes(b"\xef\xbb\xbf7")
    position = Position(file=str(path), line=1, column=1)
    message = "the file is the number 7; expected a list of rules"
    assert load(path) == Ruleset(
        file=str(path),
        rules=(),
        diagnostics=(Diagnostic(code="not-a-list", severity="error", message=message, position=position),),
    )


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    not_utf8, large = tmp_path / "latin", tmp_path / "large"
    not_utf8.write_bytes(b"- caf\xe9\n")
    large.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    reasons = {
        tmp_path / "missing": "no such file",
        tmp_path: "a directory, not a rule file",
        not_utf8: "not UTF-8 text: byte 5 is 0xe9",
        large: "larger than 10 MB, which no rule file is",
    }
    for path, reason in reasons.items():
        with pytest.raises(RuleFileError) as caught:
            load(path)
        assert str(caught.value) == f"{path}: {reason}"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", ": the path of the rule file is empty"),
        ("no\0thing", "no\\x00thing: embedded null byte"),
        ("no\x1b[31mfile", "no\\x1b[31mfile: no such file"),
    ],
)
def test_a_path_that_names_no_file(path: str, message: str) -> None:
    with pytest.raises(RuleFileError) as caught:
        load(path)
    assert str(caught.value) == message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("[]")
    path.chmod(0)
    with pytest.raises(RuleFileError) as caught:
        load(path)
    assert caught.value.reason == "no permission to read it"


# Real files


@pytest.mark.skipif(not RULE_FILES, reason="the real rule files are not here")
@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.name)
def test_a_real_file_loads_without_findings(path: Path) -> None:
    ruleset = load(path)
    written = yaml.load(path.read_text("utf-8"), Loader=yaml.FullLoader)
    assert ruleset.diagnostics == ()
    assert [(rule.name, rule.class_path, rule.replace_class, rule.kwargs) for rule in ruleset.rules] == [
        (
            entry["match"].get("name"),
            entry["match"].get("class"),
            entry["replace"].get("class", "default"),
            entry["replace"].get("kwargs") or {},
        )
        for entry in written
    ]


#: Errors of ktransformers that lie in a class's import, which ktllama finds against the module tree, if at all.
_FOUND_LATER = {"class: module does not exist", "class: not a class"}


@pytest.mark.skipif(not TOY.exists(), reason="the toy cases are not here")
def test_toy_cases_are_refused_and_accepted_as_by_ktransformers() -> None:
    for case in json.loads(TOY.read_text("utf-8"))["cases"]:
        ruleset = loads(case["yaml"])
        if "error" in case and case["what"] not in _FOUND_LATER:
            assert worst(ruleset.diagnostics) == "error", case["what"]
        elif case["yaml"]:
            assert worst(ruleset.diagnostics) != "error", case["what"]


@pytest.mark.skipif(not TOY.exists(), reason="the toy cases are not here")
def test_toy_rules_have_the_devices_and_recursion_that_yaml_gives_there() -> None:
    for case in json.loads(TOY.read_text("utf-8"))["cases"]:
        written = yaml.load(case["yaml"], Loader=yaml.FullLoader) if "error" not in case else None
        expected = [
            (
                (entry["replace"].get("kwargs") or {}).get("generate_device"),
                bool(entry.get("recursive", True)),
            )
            for entry in written or []
        ]
        if written is not None:
            read = [(rule.kwargs.get("generate_device"), rule.recursive) for rule in loads(case["yaml"]).rules]
            assert read == expected, case["what"]


# Hostile text

_FRAGMENTS = st.sampled_from(
    [
        *("- ", "match: ", "name: ", "replace: ", "class: ", "kwargs: ", "recursive: ", "{", "}", "[", "]", ",", ": "),
        *("\n", "  ", "&a ", "*a", "<<: ", "!!int ", "'", '"', "\\", "#", "\t", "~", "cuda: 0", "[4-10]", "-1", "? "),
        *("- match: {name: a}\n  replace: {}\n", "transfer_map: ", "generate_device: ", "\x00", "\ud800", "\x85"),
    ]
)


@given(st.text() | st.lists(_FRAGMENTS).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_text_raises(text: str) -> None:
    ruleset = loads(text)
    assert all(str(diagnostic).replace("\n", "").isprintable() for diagnostic in ruleset.diagnostics)


_KEYS = st.sampled_from(
    ["match", "replace", "recursive", "name", "class", "kwargs", "transfer_map", "generate_device", "generate_op"]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["cpu", "cuda", "[1-20]"]),
    lambda inner: st.lists(inner) | st.dictionaries(_KEYS | st.text() | st.integers() | st.none(), inner),
    max_leaves=30,
)


@given(st.lists(st.dictionaries(_KEYS, _VALUES)) | _VALUES)
@settings(max_examples=100, deadline=None)
def test_no_structure_raises(tree: object) -> None:
    ruleset = loads(yaml.safe_dump(tree, allow_unicode=True))
    assert all(str(diagnostic).replace("\n", "").isprintable() for diagnostic in ruleset.diagnostics)


def test_ten_thousand_rules_are_read() -> None:
    ruleset = loads(f"- match: {{name: a}}\n{REPLACE}" * 10_000)
    assert (len(ruleset.rules), ruleset.diagnostics) == (10_000, ())


def test_a_megabyte_of_name_is_cut_in_the_message() -> None:
    long = "x" * 1_000_000
    assert found(f"- match: {{name: a, ? {long} : b}}\n  replace: {{class: {long}}}\n") == [
        f"r.yaml:1:22: warning: match has an unknown key '{'x' * 117}...', which has no effect [unknown-key]",
        f"r.yaml:2:20: error: replace.class '{'x' * 117}...' is no class; expected a dotted path such as "
        "torch.nn.Linear [bad-class]",
    ]


def test_only_so_many_findings_are_kept_and_errors_have_their_own_room() -> None:
    warnings = f"- match: {{name: a, nmae: b}}\n{REPLACE}" * 2 * findings.MAX_KEPT
    ruleset = loads(warnings + "- 5\n", "r.yaml")
    assert [diagnostic.code for diagnostic in ruleset.diagnostics] == [
        *["unknown-key"] * findings.MAX_KEPT,
        "rule-not-a-mapping",
        "too-many-findings",
    ]


def test_an_alias_of_a_wrong_rule_is_reported_once_and_left_out_each_time() -> None:
    text = "- &r {match: {name: '('}, replace: {}}\n- *r\n"
    ruleset = loads(text, "r.yaml")
    assert ruleset == Ruleset(
        file="r.yaml",
        rules=(),
        diagnostics=(
            Diagnostic(
                code="bad-regex",
                severity="error",
                message="'(' is no Python regular expression: missing ), unterminated subpattern at character 1",
                position=at(1, 21),
                excerpt=("(", "^"),
            ),
        ),
    )
