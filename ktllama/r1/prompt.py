"""Messages to a prompt: the model's own chat template, with the rules of its revision around it.

Passes, each over plain values: messages to turns; results in the order of their calls; thinking cut from earlier
turns; the system prompt where the revision wants it; control strings in users' texts cut; tools in words where the
template has none; the template; and last the beginning of the answer: the forced tag, and the prefix that a request
gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ktllama.r1.capabilities import CallStyle
from ktllama.r1.control_text import ControlStrings, segments, strings_in, unused_mark
from ktllama.r1.delta import BLANKS, fold
from ktllama.r1.errors import MessagesError, TemplateRefusalError
from ktllama.r1.messages import (
    Call,
    Prefix,
    Turn,
    joined,
    system_first,
    system_merged,
    tools_of,
    turns_of,
    without_thinking,
)
from ktllama.r1.profile import Profile, SystemPolicy
from ktllama.r1.template import RESERVED, ChatTemplate
from ktllama.r1.thinking import ThinkingParser
from ktllama.r1.tool_formats import FORMATS, ToolFormat, to_json
from ktllama.r1.tool_results import answered_in_order

Thinking = Literal["open", "possible", "closed"]

_NO_CONTROL = ControlStrings(())
_ASSISTANT = "<｜Assistant｜>"
_USER = "<｜User｜>"
_THINKING_IS_OFF = ("reasoning_content", "a prefix of thinking was given while the thinking is off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A rendered prompt.

    Tokenize each of ``segments`` by itself, special tokens parsed, and join the ids: control strings that a user
    wrote are cut in two by a segment's border, so they come out as ordinary text. ``begins_with_bos``: the text
    starts with the BOS string, so the tokenizer must not add a second one; else add one where the vocabulary says
    so. Add a prefix space, where the vocabulary has one, to the first segment only.

    ``thinking``: ``open`` where the prompt ends inside the thinking, ``possible`` where the model may open it
    itself, ``closed`` where none can come. ``keep_blanks``: the answer's leading whitespace counts, as it goes on a
    text of the prompt (prefix completion) or follows no tag. ``prompt_side`` is the part of the raw answer that the
    prompt holds, such as ``<think>\\n``; ``reasoning_format: none`` gives it back.
    """

    segments: tuple[str, ...]
    thinking: Thinking
    keep_blanks: bool
    prompt_side: str
    begins_with_bos: bool

    @property
    def text(self) -> str:
        """The whole prompt."""
        return "".join(self.segments)

    @property
    def start_in_reasoning(self) -> bool:
        """Whether the model's first token is thinking."""
        return self.thinking == "open"


