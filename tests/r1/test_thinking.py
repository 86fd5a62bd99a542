from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.r1.delta import Delta, Folded, fold
from ktllama.r1.thinking import ThinkingParser, ThinkingTokenParser

OPEN, CLOSE = 128798, 128799
TOOL = "<｜tool▁calls▁begin｜>"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model's whole text and the answer that it is."""

    number: int
    start: bool
    text: str
    reasoning: str | None
    content: str | None
    cut_off: bool = False
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case(number=1, start=True, text="because\n</think>\n\nyes", reasoning="because", content="yes"),
    Case(number=2, start=True, text="<think>\nbecause</think>yes", reasoning="because", content="yes"),
    Case(number=2, start=False, text="<think>\n<think>\n a</think>b", reasoning="a", content="b"),
    Case(number=2, start=True, text="a <think>b</think>c", reasoning="a b", content="c"),
    Case(number=2, start=True, text="a \n<think> </think>c", reasoning="a", content="c"),
    Case(number=3, start=True, text="only thoughts", reasoning="only thoughts", content=None, cut_off=True),
    Case(number=3, start=True, text="only thoughts", reasoning="only thoughts", content=None),
    Case(
        number=3, start=True, text="\nan answer ", reasoning=None, content="an answer ", options={"unclosed": "content"}
    ),
    Case(
        number=3,
        start=True,
        text="only thoughts",
        reasoning="only thoughts",
        content=None,
        cut_off=True,
        options={"unclosed": "content"},
    ),
    Case(number=3, start=True, text="a</think>b", reasoning="a", content="b", options={"unclosed": "content"}),
    Case(number=3, start=True, text="<think>a", reasoning="a", content=None, options={"unclosed": "content"}),
    Case(number=4, start=True, text="foo</think>bar", reasoning="foo", content="bar"),
    Case(number=4, start=True, text="foo</thi", reasoning="foo</thi", content=None, cut_off=True),
    Case(number=4, start=True, text="foo </thi", reasoning="foo </thi", content=None, cut_off=True),
    Case(number=4, start=True, text="a<</think>b", reasoning="a<", content="b"),
    Case(number=4, start=True, text="a</th</think>b", reasoning="a</th", content="b"),
    Case(number=4, start=False, text="<thi", reasoning=None, content="<thi", cut_off=True),
    Case(number=4, start=False, text=" <thinking>", reasoning=None, content=" <thinking>"),
    Case(number=6, start=False, text="<think>\n\n</think>\n\nhello", reasoning=None, content="hello"),
    Case(number=6, start=True, text="\n\n</think>\n\nhello", reasoning=None, content="hello"),
    Case(number=7, start=True, text="</think>hello", reasoning=None, content="hello"),
    Case(number=7, start=False, text="</think>hello", reasoning=None, content="hello"),
    Case(number=8, start=False, text="<think>\nso far", reasoning="so far", content=None, cut_off=True),
    Case(number=9, start=True, text="a</think>", reasoning="a", content=None),
    Case(number=9, start=True, text="a</think>\n\n", reasoning="a", content=None),
    Case(number=10, start=False, text="\n<think>a</think>b", reasoning="a", content="b"),
    Case(number=11, start=False, text=" \n<think> \n a \n b \t</think>\r\n\n c \n", reasoning="a \n b", content="c \n"),
    Case(number=11, start=True, text="\u3000a</think>\u3000b", reasoning="\u3000a", content="\u3000b"),
    Case(
        number=12,
        start=True,
        text=f"let me look\n{TOOL}call</think>",
        reasoning="let me look",
        content=f"{TOOL}call</think>",
        options={"tool_openers": (TOOL,)},
    ),
    Case(
        number=12,
        start=False,
        text=f"{TOOL}call",
        reasoning=None,
        content=f"{TOOL}call",
        options={"tool_openers": (TOOL,)},
    ),
    Case(
        number=13,
        start=True,
        text=f"a</think>\n\n{TOOL}call",
        reasoning="a",
        content=f"{TOOL}call",
        options={"tool_openers": (TOOL,)},
    ),
    Case(
        number=14,
        start=True,
        text="a</think>write `<think>` and </think>",
        reasoning="a",
        content="write `<think>` and </think>",
    ),
    Case(
        number=14,
        start=False,
        text="no thought: <think>a</think>",
        reasoning=None,
        content="no thought: <think>a</think>",
    ),
    Case(
        number=16, start=True, text=" and on</think>b", reasoning=" and on", content="b", options={"keep_blanks": True}
    ),
    Case(
        number=16,
        start=False,
        text=" and <think>",
        reasoning=None,
        content=" and <think>",
        options={"closed": True, "keep_blanks": True},
    ),
    Case(number=16, start=False, text="\n\nyes", reasoning=None, content="yes", options={"closed": True}),
    Case(number=20, start=True, text="", reasoning=None, content=None),
    Case(number=0, start=False, text="\n plain \n", reasoning=None, content="\n plain \n"),
    Case(number=0, start=False, text=" \n", reasoning=None, content=" \n"),
]
named = pytest.mark.parametrize("case", CASES, ids=lambda case: f"case-{case.number}-{case.text[:20]!r}")


