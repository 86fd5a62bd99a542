"""The whole path with a real model, tiny-R1: what a stream adds up to, and what fields do to real text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktllama import assets
from ktllama.cli.engine import EXECUTOR
from tests.server.live import Live, live
from tests.server.streams import gathered, whole

#: What makes the logits of a request independent of what ran before it.
ALONE: list[dict[str, Any]] = [{"deterministic": True}, {"cache_prompt": False}]
SAMPLED: list[dict[str, Any]] = [{"temperature": 0}, {"seed": 7, "temperature": 1.2}, {"seed": 8, "min_p": 0.05}]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    options = {"model": str(assets.tiny_r1()), "ctx": 1024, "parallel": 4, "ubatch": 64, "threads": 1}
    with live(options, executor=EXECUTOR) as found:
        yield found


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.sampled_from(["What is 7 + 8?", "Sort: pear, fig", 'How many r\'s are in "strawberry"?']),
    alone=st.sampled_from(ALONE),
    sampled=st.sampled_from(SAMPLED),
    fields=st.fixed_dictionaries(
        {
            "max_tokens": st.sampled_from([5, 40, 90]),
            "n": st.sampled_from([None, 2]),
            "reasoning_budget": st.sampled_from([None, 0, 12]),
            "reasoning_format": st.sampled_from([None, "none", "deepseek-legacy"]),
            "stop": st.sampled_from([None, "=", ["a", "5"]]),
            "logprobs": st.sampled_from([None, True]),
        }
    ),
)
def test_a_stream_adds_up_to_the_whole_answer(
    server: Live, text: str, alone: dict[str, Any], sampled: dict[str, Any], fields: dict[str, Any]
) -> None:
    body = {**fields, **alone, **sampled}
    streamed = gathered(server.chat(text, **body, stream=True, stream_options={"include_usage": True}))
    answered = whole(server.chat(text, **body))

    if body.get("logprobs"):
        for choices in (streamed["choices"], answered["choices"]):
            for choice in choices:
                # a batch of other shapes may change the last bits
                choice["logprobs"] = [token["token"] for token in choice["logprobs"]]
                choice["reasoning_logprobs"] = [token["token"] for token in choice["reasoning_logprobs"]]
    assert streamed == answered


def test_it_thinks_and_then_answers(server: Live) -> None:
    answer = server.chat("What is 17 * 23?", temperature=0).json()

    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "17 * 23 = 391"
    assert choice["message"]["reasoning_content"].startswith("multiply\n17*23\n")
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("budget", [0, 1, 10])
def test_a_budget_is_kept_to_the_token(server: Live, budget: int) -> None:
    fields = {"temperature": 0, "reasoning_budget_message": "Time is up.", "max_tokens": 60}
    answer = server.chat("What is 17 * 23?", reasoning_budget=budget, **fields).json()

    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": budget}
    assert (answer["choices"][0]["message"]["reasoning_content"] or "").endswith("Time is up." if budget else "")


def test_a_required_call_obeys_its_schema_and_ends_the_answer(server: Live) -> None:
    parameters = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    function = {"name": "add", "parameters": parameters, "strict": True}
    fields = {"tool_choice": "required", "reasoning_budget": 0, "parallel_tool_calls": False, "seed": 1}
    answer = server.chat("Add.", tools=[{"type": "function", "function": function}], **fields).json()

    (choice,) = answer["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "add"
    arguments = json.loads(call["function"]["arguments"])
    assert arguments.keys() == {"n"}
    assert arguments["n"] in range(10)
    assert choice["finish_reason"] == "tool_calls"
