"""``ktllama chat`` with a fake model: from a pipe, on a terminal with Ctrl-C and Ctrl-D, and against a server."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import pytest

from ktllama.cli.chat import command as chat
from ktllama.server.bodies import validated
from ktllama.server.protocol.chat import ChatRequest
from tests.cli.runner import ktllama
from tests.server.served import ROOT, fake

_PATIENCE = 300.0
OPTIONS: dict[str, object] = {
    "end_chance": 0,
    "n_ctx": 8192,
    "say": {"short": "I think.</think>\n\nShort answer.", "again": "Hm.</think>\n\nAnother one."},
}
SLOW = {**OPTIONS, "seconds_per_step": 0.02}


def command(options: dict[str, object], *words: str) -> list[str]:
    return [sys.executable, "-m", "tests.cli.chat_process", json.dumps(options), *words]


def piped(text: str, *words: str, options: dict[str, object] = OPTIONS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(options, *words), input=text, capture_output=True, text=True, cwd=ROOT, timeout=_PATIENCE, check=False
    )


def test_every_number_that_a_flag_takes_is_one_that_a_request_takes() -> None:
    bounded = [
        parameter
        for parameter in chat.params
        if isinstance(parameter, click.Option) and parameter.name in ChatRequest.model_fields
        if isinstance(parameter.type, click.IntRange | click.FloatRange)
    ]
    assert {"max_tokens", "temperature", "top_p", "seed", "reasoning_budget"} <= {option.name for option in bounded}
    for option in bounded:
        assert isinstance(option.type, click.IntRange | click.FloatRange)
        for bound in (option.type.min, option.type.max):
            validated({"messages": [{"role": "user", "content": "hi"}], str(option.name): bound}, ChatRequest)


class Terminal:
    """The program on a terminal of its own: what it writes, and keys."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self.seen = b""
        self._read_to = 0

    def press(self, key: str, *, until: str) -> str:
        """Press a key until something is seen: a Ctrl-C between two reads of a line waits in Python for a next key."""
        for _ in range(20):
            self.type(key)
            with suppress(AssertionError):
                return self.until(until, patience=2.0)
        return self.until(until)

    def until(self, text: str, patience: float = _PATIENCE) -> str:
        """What comes up to and with ``text``, since the last time."""
        wanted = text.encode()
        while (found := self.seen.find(wanted, self._read_to)) < 0:
            ready, _, _ = select.select([self._descriptor], [], [], patience)
            assert ready, f"no {text!r} in {self.seen[self._read_to :]!r}"
            self.seen += self._some()
        begin, self._read_to = self._read_to, found + len(wanted)
        return self.seen[begin : self._read_to].decode(errors="replace")

    def _some(self) -> bytes:
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # Linux's word for the end of a terminal
            data = b""
        assert data, f"it ended: {self.seen[self._read_to :]!r}"
        return data

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())


@contextmanager
def terminal(options: dict[str, object], *words: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))

    def log_in() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background inherits it ignored
        os.login_tty(theirs)

    process = subprocess.Popen(
        command(options, *words), cwd=ROOT, env={**os.environ, "TERM": "xterm-256color"},
        preexec_fn=log_in, close_fds=False,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(_PATIENCE)
        os.close(ours)


def test_from_a_pipe_each_line_is_a_question_and_answers_are_bare(tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    ran = piped(f'short\n"""again\nplease"""\n/save {saved}\n/rules\n')
    assert (ran.returncode, ran.stdout) == (0, "Short answer.\nAnother one.\n")
    assert ran.stderr.splitlines() == [f"{saved}: 2 turns", "CPU: everything"]
    messages = json.loads(saved.read_text())["messages"]
    assert messages[1] == {"role": "assistant", "reasoning_content": "I think.", "content": "Short answer."}
    assert messages[2]["content"] == "again\nplease"


def test_thinking_is_written_where_it_is_asked_for() -> None:
    ran = piped("short\n", "--show-thinking")
    assert ran.stdout == "I think.\n\nShort answer.\n"


def test_the_limit_of_tokens_is_the_requests() -> None:
    ran = piped("short\n", "-n", "3", "--show-thinking")
    assert ran.stderr == "[cut off at the limit of tokens]\n"


def test_other_rules_load_the_model_again_and_bad_ones_change_nothing() -> None:
    ran = piped("/rules second\n/rules bad\n/rules failing\nshort\n")
    assert ran.stdout == "Short answer.\n"
    assert ran.stderr.splitlines() == [
        "CPU: everything",
        "no such device; the model is where it was",
        "no room; the model is where it was",
    ]


def test_a_model_that_cannot_be_loaded_ends_it_with_one_line() -> None:
    ran = piped("short\n", options={"fail_load": "no such thing"})
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", "ktllama: no such thing\n")


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    with terminal(SLOW, "-n", "3000") as screen:
        screen.until(">>> ")
        screen.type("a story without end\n")
        screen.until("\x1b[?25l")  # the thinking is being shown
        screen.type("\x03")
        stopped = screen.until("stopped")
        assert "thought for" in stopped
        screen.until(">>> ")
        screen.type("half a line")
        screen.until("half a line")
        screen.press("\x03", until=">>> ")  # while typing, it drops the line
        screen.type("short\n")
        answered = screen.until("tokens/s")
        assert "Short answer." in answered
        assert re.search(r"thought for [0-9.]+ s\b", answered)
        assert re.search(r"\d+ tokens, \d+ of them thinking, [0-9.]+ s, [0-9.]+ tokens/s$", answered)
        screen.until(">>> ")
        screen.type("\x04")
        assert screen.process.wait(_PATIENCE) == 0
        assert b"Traceback" not in screen.seen


def test_the_engine_ends_with_the_program(tmp_path: Path) -> None:
    with terminal(SLOW) as screen:
        screen.until(">>> ")
        children = Path(f"/proc/{screen.process.pid}/task/{screen.process.pid}/children").parent.parent
        engines = " ".join((task / "children").read_text() for task in children.iterdir()).split()
        assert len(engines) == 1
        screen.process.send_signal(signal.SIGKILL)
        screen.process.wait(_PATIENCE)
        for _ in range(int(_PATIENCE / 0.05)):
            if not Path(f"/proc/{engines[0]}/cmdline").exists() or not Path(f"/proc/{engines[0]}/cmdline").read_text():
                return
            select.select([], [], [], 0.05)
    raise AssertionError("the engine lives on")


def test_a_server_is_talked_to_instead(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# mine\nsk-1\n")
    with fake(OPTIONS, keys=["sk-1"]) as served:
        served.wait_until_ready()
        url = f"http://127.0.0.1:{served.port}"
        ran = piped("short\n/rules\n/rules x\n", "--url", url, "--api-key-file", str(keys))
        refused = ktllama("chat", "--url", url)
    assert (ran.returncode, ran.stdout) == (0, "Short answer.\n")
    assert ran.stderr.splitlines() == ["CPU: everything", "the server places its model; /rules shows where"]
    assert refused.err == "ktllama: the server refused (401): no API key; send the header Authorization: Bearer KEY\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--url", "http://127.0.0.1:1", "--ctx", "64"), "--ctx is for a model of your own, not for --url."),
        (("--api-key-file", "x"), "--api-key-file is for --url."),
        (("--url", "nonsense"), "'nonsense' is no address"),
        (("--url", "http://127.0.0.1:1"), "nothing answers at 127.0.0.1:1"),
    ],
)
def test_wrong_words_are_told(words: Sequence[str], said: str) -> None:
    ran = ktllama("chat", *words)
    assert ran.status == 2
    assert said in ran.err