def parsed(case: Case, chunks: list[str]) -> list[Delta]:
    parser = ThinkingParser(case.start, **case.options)
    deltas = [delta for chunk in chunks for delta in parser.feed(chunk)]
    return deltas + parser.finish(case.cut_off)


def expected(case: Case) -> Folded:
    return Folded(reasoning=case.reasoning, content=case.content)


@named
def test_whole(case: Case) -> None:
    assert fold(parsed(case, [case.text])) == expected(case)


@named
def test_split_anywhere(case: Case) -> None:
    for at in range(len(case.text) + 1):
        assert fold(parsed(case, [case.text[:at], case.text[at:]])) == expected(case)


@named
def test_one_character_at_a_time(case: Case) -> None:
    assert fold(parsed(case, list(case.text))) == expected(case)


def pieces_of_tokens(case: Case) -> list[tuple[int, bytes]]:
    """The text as tokens: one a byte, and one a tag."""
    tokens: list[tuple[int, bytes]] = []
    rest = case.text
    while rest:
        for tag, token in (("<think>", OPEN), ("</think>", CLOSE)):
            if rest.startswith(tag):
                tokens.append((token, b""))
                rest = rest[len(tag) :]
                break
        else:
            tokens += [(byte, bytes([byte])) for byte in rest[0].encode()]
            rest = rest[1:]
    return tokens


@named
def test_token_ids_say_the_same(case: Case) -> None:
    parser = ThinkingTokenParser(case.start, think_ids=(OPEN, CLOSE), **case.options)
    deltas = [delta for token, piece in pieces_of_tokens(case) for delta in parser.feed(token, piece)]
    assert fold(deltas + parser.finish(case.cut_off)) == expected(case)


@named
def test_tokens_without_ids_say_the_same(case: Case) -> None:
    parser = ThinkingTokenParser(case.start, **case.options)
    deltas = [delta for byte in case.text.encode() for delta in parser.feed(byte, bytes([byte]))]
    assert fold(deltas + parser.finish(case.cut_off)) == expected(case)


def test_a_close_within_a_chunk_gives_a_delta_of_each_kind() -> None:
    assert ThinkingParser(True).feed("a</think>b") == [Delta("reasoning", "a"), Delta("content", "b")]


def test_nothing_of_a_tag_leaks_before_it_is_known() -> None:
    parser = ThinkingParser(True)
    assert parser.feed("foo</th") == [Delta("reasoning", "foo")]
    assert parser.feed("ink>") == []
    assert parser.finish(False) == []


