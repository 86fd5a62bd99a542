"""How answers look, on a terminal and elsewhere; no text of a model moves the cursor."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from ktllama.chatting.display import PlainDisplay, TerminalDisplay
from ktllama.chatting.speaker import Ended, Said
from tests.chatting.scripted import spoken, thought

DONE = Ended(reason="stop", prompt_tokens=1, completion_tokens=12, reasoning_tokens=7)


def plain(*pieces: Said, folds: bool = True, ended: Ended | None = DONE) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    display = PlainDisplay(out, err, folds=folds)
    display.begin()
    for piece in pieces:
        display.hear(piece)
    display.end(ended)
    return out.getvalue(), err.getvalue()


def on_terminal(*pieces: Said, folds: bool = True, ended: Ended | None = DONE) -> str:
    out = io.StringIO()
    console = Console(
        file=out,
        force_terminal=True,
        color_system="standard",
        width=60,
        height=20,
        _environ={},
        highlight=False,
        markup=False,
        emoji=False,
    )
    display = TerminalDisplay(console, folds=folds)
    display.begin()
    for piece in pieces:
        display.hear(piece)
    display.end(ended)
    return out.getvalue()


def thinking_ended(seen: str) -> int:
    found = re.search(r"thought for [0-9.]+ s\b", seen)
    assert found is not None
    return found.start()


def test_a_pipe_gets_the_answer_alone() -> None:
    assert plain(thought("hm"), spoken("one "), spoken("two")) == ("one two\n", "")


def test_a_pipe_gets_the_thinking_where_it_is_asked_for() -> None:
    assert plain(thought("hm"), spoken("one"), folds=False) == ("hm\n\none\n", "")


@pytest.mark.parametrize(
    ("ended", "note"),
    [(None, "[stopped]\n"), (Ended(reason="length"), "[cut off at the limit of tokens]\n"),
     (Ended(reason="repetition"), "[ended: it repeated itself]\n"), (Ended(reason="tool_calls"), "[tool_calls]\n")],
)  # fmt: skip
def test_a_pipe_is_told_beside_the_answer_that_it_is_not_whole(ended: Ended | None, note: str) -> None:
    assert plain(spoken("half"), ended=ended) == ("half\n", note)


def test_an_answer_that_breaks_off_ends_its_line_and_says_no_more() -> None:
    out, err = io.StringIO(), io.StringIO()
    display = PlainDisplay(out, err, folds=True)
    display.begin()
    display.hear(spoken("half"))
    display.break_off()
    assert (out.getvalue(), err.getvalue()) == ("half\n", "")

    screen = io.StringIO()
    terminal = TerminalDisplay(Console(file=screen, width=60, _environ={}), folds=True)
    terminal.begin()
    terminal.break_off()
    assert screen.getvalue() == ""
    terminal.hear(spoken("half"))
    terminal.break_off()
    assert screen.getvalue() == "half\n"


def test_folded_thinking_is_shown_dimmed_and_then_a_line() -> None:
    seen = on_terminal(thought("because"), thought(" so"), spoken("answer"))
    assert "\x1b[2;3mbecause" in seen
    folded = thinking_ended(seen)
    assert seen.index("because") < seen.index("\x1b[2K") < folded < seen.index("answer")
    assert "12 tokens, 7 of them thinking" in seen


def test_thinking_in_sight_stays() -> None:
    seen = on_terminal(thought("because"), spoken("answer"), folds=False)
    assert "\x1b[2K" not in seen
    assert "\x1b[2mbecause" in seen
    assert seen.index("because") < thinking_ended(seen) < seen.index("answer")


def test_only_the_last_rows_of_thinking_are_in_sight() -> None:
    display_text = on_terminal(*(thought(f"line {number}\n") for number in range(50)), spoken("x"))
    last = display_text.rpartition("thought for")[0].rpartition("\x1b[2K")[0]
    assert "line 49" in last


def test_an_answer_stopped_within_its_thinking_leaves_no_live_region() -> None:
    seen = on_terminal(thought("because"), ended=None)
    assert thinking_ended(seen)
    assert seen.rstrip().endswith("s\x1b[0m")
    assert "\x1b[?25h" in seen  # the cursor is back


def test_no_text_is_obeyed_by_the_terminal() -> None:
    hostile = "a\x1b]0;title\x07b\x1b[2Jc\rd\x9b1me\u202ef[bold]g:smile:"
    seen = on_terminal(thought(hostile), spoken(hostile), folds=False)
    for text in ("\x1b]0", "\x07", "\x1b[2J", "\r", "\x9b", "\u202e"):
        assert text not in seen
    assert "f[bold]g:smile:" in seen.replace("\ufffd", "")


def test_every_piece_is_written_as_it_is() -> None:
    seen = on_terminal(spoken("word " * 30), spoken("  indented\n\n"), spoken("end"))
    assert "word " * 30 + "  indented\n\nend" in seen
