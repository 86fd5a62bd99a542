"""Every field that a request may have does something: each check holds with the field and fails without it."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import msgspec
import pytest

from ktllama.engine.messages import Generate, Sampling
from ktllama.server.protocol.chat import ChatRequest
from ktllama.server.protocol.completion import CompletionRequest
from ktllama.server.protocol.embedding import EmbeddingRequest
from ktllama.server.protocol.messages import Message
from ktllama.server.protocol.tokens import DetokenizeRequest, TokenizeRequest
from ktllama.server.state import EndpointSettings
from tests.server.recording import CONTROL, MODEL, TEMPLATE, RecordingClient, ask, events

Check = Callable[[list[Generate], httpx.Response], bool]
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
PROFILE = Sampling(temperature=0.6, top_p=0.95)  # R1's, where nothing is set


def sampled(name: str, value: Any) -> Check:
    return lambda asked, _: getattr(asked[0].sampling, name) == value


def asks(name: str, value: Any) -> Check:
    return lambda asked, _: getattr(asked[0], name) == value


def thinks(name: str, value: Any) -> Check:
    return lambda asked, _: getattr(asked[0].thinking, name) == value


def prompt_of(asked: list[Generate]) -> str:
    return "".join(segment.text for segment in asked[0].prompt)


def message_of(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["choices"][0]["message"]
    return found


def refused(param: str) -> Check:
    return lambda asked, response: (
        response.status_code in (400, 404) and response.json()["error"]["param"] == param and not asked
    )


SAMPLING: dict[str, tuple[Any, Check]] = {
    "temperature": (0.1, sampled("temperature", 0.1)),
    "top_p": (0.5, sampled("top_p", 0.5)),
    "top_k": (7, sampled("top_k", 7)),
    "min_p": (0.2, sampled("min_p", 0.2)),
    "typical_p": (0.3, sampled("typical_p", 0.3)),
    "repeat_penalty": (1.2, sampled("repeat_penalty", 1.2)),
    "repeat_last_n": (5, sampled("repeat_last_n", 5)),
    "frequency_penalty": (0.4, sampled("frequency_penalty", 0.4)),
    "presence_penalty": (-0.4, sampled("presence_penalty", -0.4)),
    "dry_multiplier": (0.8, sampled("dry_multiplier", 0.8)),
    "dry_base": (2.0, sampled("dry_base", 2.0)),
    "dry_allowed_length": (3, sampled("dry_allowed_length", 3)),
    "dry_penalty_last_n": (9, sampled("dry_penalty_last_n", 9)),
    "dry_sequence_breakers": (["x"], sampled("dry_sequence_breakers", ("x",))),
    "xtc_probability": (0.5, sampled("xtc_probability", 0.5)),
    "xtc_threshold": (0.2, sampled("xtc_threshold", 0.2)),
    "mirostat": (2, sampled("mirostat", 2)),
    "mirostat_tau": (4.0, sampled("mirostat_tau", 4.0)),
    "mirostat_eta": (0.2, sampled("mirostat_eta", 0.2)),
    "logit_bias": ({"5": -100}, sampled("logit_bias", {5: -100.0})),
    "seed": (42, sampled("seed", 42)),
    "stop": (["a", "b"], asks("stop", ("a", "b"))),
    "ignore_eos": (True, asks("ignore_eos", True)),
    "deterministic": (True, asks("deterministic", True)),
    "cache_prompt": (False, asks("cache_prompt", False)),
    "grammar": ('root ::= "a"', asks("grammar", 'root ::= "a"')),
}
# Fields that change nothing: any value is taken, or one that would change something is refused.
INERT: dict[str, tuple[Any, Check]] = {
    "user": (5, refused("user")),
    "metadata": ("x", refused("metadata")),
    "safety_identifier": (5, refused("safety_identifier")),
    "prompt_cache_key": (5, refused("prompt_cache_key")),
    "prompt_cache_retention": (5, refused("prompt_cache_retention")),
    "service_tier": ("priority", refused("service_tier")),
    "store": (True, refused("store")),
    "model": ("gpt-9", refused("model")),
}
CHAT: dict[str, tuple[Any, Check]] = {
    **SAMPLING,
    **INERT,
    "modalities": (["text", "audio"], refused("modalities")),
    "verbosity": ("low", refused("verbosity")),
    "audio": ({"format": "wav"}, refused("audio")),
    "prediction": ({}, refused("prediction")),
    "web_search_options": ({}, refused("web_search_options")),
    "functions": ([], refused("functions")),
    "function_call": ("auto", refused("function_call")),
    "messages": ([{"role": "user", "content": "other"}], lambda asked, _: "other" in prompt_of(asked)),
    "tools": ([TOOL], lambda asked, _: "get_weather" in prompt_of(asked) and bool(asked[0].thinking.tool_openings)),
    "add_generation_prompt": (False, refused("add_generation_prompt")),
    "chat_template_kwargs": ({"mood": "good"}, refused("chat_template_kwargs.mood")),
    "stream": (True, lambda _, response: events(response)[-1] == "[DONE]"),
    "response_format": ({"type": "json_object"}, asks("json_schema", '{"type":"object"}')),
    "reasoning_format": ("none", asks("raw", True)),
    "reasoning_budget": (17, thinks("budget", 17)),
    "reasoning_effort": ("low", thinks("budget", 1024)),
    "thinking": ({"type": "enabled", "budget_tokens": 5}, refused("thinking.budget_tokens")),
    "unclosed_thinking": ("content", asks("keep_partial_thinking_as_content", True)),
    "n": (3, lambda asked, response: len(asked) == 3 and len(response.json()["choices"]) == 3),
    "logprobs": (True, lambda asked, response: asked[0].logprobs == 0 and bool(_first_logprobs(response))),
    "max_tokens": (9, asks("max_tokens", 9)),
    "max_completion_tokens": (8, asks("max_tokens", 8)),
}
# Fields that need another one beside them: what stands beside, the value, and the check.
CHAT_BESIDE: dict[str, tuple[dict[str, Any], Any, Check]] = {
    "stream_options": (
        {"stream": True},
        {"include_usage": True},
        lambda _, response: json.loads(events(response)[-2])["usage"]["prompt_tokens"] == 5,
    ),
    "tool_choice": ({"tools": [TOOL]}, "required", lambda asked, _: "get_weather" in asked[0].grammar),
    "parallel_tool_calls": (
        {"tools": [TOOL], "tool_choice": "required"},
        False,
        lambda asked, _: ")*" not in asked[0].grammar.split("call ::=")[0],
    ),
    "reasoning_budget_message": (
        {"reasoning_budget": 5},
        "Enough.",
        lambda asked, _: asked[0].thinking.closing == "\nEnough.\n</think>\n\n",
    ),
    "top_logprobs": (
        {"logprobs": True},
        2,
        lambda asked, response: asked[0].logprobs == 2 and len(_first_logprobs(response)["top_logprobs"]) == 2,
    ),
}
COMPLETION: dict[str, tuple[Any, Check]] = {
    **SAMPLING,
    **INERT,
    "prompt": ("other", lambda asked, _: prompt_of(asked) == "other"),
    "suffix": ("x", refused("suffix")),
    "echo": (True, lambda _, response: response.json()["choices"][0]["text"].startswith("a b")),
    "n": (2, lambda asked, response: len(asked) == len(response.json()["choices"]) == 2),
    "best_of": (2, refused("best_of")),
    "logprobs": (1, lambda asked, response: asked[0].logprobs == 1 and len(_legacy(response)["top_logprobs"][0]) == 1),
    "max_tokens": (3, asks("max_tokens", 3)),
    "stream": (True, lambda _, response: events(response)[-1] == "[DONE]"),
}


def _first_logprobs(response: httpx.Response) -> Any:
    return (response.json()["choices"][0]["logprobs"] or {}).get("content", [None])[0]


def _legacy(response: httpx.Response) -> Any:
    return response.json()["choices"][0]["logprobs"] or {"top_logprobs": [{}]}


def holds(check: Check, body: dict[str, Any], path: str) -> bool:
    response, client = ask(body, path)
    try:
        return check(client.asked, response)
    except (AssertionError, KeyError, IndexError, TypeError, ValueError):
        return False


def test_every_field_of_chat_is_checked_here() -> None:
    assert set(CHAT) | set(CHAT_BESIDE) == set(ChatRequest.model_fields)


def test_every_field_of_completions_is_checked_here() -> None:
    assert set(COMPLETION) | {"stream_options"} == set(CompletionRequest.model_fields)


@pytest.mark.parametrize("field", CHAT)
def test_a_field_of_chat_is_not_ignored(field: str) -> None:
    value, check = CHAT[field]

    assert holds(check, {"messages": [USER], field: value}, "/v1/chat/completions")
    assert not holds(check, {"messages": [USER]}, "/v1/chat/completions")


@pytest.mark.parametrize("field", CHAT_BESIDE)
def test_a_field_of_chat_beside_another_is_not_ignored(field: str) -> None:
    beside, value, check = CHAT_BESIDE[field]

    assert holds(check, {"messages": [USER], **beside, field: value}, "/v1/chat/completions")
    assert not holds(check, {"messages": [USER], **beside}, "/v1/chat/completions")


@pytest.mark.parametrize("field", COMPLETION)
def test_a_field_of_completions_is_not_ignored(field: str) -> None:
    value, check = COMPLETION[field]

    assert holds(check, {"prompt": "a b", field: value}, "/v1/completions")
    assert not holds(check, {"prompt": "a b"}, "/v1/completions")


def test_usage_of_a_streamed_completion_comes_where_it_is_asked_for() -> None:
    with_usage, _ = ask({"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}, "/v1/completions")
    without, _ = ask({"prompt": "a", "stream": True}, "/v1/completions")

    assert json.loads(events(with_usage)[-2])["usage"]["total_tokens"] == 8
    assert "usage" not in json.loads(events(without)[-2])


def test_what_is_not_set_comes_from_the_models_profile() -> None:
    _, client = ask({"messages": [USER]})

    assert client.asked[0].sampling == PROFILE
    assert client.asked[0].max_tokens == 32768
    assert client.asked[0].thinking.begins_inside
    assert client.asked[0].thinking.budget is None


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({"reasoning_effort": "none"}, 0),
        ({"reasoning_effort": "low"}, 1024),
        ({"reasoning_effort": "medium"}, 8192),
        ({"reasoning_effort": "high"}, None),
        ({"reasoning_budget": -1}, None),
        ({"reasoning_budget": 0}, 0),
        ({"thinking": {"type": "disabled"}}, 0),
        ({"thinking": {"type": "enabled"}}, None),
    ],
)
def test_effort_is_a_budget_of_thinking(fields: dict[str, Any], budget: int | None) -> None:
    response, client = ask({"messages": [USER], **fields})

    assert response.status_code == 200
    thinking = client.asked[0].thinking
    assert (thinking.budget if thinking.start else 0) == budget


def test_seeds_of_choices_differ_and_minus_one_is_any() -> None:
    _, several = ask({"messages": [USER], "n": 3, "seed": 7})
    _, any_seed = ask({"messages": [USER], "seed": -1})

    assert [asked.sampling.seed for asked in several.asked] == [7, 8, 9]
    assert any_seed.asked[0].sampling.seed is None


MESSAGE_CHECKS: dict[str, tuple[Sequence[dict[str, Any]], Check]] = {
    "role": ([{"role": "developer", "content": "be brief"}, USER], lambda asked, _: "be brief" in prompt_of(asked)),
    "content": ([{"role": "user", "content": [{"type": "text", "text": "part"}]}], lambda a, _: "part" in prompt_of(a)),
    "name": ([{"role": "user", "content": "hi", "name": 5}], refused("messages[0].name")),
    "tool_calls": (
        [
            USER,
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "blue"},
        ],
        lambda asked, _: "look" in prompt_of(asked) and "sky" in prompt_of(asked) and "blue" in prompt_of(asked),
    ),
    "tool_call_id": ([USER, {"role": "tool", "content": "x"}], refused("messages[1].tool_call_id")),
    "prefix": (
        [USER, {"role": "assistant", "content": "Well, ", "prefix": True}],
        lambda asked, _: prompt_of(asked).endswith("Well, ") and asked[0].thinking.keep_blanks,
    ),
    "reasoning_content": (
        [USER, {"role": "assistant", "content": "", "reasoning_content": "First, ", "prefix": True}],
        lambda asked, _: prompt_of(asked).endswith("First, ") and asked[0].thinking.begins_inside,
    ),
    "refusal": ([USER, {"role": "assistant", "content": "a", "refusal": "no"}, USER], refused("messages[1].refusal")),
    "annotations": ([{"role": "user", "content": "hi", "annotations": 5}], refused("messages[0].annotations")),
    "parsed": ([{"role": "user", "content": "hi", "parsed": 5}], refused("messages[0].parsed")),
    "audio": ([{"role": "user", "content": "hi", "audio": {}}], refused("messages[0].audio")),
    "function_call": (
        [USER, {"role": "assistant", "content": "a", "function_call": {}}, USER],
        refused("messages[1].function_call"),
    ),
}


def test_every_field_of_a_message_is_checked_here() -> None:
    assert set(MESSAGE_CHECKS) == set(Message.model_fields)


@pytest.mark.parametrize("field", MESSAGE_CHECKS)
def test_a_field_of_a_message_is_not_ignored(field: str) -> None:
    messages, check = MESSAGE_CHECKS[field]

    assert holds(check, {"messages": list(messages)}, "/v1/chat/completions")
    assert not holds(check, {"messages": [USER]}, "/v1/chat/completions")


SWITCHED = TEMPLATE.replace("<think>\n", "{{ '<think>' if enable_thinking else '<think></think>' }}{{ mood }}")


def switched() -> RecordingClient:
    client = RecordingClient()
    client.model = msgspec.structs.replace(MODEL, chat_template=SWITCHED, metadata={"general.name": "Qwen3"})
    return client


def test_template_variables_that_the_template_reads_reach_it() -> None:
    body = {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False, "mood": "glad"}}
    response, client = ask(body, client=switched())

    assert response.status_code == 200
    assert prompt_of(client.asked).endswith("<think></think>glad")


@pytest.mark.parametrize(
    ("fields", "switch", "wanted"),
    [
        ({"thinking": {"type": "enabled"}}, False, "on"),
        ({"reasoning_effort": "high"}, False, "on"),
        ({"thinking": {"type": "disabled"}}, True, "off"),
        ({"reasoning_budget": 0}, True, "off"),
    ],
)
def test_template_variables_that_contradict_a_field_are_refused(
    fields: dict[str, Any], switch: bool, wanted: str
) -> None:
    body = {"messages": [USER], **fields}
    response, client = ask({**body, "chat_template_kwargs": {"enable_thinking": switch}}, client=switched())
    agreeing, _ = ask({**body, "chat_template_kwargs": {"enable_thinking": not switch}}, client=switched())

    error = response.json()["error"]
    assert (error["param"], error["message"]) == (
        "chat_template_kwargs.enable_thinking",
        f"chat_template_kwargs.enable_thinking: another field turns the thinking {wanted}",
    )
    assert client.asked == []
    assert agreeing.status_code == 200


def test_thinking_is_refused_by_a_model_that_does_not_think() -> None:
    def plain() -> RecordingClient:
        client = RecordingClient()
        client.model = msgspec.structs.replace(MODEL, chat_template="{{ messages }}", metadata={"general.name": "x"})
        return client

    body = {"messages": [USER], "thinking": {"type": "enabled"}}
    response, client = ask(body, client=plain())
    lenient, _ = ask(body, client=plain(), settings=EndpointSettings(lenient=True))
    disabled, _ = ask({**body, "thinking": {"type": "disabled"}}, client=plain())
    bounded, _ = ask({"messages": [USER], "reasoning_effort": "low"}, client=plain())

    assert refused("thinking")(client.asked, response)
    assert lenient.headers["x-ktllama-ignored-fields"] == "thinking"
    assert disabled.status_code == bounded.status_code == 200


def test_one_call_is_asked_of_the_engine_in_the_models_format() -> None:
    _, one = ask({"messages": [USER], "tools": [TOOL], "parallel_tool_calls": False})
    _, many = ask({"messages": [USER], "tools": [TOOL], "parallel_tool_calls": True})
    _, none = ask({"messages": [USER], "parallel_tool_calls": False})

    assert [client.asked[0].one_call for client in (one, many, none)] == ["deepseek-r1", None, None]


BEGIN = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"


@pytest.mark.parametrize(
    ("prefix", "param"),
    [
        ({"content": BEGIN}, "messages[1].content"),
        ({"content": "Look: <｜tool▁calls▁begin｜>"}, "messages[1].content"),
        ({"content": f'{BEGIN}function<｜tool▁sep｜>get_weather\n```json\n{{"a"'}, "messages[1].content"),
        ({"content": "Look: <｜tool▁ca"}, "messages[1].content"),
        ({"content": "", "reasoning_content": f"So {BEGIN}"}, "messages[1].reasoning_content"),
    ],
)
def test_a_prefix_that_begins_a_tool_call_is_refused(prefix: dict[str, str], param: str) -> None:
    messages = [USER, {"role": "assistant", "prefix": True, **prefix}]

    assert holds(refused(param), {"messages": messages, "tools": [TOOL]}, "/v1/chat/completions")
    assert ask({"messages": messages})[0].status_code == 200  # without tools it is text


def test_a_prefix_with_tools_may_say_anything_else() -> None:
    messages = [USER, {"role": "assistant", "prefix": True, "content": "1 <"}]

    assert ask({"messages": messages, "tools": [TOOL]})[0].status_code == 200


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, (value, _) in SAMPLING.items()])
def test_the_template_is_applied_to_any_chat_request(field: str, value: Any) -> None:
    response, _ = ask({"messages": [USER], field: value}, "/apply-template")

    assert response.json()["prompt"] == f"{CONTROL[0]}<｜User｜>hi<｜Assistant｜><think>\n"


def test_the_template_is_applied_as_for_the_answer() -> None:
    bodies: list[dict[str, Any]] = [
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "none"},
        {"reasoning_budget": 0},
        {"thinking": {"type": "disabled"}},
        {"chat_template_kwargs": {}},
        {"stream": True, "n": 3, "max_tokens": 5},
    ]
    for fields in bodies:
        body = {"messages": [USER], **fields}
        shown, _ = ask(body, "/apply-template")
        _, client = ask(body)
        assert shown.json()["prompt"] == prompt_of(client.asked[:1])
    refusing, _ = ask({"messages": [USER], "chat_template_kwargs": {"mood": 1}}, "/apply-template")
    assert refusing.json()["error"]["param"] == "chat_template_kwargs.mood"


def test_the_choice_of_a_tool_decides_what_is_offered_and_what_is_forced() -> None:
    other = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
    forms: dict[str, tuple[bool, bool, bool]] = {}  # offered in the prompt; either forced by the grammar
    for choice in ("none", "auto", "required", {"type": "function", "function": {"name": "get_time"}}):
        _, client = ask({"messages": [USER], "tools": [TOOL, other], "tool_choice": choice})
        grammar = client.asked[0].grammar
        name = choice if isinstance(choice, str) else "named"
        forms[name] = "get_weather" in prompt_of(client.asked), "get_weather" in grammar, "get_time" in grammar

    assert forms == {
        "none": (False, False, False),
        "auto": (True, False, False),
        "required": (True, True, True),
        "named": (True, False, True),
    }


def test_thinking_of_earlier_turns_is_dropped() -> None:
    earlier = {"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "secret"}
    _, client = ask({"messages": [USER, earlier, USER]})

    assert "secret" not in prompt_of(client.asked)
    assert "<think>a" not in prompt_of(client.asked)


def test_reasoning_format_legacy_is_asked_of_the_engine() -> None:
    _, client = ask({"messages": [USER], "reasoning_format": "deepseek-legacy"})

    assert client.asked[0].legacy
    assert not client.asked[0].raw


def test_json_schema_reaches_the_engine_as_it_is() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    _, client = ask({"messages": [USER], "response_format": wanted})

    assert json.loads(client.asked[0].json_schema) == SCHEMA


def test_fields_of_embeddings_and_tokens_are_not_ignored() -> None:
    client = RecordingClient()
    ask({"input": ["a", "b"]}, "/v1/embeddings", client=client)
    as_base64, _ = ask({"input": [1, 2], "encoding_format": "base64"}, "/v1/embeddings", client=client)
    too_many, _ = ask({"input": "a", "dimensions": 3}, "/v1/embeddings", client=client)
    fitting, _ = ask({"input": "a", "dimensions": 2, "user": "u"}, "/v1/embeddings", client=client)
    ask({"content": "x", "add_special": True, "parse_special": False}, "/tokenize", client=client)
    pieces, _ = ask({"content": "x", "with_pieces": True}, "/tokenize", client=client)
    text, _ = ask({"tokens": [3, 4]}, "/detokenize", client=client)

    assert [call for call in client.calls if call[0] == "embed"][:2] == [("embed", ("a", "b")), ("embed", ((1, 2),))]
    assert as_base64.json()["data"][0]["embedding"] == "mpkZP83MTD8="
    assert too_many.json()["error"]["param"] == "dimensions"
    assert fitting.status_code == 200
    (segments, add_bos, _) = client.calls[-3][1]
    assert (segments[0].text, segments[0].special, add_bos) == ("x", False, True)
    assert pieces.json() == {"tokens": [{"id": 1, "piece": "a"}, {"id": 2, "piece": [255]}]}
    assert text.json() == {"content": "de\ufffdtok"}
    assert set(EmbeddingRequest.model_fields) == {"input", "model", "encoding_format", "dimensions", "user"}
    assert set(TokenizeRequest.model_fields) == {"content", "add_special", "parse_special", "with_pieces"}
    assert set(DetokenizeRequest.model_fields) == {"tokens"}