def test_the_same_text_made_of_ordinary_tokens_is_text() -> None:
    parser = ThinkingTokenParser(True, think_ids=(OPEN, CLOSE))
    assert parser.feed(1, b"say </think> and <think>") == [Delta("reasoning", "say </think> and <think>")]
    assert parser.feed(CLOSE, b"</think>") == []
    assert parser.feed(1, b"ok") == [Delta("content", "ok")]
    assert parser.feed(CLOSE, b"</think>") == [Delta("content", "</think>")]


def test_a_tool_call_by_its_id_closes_the_thinking_and_its_text_does_not() -> None:
    parser = ThinkingTokenParser(True, think_ids=(OPEN, CLOSE), tool_opener_ids={9: TOOL})
    assert parser.feed(1, f"I could write {TOOL}".encode()) == [Delta("reasoning", f"I could write {TOOL}")]
    assert parser.feed(9, b"") == [Delta("content", TOOL)]


def test_bytes_of_a_character_wait_for_the_rest() -> None:
    parser = ThinkingTokenParser(True, think_ids=(OPEN, CLOSE))
    assert parser.feed(1, "思".encode()[:2]) == []
    assert parser.feed(2, "思".encode()[2:]) == [Delta("reasoning", "思")]


@pytest.mark.parametrize("ids", [None, (OPEN, CLOSE)])
def test_half_a_character_before_the_forced_close_does_not_show(ids: tuple[int, int] | None) -> None:
    parser = ThinkingTokenParser(True, think_ids=ids)
    deltas = parser.feed(1, b"a" + "思".encode()[:2])
    parser.drop_incomplete()
    deltas += parser.feed(CLOSE, b"</think>") + parser.feed(2, b"b") + parser.finish(False)
    assert deltas == [Delta("reasoning", "a"), Delta("content", "b")]


def test_bytes_that_are_no_character_are_replaced_and_half_a_character_at_the_end_is_not_shown() -> None:
    parser = ThinkingTokenParser(False)
    assert parser.feed(1, b"a\xffb\xe6\x80") == [Delta("content", "a\ufffdb")]
    assert parser.finish(True) == []


WORDS = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</th", "ink>", "a", " ", "\n", TOOL, TOOL[:5], "é", "思"]),
    max_size=12,
).map("".join)


@settings(deadline=None)
@given(
    text=WORDS,
    start=st.booleans(),
    closed=st.booleans(),
    keep_blanks=st.booleans(),
    unclosed=st.sampled_from(["reasoning", "content"]),
    cut_off=st.booleans(),
    data=st.data(),
)
def test_chunks_make_no_difference(
    text: str, start: bool, closed: bool, keep_blanks: bool, unclosed: Any, cut_off: bool, data: st.DataObject
) -> None:
    options: dict[str, Any] = {
        "closed": closed,
        "keep_blanks": keep_blanks,
        "unclosed": unclosed,
        "tool_openers": (TOOL,),
    }
    case = Case(number=0, start=start, text=text, reasoning=None, content=None, cut_off=cut_off, options=options)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    chunks = [text[a:b] for a, b in itertools.pairwise(cuts)]
    deltas = parsed(case, chunks)
    assert fold(deltas) == fold(parsed(case, [text]))
    assert all(delta.text for delta in deltas)


@settings(deadline=None)
@given(text=WORDS, start=st.booleans())
def test_no_text_but_tags_and_blanks_is_lost(text: str, start: bool) -> None:
    case = Case(number=0, start=start, text=text, reasoning=None, content=None)
    answer = fold(parsed(case, [text]))
    said = (answer.reasoning or "", answer.content or "")
    rest = text.replace("<think>", "").replace("</think>", "")
    kept = "".join(part.replace("<think>", "").replace("</think>", "") for part in said)
    if "<think>" not in rest and "</think>" not in rest and "<think>" not in kept and "</think>" not in kept:
        assert "".join(kept.split()) == "".join(rest.split())
