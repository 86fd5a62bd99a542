from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.r1.json_reader import JsonReader
from ktllama.r1.tool_calls import (
    ArgumentsText,
    CallClosed,
    CallOpened,
    ContentText,
    FoldedCall,
    FoldedTools,
    ToolCallParser,
    fold_tools,
)
from ktllama.r1.tool_formats import FORMATS, ToolFormatName

CB, CE, B, E, SEP = (f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep"))
R1 = f'{B}function{SEP}f\n```json\n{{"a": 1}}\n```{E}'
R1_G = f"{B}function{SEP}g\n```json\n{{}}\n```{E}"
HERMES = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def call(index: int, name: str, arguments: str, complete: bool = True) -> FoldedCall:
    return FoldedCall(id=f"call_{index}", name=name, arguments=arguments, complete=complete)


F = call(0, "f", '{"a": 1}')


@dataclass(frozen=True)
class Case:
    tool_format: ToolFormatName
    text: str
    content: str | None
    calls: tuple[FoldedCall, ...] = ()


CASES = [
    Case("deepseek-r1", "just text", "just text"),
    Case("deepseek-r1", f"{CB}{R1}{CE}", None, (F,)),
    Case("deepseek-r1", f"Let me look.\n\n{CB}{R1}{CE}", "Let me look.", (F,)),
    Case("deepseek-r1", f"{CB}{R1}\n{R1_G}{CE}", None, (F, call(1, "g", "{}"))),
    Case("deepseek-r1", f"{CB}{R1}{R1_G}{CE}\n done", "\n done", (F, call(1, "g", "{}"))),
    # what models leave out
    Case("deepseek-r1", f"{R1}", None, (F,)),
    Case("deepseek-r1", f"{R1}\n", None, (F,)),
    Case("deepseek-r1", f"{CB}{R1}", None, (F,)),
    Case("deepseek-r1", f'{CB}{B}function{SEP}f\n{{"a": 1}}{E}{CE}', None, (F,)),
    Case("deepseek-r1", f'{CB}{B}function{SEP}f\n```\n{{"a": 1}}\n```{E}{CE}', None, (F,)),
    Case("deepseek-r1", f'{CB}{B}function{SEP}f\n```json\n{{"a": 1}}\n```\n{CE}', None, (F,)),
    Case("deepseek-r1", f'{CB}{B}function{SEP}f\n```json\n{{"a": 1}}{CE}', None, (F,)),
    Case(
        "deepseek-r1",
        f'{CB}{B}function{SEP}f\n```json\n{{"a": 1}}\n{R1_G}{CE}',
        None,
        (F, call(1, "g", "{}")),
    ),
    Case("deepseek-r1", f'{CB}{B}function{SEP}f\n```json\n{{"a": 1}}', None, (F,)),
    Case("deepseek-r1", f'{B}f{SEP}{{"a": 1}}{E}', None, (F,)),
    # something else behind the arguments
    Case("deepseek-r1", f'{B}f{SEP}{{"a": 1}} \n``x', " \n``x", (F,)),
    Case("deepseek-r1", f'{B}f{SEP}{{"a": 1}}\n``` \n<x', "<x", (F,)),
    Case("deepseek-r1", f'{B}f{SEP}{{"a": 1}}\n```\n```', "```", (F,)),
    Case("deepseek-r1", f'{B}f{SEP}{{"a": 1}}\n{E[:5]} {E[5:]}', f"\n{E[:5]} {E[5:]}", (F,)),
    Case("deepseek-r1", f'{B}f{SEP}{{"a": 1}}\n{E[:5]} \n', None, (F,)),
    # cut off
    Case("deepseek-r1", f'{CB}{B}function{SEP}f\n```json\n{{"a"', None, (call(0, "f", '{"a"', complete=False),)),
    Case("deepseek-r1", f"{CB}{B}function{SEP}f\n```json\n", f"{CB}{B}function{SEP}f\n```json\n"),
    Case("deepseek-r1", f"text {CB}", f"text {CB}"),
    Case("deepseek-r1", "text <｜tool▁ca", "text <｜tool▁ca"),
    Case("deepseek-r1", f"{CB}{R1}\n<｜tool▁ca", None, (F,)),
    Case("deepseek-r1", f"{CB}{R1}\n{B}function{SEP}", None, (F,)),
    Case("hermes", f'{HERMES}\n<tool_call>{{"name": "f', None, (F,)),
    Case("hermes", f"{HERMES}\nand <tool", "\nand <tool", (F,)),
    # malformed: comes back
    Case("deepseek-r1", f"{CB} I call nothing {CE}", f"{CB} I call nothing {CE}"),
    Case("deepseek-r1", f"{CB}{B}no separator\n{E}{CE}", f"{CB}{B}no separator\n{E}{CE}"),
    Case(
        "deepseek-r1",
        f"{CB}{B}function{SEP}f\n```json\n[1]\n```{E}{CE}",
        f"{CB}{B}function{SEP}f\n```json\n[1]\n```{E}{CE}",
    ),
    Case("deepseek-r1", f"{B}function{SEP}f\n```python\n", f"{B}function{SEP}f\n```python\n"),
    Case("deepseek-r1", f"{B}oops\n{R1}{CE}", f"{B}oops", (F,)),
    Case("deepseek-r1", f'{B}function{SEP}f\n{{"a": oops}}', "oops}", (call(0, "f", '{"a": ', complete=False),)),
    # markers within arguments are text
    Case(
        "deepseek-r1", f'{B}function{SEP}f\n{{"a": "{E}{CE}```"}}{E}', None, (call(0, "f", f'{{"a": "{E}{CE}```"}}'),)
    ),
    # a line break within a string, which JSON forbids
    Case("deepseek-r1", f'{B}function{SEP}f\n{{"a": "x\n\ty"}}{E}', None, (call(0, "f", '{"a": "x\\n\\ty"}'),)),
    Case(
        "deepseek-v3.1", f'{CB}{B}f{SEP}{{"a": 1}}{E}{B}function{SEP}{{}}{E}{CE}', None, (F, call(1, "function", "{}"))
    ),
    Case("hermes", HERMES, None, (F,)),
    Case("hermes", f"Look:\n{HERMES}\n{HERMES}\n", "Look:", (F, call(1, "f", '{"a": 1}'))),
    Case("hermes", f"{HERMES}\nand so", "\nand so", (F,)),
    Case("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', None, (F,)),
    Case("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', None, (F,)),
    Case("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}, "id": [{}]}</tool_call>', None, (F,)),
    Case("hermes", '<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', None, (F,)),
    Case("hermes", '<tool_call>{"name": "f"}</tool_call>', None, (call(0, "f", "{}"),)),
    Case("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}}</tool_call>', "}", (F,)),
    Case("hermes", '<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>'),
    Case("hermes", '<tool_call>{"name": "f", "argum', '<tool_call>{"name": "f", "argum'),
    Case("hermes", '<tool_call>{"name": "f", "arguments": {"a', None, (call(0, "f", '{"a', complete=False),)),
    # half of a surrogate pair, which no answer could be encoded with
    Case("hermes", '<tool_call>{"name": "f\\ud800", "arguments": {}}</tool_call>', None, (call(0, "f\ufffd", "{}"),)),
    Case(
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>',
        None,
        (call(0, "f", '{"a": "\\ud800"}'),),
    ),
    Case(
        "hermes",
        '<tool_call>{"arguments": {"a": "é\\ud800"}, "name": "f\\udc00"}</tool_call>',
        None,
        (call(0, "f\ufffd", '{"a": "\\u00e9\\ud800"}'),),
    ),
    Case(
        "hermes",
        '<tool_call>{"arguments": {"a": "\\ud83d\\ude00"}, "name": "f"}</tool_call>',
        None,
        (call(0, "f", '{"a": "😀"}'),),
    ),
    Case("hermes", "a <tool_call> is a tag, </tool_call> too", "a <tool_call> is a tag, </tool_call> too"),
    Case("hermes", f"<tool_call>no{HERMES}", "<tool_call>no", (F,)),
]
named = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.tool_format}-{case.text[:40]!r}")


def parsed(tool_format: ToolFormatName, chunks: list[str]) -> FoldedTools:
    parser = ToolCallParser(tool_format)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return fold_tools(events + parser.finish())


@named
def test_whole(case: Case) -> None:
    assert parsed(case.tool_format, [case.text]) == FoldedTools(content=case.content, calls=case.calls)


@named
def test_split_anywhere(case: Case) -> None:
    for at in range(len(case.text) + 1):
        answer = parsed(case.tool_format, [case.text[:at], case.text[at:]])
        assert answer == FoldedTools(content=case.content, calls=case.calls)


@named
def test_one_character_at_a_time(case: Case) -> None:
    assert parsed(case.tool_format, list(case.text)) == FoldedTools(content=case.content, calls=case.calls)


def test_a_number_of_more_digits_than_python_reads_makes_no_call() -> None:
    text = f'<tool_call>{{"arguments": {{"a": {"1" * 5000}}}, "name": "f"}}</tool_call>'

    assert parsed("hermes", [text]) == FoldedTools(content=text, calls=())


def test_any_number_of_blanks_may_stand_around_the_end_of_a_call() -> None:
    blanks = " \n" * 500_000  # quadratic work would take an hour
    body = f'{B}function{SEP}f\n```json\n{{"a": 1}}'

    assert parsed("deepseek-r1", [CB + body + blanks, "```" + blanks + E, CE]).calls == (F,)
    assert parsed("deepseek-r1", [body + blanks, "word"]) == FoldedTools(content=blanks + "word", calls=(F,))
    assert parsed("deepseek-r1", [body + "```" + blanks, "`"]) == FoldedTools(content="`", calls=(F,))


SNIPPETS = [CB, CE, B, E, SEP, R1, HERMES, "<tool_call>", "</tool_call>", '{"name": "f", "arguments": ', '{"a": 1}']
WORDS = ["function", "f", "\n", "```json\n", "\n```", "{", "}", '"', "[", "1", ",", ":", "<", "word ", "<｜tool"]
PARTS = st.lists(st.sampled_from([*SNIPPETS, *WORDS]), max_size=14).map("".join)
FORMAT = st.sampled_from(list(FORMATS))


@settings(deadline=None, max_examples=60)
@given(text=PARTS, tool_format=FORMAT, data=st.data())
def test_chunks_make_no_difference(text: str, tool_format: ToolFormatName, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    chunks = [text[a:b] for a, b in itertools.pairwise(cuts)]
    assert parsed(tool_format, chunks) == parsed(tool_format, [text])


@settings(deadline=None, max_examples=60)
@given(text=PARTS, tool_format=FORMAT)
def test_complete_calls_hold_json_objects_and_words_are_never_lost(text: str, tool_format: ToolFormatName) -> None:
    answer = parsed(tool_format, [text])
    for made in answer.calls:
        if made.complete:
            assert isinstance(json.loads(made.arguments), dict)
    said = (answer.content or "") + "".join(made.arguments for made in answer.calls)
    assert said.count("word") == text.count("word")


ARGUMENTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(calls=st.lists(st.tuples(st.from_regex(r"[a-zA-Z_][\w.-]{0,20}", fullmatch=True), ARGUMENTS), min_size=1, max_size=3), tool_format=FORMAT)  # fmt: skip
def test_what_is_rendered_is_parsed(calls: list[tuple[str, dict[str, object]]], tool_format: ToolFormatName) -> None:
    text = FORMATS[tool_format].calls([(name, json.dumps(arguments)) for name, arguments in calls])
    answer = parsed(tool_format, [text])
    assert answer.content is None
    assert [(made.name, json.loads(made.arguments), made.complete) for made in answer.calls] == [
        (name, arguments, True) for name, arguments in calls
    ]


def test_arguments_stream() -> None:
    parser = ToolCallParser("hermes", id_prefix="x", first_index=2)
    assert parser.feed('hm <tool_call>{"name": "f", ') == [ContentText("hm")]
    assert parser.feed('"arguments": {"a"') == [CallOpened(2, "x2", "f"), ArgumentsText(2, '{"a"')]
    assert parser.feed(": [1") == [ArgumentsText(2, ": [1")]
    assert parser.feed("]}") == [ArgumentsText(2, "]}")]
    assert parser.feed("}") == [CallClosed(2)]
    assert parser.feed("</tool_call>") == []
    assert parser.finish() == []


def read(text: str) -> tuple[str, bool]:
    reader = JsonReader()
    written = ""
    for character in text:
        step = reader.feed(character)
        if step is None:
            break
        written += step
    return written, reader.complete


@settings(deadline=None, max_examples=60)
@given(value=ARGUMENTS, indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_the_reader_takes_json(value: dict[str, object], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read(text) == (text, True)


@settings(deadline=None, max_examples=60)
@given(text=st.text(alphabet='{}[]",:\\ntrue1.-eE0 u', max_size=20).map("{".__add__))
def test_the_reader_takes_nothing_else(text: str) -> None:
    written, complete = read(text)
    if complete:
        assert isinstance(json.loads(written), dict)
        return
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    assert value is None


@pytest.mark.parametrize("text", ['{"a": 01}', '{"a": 1.}', '{"a": nul}', "{,}", '{"a" 1}', '{"a": "\\x"}', '{"a": [1,]}', "{1: 2}", '{"a": -}', '{"a": NaN}', '{"a": "\\u12g4"}', '{"a": }', '{"a": 1,}', "[]", '"a"', '{"a": ' + "[" * 200])  # fmt: skip
def test_the_reader_stops_at_what_is_no_json(text: str) -> None:
    written, complete = read(text)
    assert not complete
    assert len(written) < len(text)


def test_the_reader_stops_behind_the_object() -> None:
    assert read("{} {}") == ("{}", True)


def test_formats_are_those_of_the_published_templates() -> None:
    calls = [("f", "{}"), ("g", "{}")]
    assert FORMATS["deepseek-r1"].calls(calls) == (
        f"{CB}{B}function{SEP}f\n```json\n{{}}\n```{E}\n{B}function{SEP}g\n```json\n{{}}\n```{E}{CE}"
    )
    assert FORMATS["deepseek-v3.1"].calls(calls) == f"{CB}{B}f{SEP}{{}}{E}{B}g{SEP}{{}}{E}{CE}"
    assert not re.search("｜", FORMATS["hermes"].calls(calls))
