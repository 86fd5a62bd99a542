"""The loop of a conversation: read, obey or ask, show."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktllama.chatting.conversation import Conversation
from ktllama.chatting.display import Display
from ktllama.chatting.interrupts import Interrupts
from ktllama.chatting.lines import ReadLine, entries
from ktllama.chatting.speaker import Ended, Question, Said, Speaker, SpeakerError
from ktllama.units import counted

HELP = """\
/system TEXT   say what the model is to be; without a text, show it
/think         keep the thinking in sight, or fold it away again; /think last shows the last one
/rules [FILE]  show where the model is; with a file, place it anew and go on
/retry         ask the last question again
/reset         forget what was said
/save FILE     write it down: .json as messages, otherwise Markdown; -f overwrites
/help          this
/exit          leave, as Ctrl-D does
Ctrl-C stops an answer. \"\"\" begins and ends several lines; a backslash at the end of a line goes on to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How ``/rules`` places the model anew; ``told`` are the lines that say what came of it.

    ``anew`` raises SpeakerError where the rules cannot be used; the model is then where it was.
    """

    anew: Callable[[str], None]


class Session:
    """One conversation. ``fields`` are sent with every question; ``placement`` is None where others place the model."""

    def __init__(
        self,
        speaker: Speaker,
        display: Display,
        *,
        fields: Mapping[str, Any],
        system: str = "",
        placement: Placement | None = None,
    ) -> None:
        self.conversation = Conversation(system)
        self.failed = False  # whether the last question got no answer
        self._speaker = speaker
        self._display = display
        self._fields = fields
        self._placement = placement
        self._last_thinking = ""
        self._left = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._display.tell(HELP),
            "/system": self._system,
            "/think": self._think,
            "/rules": self._rules,
            "/retry": self._retry,
            "/reset": self._reset,
            "/save": self._save,
            "/exit": self._exit,
        }

    @property
    def commands(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._commands)

    def run(self, read: ReadLine) -> None:
        """Until the end of input, or until told to leave."""
        for entry in entries(read):
            if not entry:
                continue
            if entry.startswith("/"):
                self._obey(entry)
            else:
                self.ask(entry)
            if self._left:
                return

    def ask(self, text: str) -> None:
        """One question; its answer, as far as it comes, is shown and kept."""
        question = Question(messages=self.conversation.asked(text), fields=self._fields)
        heard: dict[str, list[str]] = {"reasoning": [], "content": []}

        interrupts = Interrupts()

        def hear(said: Said) -> None:
            with interrupts.held():
                heard[said.kind].append(said.text)
                self._display.hear(said)

        self._display.begin()
        ended: Ended | None = None
        fault: SpeakerError | None = None
        try:
            with interrupts.caught():
                ended = self._speaker.answer(question, hear)
        except KeyboardInterrupt:
            pass  # the answer is stopped, not the program
        except SpeakerError as error:
            fault = error
        if fault is None:
            self._display.end(ended)
        else:
            self._display.break_off()
            self._display.tell(f"no answer: {fault}; /retry asks again")
        self.failed = fault is not None
        self._last_thinking = "".join(heard["reasoning"])
        self.conversation.answered(self._last_thinking, "".join(heard["content"]))

    def _obey(self, entry: str) -> None:
        name, _, rest = entry.partition(" ")
        command = self._commands.get(name.strip())
        if command is None:
            close = difflib.get_close_matches(name, self._commands, n=1)
            self._display.tell(f"no command {name}; {f'did you mean {close[0]}?' if close else '/help lists them'}")
            return
        command(rest.strip())

    def _system(self, text: str) -> None:
        if text:
            self.conversation.system = text
        self._display.tell(f"system: {self.conversation.system or '(none)'}")

    def _think(self, text: str) -> None:
        if text == "last":
            self._display.tell(self._last_thinking.strip() or "(no thinking)")
        elif text:
            self._display.tell("/think, or /think last")
        else:
            self._display.folds = not self._display.folds
            self._display.tell("thinking is folded away" if self._display.folds else "thinking stays in sight")

    def _rules(self, file: str) -> None:
        try:
            if file and self._placement is None:
                self._display.tell("the server places its model; /rules shows where")
                return
            if file and self._placement is not None:
                self._placement.anew(file)
            for line in self._speaker.plan():
                self._display.tell(line)
        except SpeakerError as fault:
            self._display.tell(str(fault))
        except KeyboardInterrupt:
            self._display.tell("stopped; /rules shows where the model is")

    def _retry(self, _: str) -> None:
        question = self.conversation.again()
        if question:
            self.ask(question)
        else:
            self._display.tell("nothing was asked yet")

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self._display.tell("forgotten; the system prompt stays")

    def _save(self, words: str) -> None:
        force = words.startswith("-f ")
        name = words.removeprefix("-f ").strip()
        if not name:
            self._display.tell("/save FILE")
            return
        conversation = self.conversation
        text = conversation.as_json() if name.endswith(".json") else conversation.as_markdown()
        try:
            with Path(name).expanduser().open("w" if force else "x", encoding="utf-8", errors="replace") as stream:
                stream.write(text)
        except FileExistsError:
            self._display.tell(f"{name}: is there already; /save -f {name} overwrites it")
        except (OSError, ValueError) as fault:
            self._display.tell(f"{name}: {getattr(fault, 'strerror', None) or fault}")
        else:
            n_turns = len(conversation.turns)
            self._display.tell(f"{name}: {counted(n_turns, 'turn')}")

    def _exit(self, _: str) -> None:
        self._left = True
