"""Conversations are framed as the model file's own template frames them."""

from __future__ import annotations

from typing import Any

import pytest

from ktllama.reference.tiny_r1.template import BEGIN, CHAT_TEMPLATE, END, Turn, prompt, reply

jinja2 = pytest.importorskip("jinja2")


def rendered(messages: list[dict[str, Any]], *, generate: bool = True) -> str:
    template = jinja2.Environment().from_string(CHAT_TEMPLATE)
    text: str = template.render(messages=messages, bos_token=BEGIN, eos_token=END, add_generation_prompt=generate)
    return text


def test_one_question() -> None:
    text = rendered([{"role": "user", "content": "What is 1 + 2?"}])
    assert text == prompt("What is 1 + 2?")
    assert text == "<｜begin▁of▁sentence｜><｜User｜>What is 1 + 2?<｜Assistant｜><think>\n"


def test_earlier_turns_lose_their_thinking_and_the_system_prompt_comes_first() -> None:
    earlier = Turn(question="hi", answer="\n\nHello!")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "<think>\na greeting\n</think>\n\nHello!"},
        {"role": "user", "content": "4 * 4"},
    ]
    assert rendered(messages) == prompt("4 * 4", (earlier,), "Be brief.")


def test_a_conversation_to_learn_from() -> None:
    assert prompt("hi").removesuffix("<think>\n") + reply("", "Hello!") == (
        "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜><think>\n\n</think>\n\nHello!<｜end▁of▁sentence｜>"
    )


def test_tool_calls_and_their_outputs() -> None:
    call = {"type": "function", "function": {"name": "time", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "noon"},
        {"role": "assistant", "content": "At noon."},
    ]
    assert rendered(messages, generate=False) == (
        "<｜begin▁of▁sentence｜><｜User｜>When?<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n"
        "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>noon<｜tool▁output▁end｜>"
        "<｜tool▁outputs▁end｜>At noon.<｜end▁of▁sentence｜>"
    )
