from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.r1.delta import Delta, Folded, fold
from ktllama.r1.transcript import Transcript

OPEN, CLOSE, END, TOOL = 1000, 1001, 1002, 1003
IDS = (OPEN, CLOSE)
PIECES = {OPEN: b"<think>", CLOSE: b"</think>", END: b"<eos>", TOOL: b"<tool_call>"}


def said(transcript: Transcript, tokens: list[int | str], cut_off: bool = False) -> Folded:
    """Feed tokens: an id, or an ordinary token by its text. Stops where the transcript does."""
    deltas: list[Delta] = []
    for token in tokens:
        if transcript.stopped is not None:
            break
        if isinstance(token, str):
            deltas += transcript.feed(1, token.encode())
        else:
            deltas += transcript.feed(token, PIECES.get(token, bytes([token % 256])))
    return fold(deltas + transcript.finish(cut_off))


def test_phase_goes_from_reasoning_to_content_with_the_closing_tag() -> None:
    transcript = Transcript(thinking="open", think_ids=IDS)
    phases = []
    for token in (1, CLOSE, 1):
        phases.append(transcript.phase)
        transcript.feed(token, b"a")
    assert phases == ["reasoning", "reasoning", "content"]


def test_thinking_that_is_possible_is_undecided_until_text_comes() -> None:
    transcript = Transcript(thinking="possible", think_ids=IDS)
    assert (transcript.undecided, transcript.phase) == (True, "content")
    transcript.feed(1, b"\n")
    assert transcript.undecided
    transcript.feed(OPEN, b"")
    assert (transcript.undecided, transcript.phase) == (False, "reasoning")
    transcript.feed(CLOSE, b"")
    assert (transcript.undecided, transcript.phase) == (False, "content")


def test_an_end_token_within_the_thinking_ends_the_answer_and_does_not_show() -> None:
    transcript = Transcript(thinking="open", think_ids=IDS, end_ids=frozenset({END}))
    assert said(transcript, ["so", END]) == Folded(reasoning="so", content=None)
    assert transcript.stopped == "eos"
    assert (transcript.reasoning_tokens, transcript.content_tokens, transcript.tag_tokens) == (1, 0, 1)


STOPS: list[tuple[tuple[str, ...], list[int | str], Folded, str | None]] = [
    (("stop",), ["a st", "op b"], Folded(reasoning=None, content="a "), "stop"),
    (("stop",), ["a st", "ep"], Folded(reasoning=None, content="a step"), None),
    (("stop",), ["a sto"], Folded(reasoning=None, content="a sto"), None),
    (("ab", "bc"), ["xabc"], Folded(reasoning=None, content="x"), "ab"),
    (("abc", "b"), ["xabc"], Folded(reasoning=None, content="xa"), "b"),
    (("aab",), ["aaa", "b"], Folded(reasoning=None, content="a"), "aab"),
    (("é",), ["caf", 0xC3, 0xA9, "!"], Folded(reasoning=None, content="caf"), "é"),
]


@pytest.mark.parametrize(("stop", "tokens", "expected", "fired"), STOPS)
def test_stop_strings(stop: tuple[str, ...], tokens: list[int | str], expected: Folded, fired: str | None) -> None:
    transcript = Transcript(thinking="closed", keep_blanks=True, stop=stop)
    assert said(transcript, tokens) == expected
    assert transcript.stop_string == fired
    assert transcript.stopped == (None if fired is None else "stop")


def test_stop_strings_do_not_fire_within_the_thinking_nor_on_blanks_behind_it() -> None:
    transcript = Transcript(thinking="open", think_ids=IDS, stop=("stop", "\n\n"))
    answer = said(transcript, ["do not stop\n\nhere", CLOSE, "\n\n", "yes", "\n\n", "no"])
    assert answer == Folded(reasoning="do not stop\n\nhere", content="yes")
    assert transcript.stop_string == "\n\n"


