"""Questions, commands, and what is kept of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ktllama.chatting.lines import entries
from ktllama.chatting.session import HELP, Placement, Session
from ktllama.chatting.speaker import SpeakerError
from tests.chatting.scripted import Remembering, ScriptedSpeaker, reading, spoken, thought


def session_of(
    *answers: Any, placement: Placement | None = None, **fields: Any
) -> tuple[Session, ScriptedSpeaker, Any]:
    speaker, display = ScriptedSpeaker(*answers), Remembering()
    return Session(speaker, display, fields=fields, placement=placement), speaker, display


def contents(speaker: ScriptedSpeaker) -> list[list[tuple[str, str]]]:
    return [[(message["role"], message["content"]) for message in asked.messages] for asked in speaker.asked]


def test_history_goes_along_without_its_thinking() -> None:
    session, speaker, _ = session_of([thought("hm"), spoken("one")], [spoken("two")], temperature=0.5)
    session.run(reading("first", "", "/system Be brief.", "second"))
    assert contents(speaker) == [
        [("user", "first")],
        [("system", "Be brief."), ("user", "first"), ("assistant", "one"), ("user", "second")],
    ]
    assert speaker.asked[0].fields == {"temperature": 0.5}


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said() -> None:
    session, speaker, display = session_of([spoken("half"), KeyboardInterrupt], [spoken("two")])
    session.run(reading("first", "second"))
    assert display.ends[0] is None
    assert contents(speaker)[1][:2] == [("user", "first"), ("assistant", "half")]
    assert not session.failed


def test_a_question_stopped_within_its_thinking_is_not_answered() -> None:
    session, speaker, _ = session_of([thought("hm"), KeyboardInterrupt], [spoken("two")], [spoken("three")])
    session.run(reading("first", "second"))
    assert contents(speaker)[1] == [("user", "second")]


def test_a_failure_is_told_and_may_be_retried() -> None:
    session, speaker, display = session_of(["the engine died"], [spoken("there")])
    session.run(reading("first"))
    assert display.told == ["no answer: the engine died; /retry asks again"]
    assert (display.ends, display.broken_off) == ([], 1)  # nobody stopped it
    assert session.failed
    session.run(reading("/retry"))
    assert contents(speaker) == [[("user", "first")], [("user", "first")]]
    assert not session.failed


def test_retry_forgets_the_last_answer() -> None:
    session, speaker, display = session_of([spoken("one")], [spoken("better")])
    session.run(reading("/retry", "first", "/retry"))
    assert display.told == ["nothing was asked yet"]
    assert contents(speaker)[1] == [("user", "first")]
    assert [turn.answer for turn in session.conversation.turns] == ["better"]


def test_reset_keeps_the_system_prompt() -> None:
    session, speaker, _ = session_of([spoken("one")], [spoken("two")])
    session.run(reading("/system S", "first", "/reset", "second"))
    assert contents(speaker)[1] == [("system", "S"), ("user", "second")]


def test_think_folds_and_shows() -> None:
    session, _, display = session_of([thought(" because "), spoken("one")])
    session.run(reading("/think", "first", "/think last", "/think", "/think what"))
    assert display.told == [
        "thinking stays in sight", "because", "thinking is folded away", "/think, or /think last",
    ]  # fmt: skip


def test_commands_that_do_not_exist_are_not_sent_to_the_model() -> None:
    session, speaker, display = session_of()
    session.run(reading("/sytem x", "/zzz", "/help", "/exit", "never asked"))
    assert display.told == [
        "no command /sytem; did you mean /system?", "no command /zzz; /help lists them", HELP,
    ]  # fmt: skip
    assert speaker.asked == []


def test_help_names_every_command() -> None:
    session, _, _ = session_of()
    assert all(command in HELP for command in session.commands)


def test_rules_show_the_plan_and_place_anew() -> None:
    placed: list[str] = []
    session, _, display = session_of(placement=Placement(anew=placed.append))
    session.run(reading("/rules", "/rules other.yaml"))
    assert placed == ["other.yaml"]
    assert display.told == ["CPU: everything", "CPU: everything"]


def test_rules_that_cannot_be_used_leave_all_as_it_was() -> None:
    def refuse(rules: str) -> None:
        raise SpeakerError(f"{rules}: no such file")

    session, _, display = session_of([spoken("still here")], placement=Placement(anew=refuse))
    session.run(reading("/rules none.yaml", "hello"))
    assert display.told == ["none.yaml: no such file"]
    assert len(session.conversation.turns) == 1


def test_a_server_places_its_own_model() -> None:
    session, _, display = session_of()
    session.run(reading("/rules x.yaml"))
    assert display.told == ["the server places its model; /rules shows where"]


def test_save_writes_messages_or_markdown_and_overwrites_only_when_told(tmp_path: Path) -> None:
    session, _, display = session_of([thought("hm\nso"), spoken("one")])
    as_json, as_text = tmp_path / "talk.json", tmp_path / "talk.md"
    session.run(
        reading("/system S", "first", f"/save {as_json}", f"/save {as_text}", f"/save {as_text}", f"/save -f {as_text}",
                "/save", f"/save {tmp_path}/none/x")
    )  # fmt: skip
    assert json.loads(as_json.read_text()) == {
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "first"},
            {"role": "assistant", "reasoning_content": "hm\nso", "content": "one"},
        ]
    }
    assert as_text.read_text() == "## System\n\nS\n\n## User\n\nfirst\n\n## Assistant\n\n> hm\n> so\n\none\n"
    assert display.told[1:] == [
        f"{as_json}: 1 turn", f"{as_text}: 1 turn", f"{as_text}: is there already; /save -f {as_text} overwrites it",
        f"{as_text}: 1 turn", "/save FILE", f"{tmp_path}/none/x: No such file or directory",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["one", " two "], ["one", "two"]),
        (["a\\", "b\\", "c"], ["a\nb\nc"]),
        (['"""a', "", ' b"""', "c"], ["a\n\n b", "c"]),
        (['"""', "a", '"""'], ["a"]),
        (['"""one line"""'], ["one line"]),
        (['"""open', "end"], ["open\nend"]),
        (["typed\\", "^C", "next"], ["", "next"]),
        (["^C", "^C"], ["", ""]),
        (["last\\"], []),
        ([], []),
    ],
)
def test_several_lines_are_one_entry(lines: list[str], expected: list[str]) -> None:
    assert list(entries(reading(*lines))) == expected