def render(
    messages: Sequence[Mapping[str, Any]],
    *,
    template: ChatTemplate,
    profile: Profile,
    control: ControlStrings = _NO_CONTROL,
    tools: Sequence[Mapping[str, Any]] = (),
    system: SystemPolicy | None = None,
    think: bool | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> Prompt:
    """The prompt that asks for the next assistant message.

    ``messages`` are OpenAI's, as plain mappings: role, content (text, a list of text parts, or None), name,
    tool_calls, tool_call_id, reasoning_content, prefix. ``control`` is what `control_strings` made of the model's
    vocabulary. ``system`` overrides the profile's policy. ``think`` turns the thinking on or off, by the template's
    own switch where it has one; None leaves it to the template. ``now`` is for templates that print the date.

    Raises MessagesError (the request's fault, with the field's path), TemplateRefusalError (the template says no to
    these messages) and TemplateError (the model file's fault).
    """
    turns, given_prefix = turns_of(messages)
    turns = answered_in_order(turns)
    prefix = _parsed_prefix(given_prefix, profile)
    listed = tools_of(tools)
    kwargs = _template_kwargs(template_kwargs or {}, profile, _wanted_thinking(think, prefix))
    if profile.think_tags:
        turns = [without_thinking(turn, profile.think_tags) for turn in turns]
    mark = unused_mark([template.source, *_texts(turns, prefix), *strings_in([listed, kwargs])])
    turns = [_cut(turn, control, mark) for turn in turns]
    listed = control.cut_all(listed, mark)
    kwargs = control.cut_all(kwargs, mark)
    conversation = _Conversation(template, profile, system or profile.system, mark)
    text = conversation.rendered(turns, listed, kwargs, now)
    return _begun(text, template, profile, think, prefix, control, mark)


def _wanted_thinking(think: bool | None, prefix: Beginning | None) -> bool | None:
    if prefix is None or not prefix.reasoning:
        return think
    if think is False:
        raise MessagesError(*_THINKING_IS_OFF)
    return True


def _template_kwargs(given: Mapping[str, Any], profile: Profile, think: bool | None) -> dict[str, Any]:
    for key in given:
        if key in RESERVED:
            raise MessagesError(f"chat_template_kwargs.{key}", "this is not for a request to set")
        if think is not None and key in profile.thinking_switches and bool(given[key]) is not think:
            wanted = "on" if think else "off"
            raise MessagesError(f"chat_template_kwargs.{key}", f"another field turns the thinking {wanted}")
    # llama-server's default too: some templates take an undefined `enable_thinking` for a no.
    defaults = {switch: True for switch in profile.thinking_switches if switch == "enable_thinking"}
    return {**defaults, **given, **({} if think is None else dict.fromkeys(profile.thinking_switches, think))}


def _texts(turns: Sequence[Turn], prefix: Beginning | None) -> list[str]:
    found = [prefix.reasoning, prefix.content] if prefix else []
    for turn in turns:
        found += [turn.content, turn.name or "", turn.call_id or ""]
        for call in turn.calls:
            found += [call.id, call.name, *strings_in(call.arguments)]
    return found


def _cut(turn: Turn, control: ControlStrings, mark: str) -> Turn:
    def cut(text: str) -> str:
        return control.cut(text, mark)

    calls = tuple(
        Call(id=cut(call.id), name=cut(call.name), arguments=control.cut_all(call.arguments, mark))
        for call in turn.calls
    )
    return Turn(
        role=turn.role,
        content=cut(turn.content),
        calls=calls,
        call_id=None if turn.call_id is None else cut(turn.call_id),
        name=None if turn.name is None else cut(turn.name),
    )


class _Conversation:
    """Turns to text by one template; what it has no words for is said in the profile's tool format."""

    def __init__(self, template: ChatTemplate, profile: Profile, system: SystemPolicy, mark: str) -> None:
        self._template = template
        self._profile = profile
        self._merges = system == "merge" or not template.capabilities.system
        self._format = FORMATS[profile.tool_format]
        self._mark = mark

    def rendered(
        self, turns: Sequence[Turn], tools: list[dict[str, Any]], kwargs: dict[str, Any], now: datetime | None
    ) -> str:
        style = self._template.capabilities.calls
        if tools and not self._template.capabilities.tools:
            turns = [Turn(role="system", content=self._format.described(tools)), *turns]
            tools = []
        # In front also where it is kept: many templates drop a system message that comes later, without a word.
        turns = system_merged(turns) if self._merges else system_first(turns)
        if self._profile.joins_turns:
            turns = joined(turns)

        def text(turns: Sequence[Turn]) -> str:
            said = self._in_words(turns) if style is None else turns
            made = [_message(turn, style) for turn in said]
            return self._unwrapped(self._template.render(made, tools=tools, template_kwargs=kwargs, now=now))

        try:
            return text(turns)
        except TemplateRefusalError:
            # Many templates insist on roles that alternate.
            if joined(turns) == turns:
                raise
            return text(joined(turns))

    def _in_words(self, turns: Sequence[Turn]) -> list[Turn]:
        found: list[Turn] = []
        outputs: list[str] = []
        for index, turn in enumerate(turns):
            if turn.role == "tool":
                outputs.append(turn.content)
                if index + 1 == len(turns) or turns[index + 1].role != "tool":
                    found.append(Turn(role="user", content=self._wrapped(self._format.outputs(outputs))))
                    outputs = []
            elif turn.calls:
                calls = self._format.calls([(call.name, to_json(call.arguments)) for call in turn.calls])
                found.append(Turn(role="assistant", content=_beside(turn.content, calls, self._format)))
            else:
                found.append(turn)
        return found

    def _wrapped(self, outputs: str) -> str:
        # DeepSeek's results stand outside of any turn; the mark doubled finds the place again.
        return outputs if self._format.name == "hermes" else f"{self._mark}{self._mark}{outputs}"

    def _unwrapped(self, text: str) -> str:
        return text.replace(f"{_USER}{self._mark}{self._mark}", "")


def _beside(content: str, calls: str, tool_format: ToolFormat) -> str:
    if not content:
        return calls
    return f"{content}\n{calls}" if tool_format.name == "hermes" else content + calls


def _message(turn: Turn, style: CallStyle | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.name is not None:
        message["name"] = turn.name
    if turn.call_id is not None:
        message["tool_call_id"] = turn.call_id
    if turn.calls:
        assert style is not None, "calls that were to be put into words"
        message["content"] = turn.content or style.empty_content
        message["tool_calls"] = [_call(call, style) for call in turn.calls]
    return message


def _call(call: Call, style: CallStyle) -> dict[str, Any]:
    arguments: Any = call.arguments if style.arguments == "object" else to_json(call.arguments)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The prefix that a request gave. ``inside``: it ends within the thinking."""

    reasoning: str
    content: str
    inside: bool


def _parsed_prefix(prefix: Prefix | None, profile: Profile) -> Beginning | None:
    """Tags in a prefix's content part it like a model's answer."""
    if prefix is None:
        return None
    if profile.think_tags is None:
        return Beginning(reasoning="", content=prefix.content, inside=False)
    parser = ThinkingParser(False, think_tags=profile.think_tags)
    deltas = parser.feed(prefix.content)
    inside = parser.state == "reasoning"
    answer = fold([*deltas, *parser.finish(True)])
    reasoning = prefix.reasoning + (answer.reasoning or "")
    content = answer.content or ""
    return Beginning(reasoning=reasoning, content=content, inside=inside or (bool(reasoning) and not content))


def _begun(
    text: str,
    template: ChatTemplate,
    profile: Profile,
    think: bool | None,
    prefix: Beginning | None,
    control: ControlStrings,
    mark: str,
) -> Prompt:
    """The prompt with the beginning of the answer behind it."""
    answer = _Answer(text, profile.think_tags)
    forced = profile.force_think and think is not False and text.endswith(_ASSISTANT)
    if forced or (prefix is not None and (prefix.reasoning or prefix.inside)):
        answer.open()
    if prefix is not None:
        answer.begin(prefix, lambda given: control.cut(given, mark))
    elif think is False:
        answer.close_empty()
    return Prompt(
        segments=segments(answer.text, mark),
        thinking=answer.thinking,
        keep_blanks=answer.continues or profile.think_tags is None,
        prompt_side=answer.prompt_side,
        begins_with_bos=bool(template.bos) and text.startswith(template.bos),
    )


class _Answer:
    """The end of a prompt, where the answer begins."""

    def __init__(self, text: str, tags: tuple[str, str] | None) -> None:
        self.text = text
        self.continues = False
        self._tags = tags or ("", "")
        self.thinking: Thinking = "closed" if tags is None else _thinking_at(text, tags)
        self.prompt_side = text[text.rindex(self._tags[0]) :] if self.thinking == "open" else ""

    def open(self) -> None:
        """Open the thinking where the template left it to the model."""
        if self.thinking == "possible":
            self.prompt_side = f"{self._tags[0]}\n"
            self.text += self.prompt_side
            self.thinking = "open"

    def close_empty(self) -> None:
        """No thinking: R1's own form of it, where the template had none."""
        self.open()
        if self.thinking == "open":
            self._close("\n" if self.text.endswith("\n") else "")

    def begin(self, prefix: Beginning, cut: Callable[[str], str]) -> None:
        """Go on with what the request gave."""
        if prefix.reasoning and self.thinking != "open":
            raise MessagesError(*_THINKING_IS_OFF)
        self.text += cut(prefix.reasoning)
        if prefix.inside:
            self.continues = bool(prefix.reasoning)
            return
        if self.thinking == "open":
            # R1 sets its tags on lines of their own, V3.1 does not.
            spaced = self.prompt_side.endswith("\n")
            self._close("\n" if spaced else "", after="\n\n" if spaced else "")
        self.text += cut(prefix.content)
        self.thinking, self.prompt_side = "closed", ""
        self.continues = bool(prefix.content)

    def _close(self, before: str, after: str = "\n\n") -> None:
        self.text += f"{before}{self._tags[1]}{after}"
        self.thinking, self.prompt_side = "closed", ""


def _thinking_at(text: str, tags: tuple[str, str]) -> Thinking:
    """What the template left open; a user's tags are cut by marks, so these are its own."""
    end = text.rstrip(BLANKS)
    if end.endswith(tags[0]):
        return "open"
    return "closed" if end.endswith(tags[1]) else "possible"