def test_a_stop_string_may_not_straddle_the_closing_tag() -> None:
    transcript = Transcript(thinking="open", think_ids=IDS, stop=("ab",))
    assert said(transcript, ["a", CLOSE, "b"]) == Folded(reasoning="a", content="b")


@settings(deadline=None)
@given(
    text=st.text(alphabet="abcé ", max_size=20),
    stop=st.lists(st.text(alphabet="abcé ", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_no_chunking_shows_a_stop_string(text: str, stop: list[str], data: st.DataObject) -> None:
    raw = text.encode()
    transcript = Transcript(thinking="closed", keep_blanks=True, stop=tuple(stop))
    deltas: list[Delta] = []
    while raw and transcript.stopped is None:
        n_bytes = data.draw(st.integers(1, len(raw)))
        deltas += transcript.feed(1, raw[:n_bytes])
        raw = raw[n_bytes:]
    shown = fold(deltas + transcript.finish(False)).content or ""
    whole = Transcript(thinking="closed", keep_blanks=True, stop=tuple(stop))
    assert shown == (fold(whole.feed(1, text.encode()) + whole.finish(False)).content or "")
    assert not any(string in shown for string in stop)
    assert text.startswith(shown)
    fired = transcript.stop_string
    assert shown == text if fired is None else text.startswith(shown + fired)
    settled = [transcript.is_settled(place) for place in range(len(text))]
    assert settled == [fired is None or place < len(shown) for place in range(len(text))]


@settings(deadline=None)
@given(pieces=st.lists(st.sampled_from([b"a", b"b", b"ab", b"\xc3", b"\xa9", b"\xff", b"", CLOSE]), max_size=12))
def test_text_is_settled_when_it_shows(pieces: list[bytes | int]) -> None:
    transcript = Transcript(thinking="closed", think_ids=IDS, stop=("ab", "aé"), keep_blanks=True)
    n_shown = 0
    for piece in pieces:
        if transcript.stopped is not None:
            break
        deltas = transcript.feed(1, piece) if isinstance(piece, bytes) else transcript.feed(piece, PIECES[piece])
        n_shown += sum(len(delta.text) for delta in deltas)
        assert n_shown <= transcript.n_characters
        assert [transcript.is_settled(place) for place in range(n_shown + 1)] == [True] * n_shown + [False]
    transcript.finish(True)
    assert transcript.is_settled(transcript.n_characters) == (transcript.stop_string is None)


TOKENS = st.lists(st.sampled_from([OPEN, CLOSE, "a", " ", "<think>", "</th", "ink>", 0xC3, 0xA9, "x</think>y"]), max_size=15)  # fmt: skip


@settings(deadline=None)
@given(
    tokens=TOKENS,
    thinking=st.sampled_from(["open", "possible", "closed"]),
    ids=st.sampled_from([None, IDS]),
    stop=st.sampled_from([(), ("a",)]),
    reasoning_format=st.sampled_from(["deepseek", "none", "deepseek-legacy"]),
)
def test_the_counts_add_up(
    tokens: list[int | str], thinking: Any, ids: Any, stop: tuple[str, ...], reasoning_format: Any
) -> None:
    transcript = Transcript(thinking=thinking, think_ids=ids, stop=stop, reasoning_format=reasoning_format)
    fed = 0
    for token in tokens:
        if transcript.stopped is not None:
            break
        transcript.feed(token if isinstance(token, int) else 1, PIECES.get(token, bytes([token % 256])) if isinstance(token, int) else token.encode())  # fmt: skip
        fed += 1
        assert transcript.completion_tokens == fed
    transcript.finish(False)
    assert transcript.reasoning_tokens + transcript.content_tokens + transcript.tag_tokens == fed


def test_tags_spelled_by_several_tokens_are_counted_as_tags() -> None:
    transcript = Transcript(thinking="open")
    said(transcript, ["a", "b", "</", "think", ">", "c"])
    assert (transcript.reasoning_tokens, transcript.content_tokens, transcript.tag_tokens) == (2, 1, 3)


FORMATS = [
    ("deepseek", Folded(reasoning="a", content="b")),
    ("none", Folded(reasoning=None, content="<think>\na\n</think>\n\nb")),
    ("deepseek-legacy", Folded(reasoning="a", content="<think>\na\n</think>\n\nb")),
]


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize(("reasoning_format", "expected"), FORMATS)
def test_reasoning_formats(reasoning_format: Any, expected: Folded, ids: tuple[int, int] | None) -> None:
    transcript = Transcript(
        thinking="open", prompt_side="<think>\n", think_ids=ids, reasoning_format=reasoning_format, stop=("a",)
    )
    assert said(transcript, ["a\n", CLOSE, "\n\nb"]) == expected


def test_the_raw_text_of_an_empty_answer_is_the_prompts_side() -> None:
    transcript = Transcript(thinking="open", prompt_side="<think>\n", reasoning_format="none")
    assert said(transcript, []) == Folded(reasoning=None, content="<think>\n")


def test_a_spent_budget_forces_its_tokens_once() -> None:
    transcript = Transcript(thinking="open", think_ids=IDS, reasoning_budget=2, closing_tokens=(7, CLOSE))
    deltas = transcript.feed(1, b"a")
    spent = [transcript.budget_spent]
    deltas += transcript.feed(1, b"b" + "思".encode()[:2])
    spent.append(transcript.budget_spent)
    assert transcript.forced_tokens() == (7, CLOSE)
    assert [*spent, transcript.budget_spent] == [False, True, False]
    deltas += transcript.feed(7, b" Enough.") + transcript.feed(CLOSE, b"") + transcript.feed(1, b"c")
    assert fold(deltas + transcript.finish(False)) == Folded(reasoning="ab Enough.", content="c")
    assert (transcript.reasoning_tokens, transcript.content_tokens, transcript.tag_tokens) == (2, 1, 2)


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_what_is_forced_is_no_thinking_so_the_budget_is_never_exceeded(
    budget: int, ids: tuple[int, int] | None
) -> None:
    transcript = Transcript(
        thinking="open",
        think_ids=ids,
        reasoning_budget=budget,
        closing_tokens=(10, 11, CLOSE, 12),
        tool_openers=("<t>",),
    )
    while not transcript.budget_spent:
        transcript.feed(1, b"a")
    for token, piece in zip(transcript.forced_tokens(), (b"\n", b"Enough.\n", b"</think>", b"\n\n"), strict=True):
        transcript.feed(token, piece)
    transcript.feed(1, b"b")
    transcript.finish(False)
    assert (transcript.reasoning_tokens, transcript.content_tokens, transcript.tag_tokens) == (budget, 1, 4)


CALLED = 'Look. <tool_call>{"name": "f", "arguments": {"a": "}"}}</tool_call>'


@pytest.mark.parametrize("reasoning_format", ["deepseek", "none", "deepseek-legacy"])
def test_with_one_call_the_answer_ends_where_it_is_complete(reasoning_format: Any) -> None:
    transcript = Transcript(thinking="open", think_ids=IDS, one_call="hermes", reasoning_format=reasoning_format)
    answer = said(transcript, ['<tool_call>{"name": "no", "arguments": {}}', CLOSE, *CALLED, *CALLED])
    assert transcript.stopped == "call"
    assert answer.content is not None
    assert answer.content.endswith(CALLED.removesuffix("</tool_call>"))
    without = Transcript(thinking="open", think_ids=IDS, reasoning_format=reasoning_format)
    said(without, [CLOSE, *CALLED])
    assert without.stopped is None


def test_a_stop_string_before_the_call_and_text_held_back_for_one() -> None:
    transcript = Transcript(thinking="closed", one_call="hermes", stop=("name", "}}}"))
    assert said(transcript, [CALLED]).content == 'Look. <tool_call>{"'
    assert (transcript.stopped, transcript.stop_string) == ("stop", "name")
    transcript = Transcript(thinking="closed", one_call="hermes", stop=("}}}",))
    assert said(transcript, [*CALLED]).content == CALLED.removesuffix("</tool_call>")
    assert (transcript.stopped, transcript.stop_string) == ("call", None)


def test_a_budget_of_nothing_is_spent_at_once_where_the_thinking_is_open() -> None:
    assert Transcript(thinking="open", reasoning_budget=0, closing_tokens=(CLOSE,)).budget_spent
    undecided = Transcript(thinking="possible", think_ids=IDS, reasoning_budget=0, closing_tokens=(CLOSE,))
    assert not undecided.budget_spent
    undecided.feed(OPEN, b"")
    assert undecided.budget_spent


def test_a_budget_waits_for_a_tag_that_has_begun() -> None:
    transcript = Transcript(thinking="open", reasoning_budget=1, closing_tokens=(CLOSE,))
    transcript.feed(1, b"a</th")
    assert not transcript.budget_spent
    transcript.feed(1, b"ink>b")
    assert not transcript.budget_spent
    assert transcript.phase == "content"


@pytest.mark.parametrize("options", [{"tool_openers": ("<tool_call>",)}, {"tool_opener_ids": {TOOL: "<tool_call>"}}])
def test_a_tool_call_within_the_thinking_ends_it(options: dict[str, Any]) -> None:
    transcript = Transcript(thinking="open", think_ids=IDS, **options)
    answer = said(transcript, ["look\n", TOOL, "{}"])
    assert answer == Folded(reasoning="look", content="<tool_call>{}")
    assert (transcript.reasoning_tokens, transcript.content_tokens, transcript.tag_tokens) == (1, 2, 0)


def test_thinking_that_was_never_closed_is_content_if_the_caller_says_so() -> None:
    transcript = Transcript(thinking="open", unclosed="content", end_ids=frozenset({END}))
    assert said(transcript, ["an ", "answer", END]) == Folded(reasoning=None, content="an answer")
    transcript = Transcript(thinking="open", unclosed="content")
    assert said(transcript, ["an ", "answer"], cut_off=True) == Folded(reasoning="an answer", content=None)


@settings(deadline=None)
@given(
    tokens=TOKENS,
    thinking=st.sampled_from(["open", "possible", "closed"]),
    ids=st.sampled_from([None, IDS]),
    unclosed=st.sampled_from(["reasoning", "content"]),
    tools=st.booleans(),
    keep_blanks=st.booleans(),
    reasoning_format=st.sampled_from(["deepseek", "none"]),
    stop=st.sampled_from([(), ("a a", "b"), ("<think>a",)]),
)
def test_plain_tokens_take_a_short_way_to_the_same_deltas(
    tokens: list[int | str], tools: bool, stop: tuple[str, ...], **given_settings: Any
) -> None:
    ids = given_settings.pop("ids")
    tool_ids = {TOOL: "<tool_call>"} if tools else {}
    made = [
        Transcript(**given_settings, think_ids=ids, tool_opener_ids=tool_ids, prompt_side="<think>", stop=stop)
        for _ in range(2)
    ]
    made[1]._shows_as_it_is = False  # every token takes the long way
    for token in tokens:
        if made[0].stopped is not None:
            break
        piece = token.encode() if isinstance(token, str) else PIECES.get(token, bytes([token % 256]))
        short, long = (each.feed(1 if isinstance(token, str) else token, piece) for each in made)
        assert short == long
        assert _counts(made[0]) == _counts(made[1])
    assert made[0].finish(True) == made[1].finish(True)
    assert _counts(made[0]) == _counts(made[1])


def _counts(transcript: Transcript) -> tuple[object, ...]:
    counts = (transcript.reasoning_tokens, transcript.content_tokens, transcript.tag_tokens)
    n_characters = transcript.n_characters if transcript._n_settled is not None else None
    settled = (n_characters, transcript._n_settled)
    return *counts, *settled, transcript.phase, transcript.undecided, transcript.stopped, transcript.stop_string
