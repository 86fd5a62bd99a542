"""Bodies are hostile: whatever is wrong with one is a 400 that says what and where."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import Message

from ktllama.server.bodies import parsed, read_body, validated
from ktllama.server.errors import ApiError
from ktllama.server.protocol.chat import ChatRequest, JsonSchemaFormat
from ktllama.server.protocol.completion import CompletionRequest
from ktllama.server.protocol.embedding import EmbeddingRequest
from ktllama.server.protocol.tokens import DetokenizeRequest
from ktllama.server.state import BodyLimits

USER = {"role": "user", "content": "hi"}


def refusal(body: dict[str, Any], model: Any = ChatRequest) -> tuple[str | None, str | None, str]:
    with pytest.raises(ApiError) as caught:
        validated(body, model)
    assert caught.value.status == 400
    return caught.value.param, caught.value.code, caught.value.message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the body is empty; a JSON object is expected"),
        (b" \n", "the body is empty; a JSON object is expected"),
        (b"{", "the body is not JSON: Expecting property name enclosed in double quotes (line 1, column 2)"),
        (b'{"a" 1}', "the body is not JSON: Expecting ':' delimiter (line 1, column 6)"),
        (b"[1]", "the body must be a JSON object, not an array"),
        (b'"text"', "the body must be a JSON object, not a string"),
        (b"null", "the body must be a JSON object, not null"),
        (b"1", "the body must be a JSON object, not a number"),
        (b"true", "the body must be a JSON object, not a boolean"),
        (b'{"a": "\xff"}', "the body is not UTF-8 (at byte 7)"),
        (b'{"a": NaN}', "the body is not JSON: NaN is no number of JSON's"),
        (b'{"a": -Infinity}', "the body is not JSON: -Infinity is no number of JSON's"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a": -1E+0400}', "the number -1E+0400 is too large"),
        (b'{"a": ' + b"9" * 309 + b".0}", "the number " + "9" * 37 + "... is too large"),
        (b'{"a": 123456789012345678901}', "the number 123456789012345678901 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "the number " + "9" * 37 + "... is too large"),
        (b'{"a": 1, "a": 2}', "the name 'a' stands twice in one object"),
        (b'{"a": {"b\\u001b": 1, "b\\u001b": 2}}', "the name 'b\\x1b' stands twice in one object"),
        (b'{"c": 1, "a": 1, "b": 1, "b": 2, "a": 2}', "the name 'b' stands twice in one object"),
        (b'{"a": "\\ud800"}', "the body holds half of a surrogate pair (\\ud800 to \\udfff)"),
        (b'{"\\udc00": 1}', "the body holds half of a surrogate pair (\\ud800 to \\udfff)"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "the body is nested more than 64 levels deep"),
        (b'{"a": ' * 100_000, "the body is nested more than 64 levels deep"),
        (b"[" * 1_000_000, "the body is nested more than 64 levels deep"),
    ],
)
def test_what_is_no_json_object_is_refused_in_one_sentence(raw: bytes, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(raw, 64)

    assert (caught.value.status, caught.value.code, caught.value.message) == (400, "invalid_json", message)


def test_a_name_that_stands_twice_is_found_among_very_many() -> None:
    names = [*range(500_000), 499_999]  # quadratic work would take an hour

    with pytest.raises(ApiError) as caught:
        parsed(("{" + ",".join(f'"{name}":0' for name in names) + "}").encode(), 64)

    assert caught.value.message == "the name '499999' stands twice in one object"


def test_a_body_may_hold_any_text_and_some_depth() -> None:
    body = {"a": ["é😀\u2028", {"b": [1, 2.5, True, None]}], "deep": [[[[]]]]}

    assert parsed(json.dumps(body).encode(), 64) == body
    assert parsed(json.dumps(body, ensure_ascii=False).encode(), 64) == body
    nested: Any = "x"
    for _ in range(63):
        nested = [nested]
    assert parsed(json.dumps({"a": nested}).encode(), 64) == {"a": nested}


@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        ({"temprature": 1}, "temprature", "unknown_field", "there is no such field; did you mean 'temperature'?"),
        ({"zzz": None}, "zzz", "unknown_field", "there is no such field"),
        ({"temperature": "1"}, "temperature", "invalid_value", "expected a number, found the string '1'"),
        ({"temperature": 2.1}, "temperature", "invalid_value", "must be at most 2, found 2.1"),
        ({"temperature": True}, "temperature", "invalid_value", "expected a number, found true"),
        ({"top_k": 1.5}, "top_k", "invalid_value", "expected a whole number, found 1.5"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "must be at least 1, found 0"),
        ({"stream": "yes"}, "stream", "invalid_value", "expected true or false, found the string 'yes'"),
        ({"stop": ["a", ""]}, "stop", "invalid_value", "a stop text must not be empty"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value", "may have at most 16 items"),
        ({"stop": [1]}, "stop[0]", "invalid_value", "expected a string, found 1"),
        ({"n": 0}, "n", "invalid_value", "must be at least 1, found 0"),
        ({"mirostat": 3}, "mirostat", "invalid_value", "expected 0, 1 or 2, found 3"),
        (
            {"mirostat": 2, "top_k": 1, "top_p": 1, "min_p": 0.1, "repeat_penalty": 5.0, "temperature": 0.5},
            "mirostat",
            "invalid_value",
            "cannot be combined with top_k, min_p, repeat_penalty: it chooses without them",
        ),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value", "its keys must be token ids, found 'x'"),
        (
            {"logit_bias": {"0" * 4400 + "1": 1}},
            "logit_bias",
            "invalid_value",
            "its keys must be token ids, found '" + "0" * 40 + "'",
        ),
        (
            {"logit_bias": {"0" * 12 + "9" * 25: 1}},
            "logit_bias",
            "invalid_value",
            "its keys must be token ids, found '" + "0" * 12 + "9" * 25 + "'",
        ),
        (
            {"logit_bias": {"2147483648": 1}},
            "logit_bias",
            "invalid_value",
            "its keys must be token ids, found '2147483648'",
        ),
        ({"logit_bias": {"01": 1}}, "logit_bias", "invalid_value", "its keys must be token ids, found '01'"),
        ({"logit_bias": {"5": 200}}, "logit_bias.5", "invalid_value", "must be at most 100, found 200"),
        ({"seed": 2**70}, "seed", "invalid_value", f"must be less than {2**63}, found {2**70}"),
        ({"grammar": ""}, "grammar", "invalid_value", "must not be empty"),
        ({"store": True}, "store", "unsupported_value", "answers are not stored here; accepted: false or null"),
        (
            {"service_tier": "flex"},
            "service_tier",
            "unsupported_value",
            'there is one service tier; accepted: "auto" or "default" or null',
        ),
        (
            {"modalities": ["audio"]},
            "modalities",
            "unsupported_value",
            'this server writes text only; accepted: ["text"] or null',
        ),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_value", "this server makes no audio; accepted: null"),
        (
            {"prediction": {"type": "content"}},
            "prediction",
            "unsupported_value",
            "predicted outputs are not used here; accepted: null",
        ),
        (
            {"web_search_options": {}},
            "web_search_options",
            "unsupported_value",
            "this server does not search the web; accepted: null",
        ),
        (
            {"functions": []},
            "functions",
            "unsupported_value",
            "functions were replaced by tools; send tools; accepted: null",
        ),
        ({"stream_options": {}}, "stream_options", "invalid_value", "needs stream: true"),
        (
            {"stream": True, "stream_options": {"include_use": True}},
            "stream_options.include_use",
            "unknown_field",
            "there is no such field; did you mean 'include_usage'?",
        ),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value", "needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value", "must be at most 20, found 21"),
        (
            {"max_tokens": 5, "max_completion_tokens": 6},
            "max_completion_tokens",
            "invalid_value",
            "differs from max_tokens; send one of them",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value", "needs tools"),
        (
            {"tool_choice": "some"},
            "tool_choice",
            "invalid_value",
            "expected 'none', 'auto' or 'required', found the string 'some'",
        ),
        (
            {"reasoning_effort": "low", "reasoning_budget": 5},
            "reasoning_effort",
            "invalid_value",
            "cannot be combined with reasoning_budget, which says the same in tokens",
        ),
        (
            {"reasoning_effort": "high", "reasoning_budget": 0},
            "reasoning_effort",
            "invalid_value",
            "cannot be combined with reasoning_budget, which says the same in tokens",
        ),
        (
            {"thinking": {"type": "disabled"}, "reasoning_budget": 5},
            "thinking",
            "invalid_value",
            "is disabled, but reasoning_budget or reasoning_effort asks for some",
        ),
        (
            {"thinking": {"type": "disabled"}, "reasoning_effort": "high"},
            "thinking",
            "invalid_value",
            "is disabled, but reasoning_budget or reasoning_effort asks for some",
        ),
        (
            {"thinking": {"type": "enabled"}, "reasoning_budget": 0},
            "thinking",
            "invalid_value",
            "is enabled, but reasoning_budget or reasoning_effort asks for none",
        ),
        (
            {"thinking": {"type": "enabled"}, "reasoning_effort": "none"},
            "thinking",
            "invalid_value",
            "is enabled, but reasoning_budget or reasoning_effort asks for none",
        ),
        (
            {"response_format": {"type": "xml"}},
            "response_format",
            "invalid_value",
            "expected an object whose type is 'text', 'json_object' or 'json_schema'",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_field",
            "is required",
        ),
        (
            {"response_format": {"type": "json_object"}, "grammar": "root ::= []"},
            "grammar",
            "invalid_value",
            "cannot be combined with response_format",
        ),
    ],
)
def test_a_wrong_field_of_chat_is_named_in_plain_words(
    fields: dict[str, Any], param: str, code: str, message: str
) -> None:
    assert refusal({"messages": [USER], **fields}) == (param, code, f"{param}: {message}")


@pytest.mark.parametrize(
    ("message", "param", "words"),
    [
        ("hi", "", "expected an object, found the string 'hi'"),
        ({"content": "hi"}, ".role", "is required"),
        (
            {"role": "robot", "content": ""},
            ".role",
            "expected 'system', 'developer', 'user', 'assistant' or 'tool', found the string 'robot'",
        ),
        ({"role": "user"}, ".content", "is required"),
        ({"role": "user", "content": None}, ".content", "is required"),
        ({"role": "user", "content": 5}, ".content", "expected a string, found 5"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
            ".content[0]",
            "a part of type 'image_url': this model reads text only",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text", "is required"),
        (
            {"role": "user", "content": "", "tool_calls": []},
            ".tool_calls",
            "a message of role 'user' has no tool_calls",
        ),
        ({"role": "tool", "content": ""}, ".tool_call_id", "is required"),
        (
            {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f"}}]},
            ".tool_calls[0].function.arguments",
            "is required",
        ),
        (
            {"role": "user", "content": "", "prefix": True},
            ".prefix",
            "a message of role 'user' has no prefix",
        ),
    ],
)
def test_a_wrong_message_is_named_by_its_place(message: Any, param: str, words: str) -> None:
    found = refusal({"messages": [USER, message]})

    assert (found[0], found[2]) == (f"messages[1]{param}", f"messages[1]{param}: {words}")


def test_every_fault_is_told_and_many_are_counted() -> None:
    param, _, message = refusal({"messages": [], **{f"x{number}": 1 for number in range(7)}})

    assert param == "messages"
    assert message.startswith("messages: must not be empty; x0: there is no such field; x1: there is no such field")
    assert message.endswith("; and 3 more")


def test_mirostat_is_taken_beside_what_does_nothing() -> None:
    idle = {"top_k": -1, "top_p": 1, "typical_p": 1.0, "min_p": 0, "repeat_penalty": 1, "dry_multiplier": 0}
    for fields in ({"mirostat": 1, "dry_base": 2.0, **idle}, {"mirostat": 0, "top_k": 5}):
        body = {"messages": [{"role": "user", "content": "hi"}], **fields}
        assert ChatRequest.model_validate(body).mirostat == fields["mirostat"]


def test_prefix_stands_on_the_last_message_alone() -> None:
    prefixed = {"role": "assistant", "content": "a", "prefix": True}

    assert refusal({"messages": [prefixed, USER]})[0] == "messages[0].prefix"
    assert refusal({"messages": [USER, prefixed], "add_generation_prompt": True})[0] == "add_generation_prompt"
    assert validated({"messages": [USER, prefixed]}, ChatRequest)[0].messages[-1].prefix is True


def test_tools_are_checked_against_each_other_and_the_choice() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    named = {"type": "function", "function": {"name": "g"}}

    assert refusal({"messages": [USER], "tools": [tool, tool]})[2] == "tools: two tools are called 'f'"
    assert refusal({"messages": [USER], "tools": [tool], "tool_choice": named})[2] == (
        "tool_choice.function.name: is not among the tools"
    )
    assert refusal({"messages": [USER], "tools": [tool], "response_format": {"type": "json_object"}})[2] == (
        "response_format: cannot be combined with tools; set tool_choice: none"
    )
    assert refusal({"messages": [USER], "tools": [{"type": "function", "function": {"name": "no spaces"}}]})[0] == (
        "tools[0].function.name"
    )


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "prompt", "is required"),
        ({"prompt": []}, "prompt", "must not be empty"),
        ({"prompt": ["a", 1]}, "prompt[1]", "expected a string, found 1"),
        ({"prompt": [1, "a"]}, "prompt[1]", "expected a whole number, found the string 'a'"),
        ({"prompt": [[1], []]}, "prompt[1]", "must not be empty"),
        ({"prompt": [-1]}, "prompt[0]", "must be at least 0, found -1"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "the model was not trained to fill in a middle; accepted: null"),
        ({"prompt": "a", "best_of": 2}, "best_of", "must equal n: every choice is returned, none is ranked"),
        (
            {"prompt": "a", "echo": True, "logprobs": 1},
            "logprobs",
            "cannot be combined with echo: a prompt's own probabilities are not computed",
        ),
    ],
)
def test_a_wrong_field_of_completions_is_named(fields: dict[str, Any], param: str, message: str) -> None:
    found = refusal(fields, CompletionRequest)

    assert (found[0], found[2]) == (param, f"{param}: {message}")


def test_a_wrong_field_of_embeddings_is_named() -> None:
    assert refusal({"input": "a", "encoding_format": "hex"}, EmbeddingRequest)[2] == (
        "encoding_format: expected 'float' or 'base64', found the string 'hex'"
    )


def test_lenient_leaves_out_what_is_unknown_or_cannot_be_honoured_and_says_so() -> None:
    body = {
        "messages": [{**USER, "mood": "good"}],
        "temprature": 1,
        "store": True,
        "audio": {"voice": "x"},
        "stream": True,
        "stream_options": {"include_usage": True, "x": 1},
        "temperature": 0.5,
    }

    made, left_out = validated(body, ChatRequest, lenient=True)

    assert sorted(left_out) == ["audio", "messages[0].mood", "store", "stream_options.x", "temprature"]
    assert made.temperature == 0.5
    assert made.stream_options is not None
    assert made.stream_options.include_usage is True


def test_an_unknown_field_is_told_by_its_own_name_beside_one_that_is_called_like_its_kind() -> None:
    schema: dict[str, Any] = {"name": "x", "schema": {"type": "object", "extra": [{"y": 1}]}}
    body = {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": schema, "foo": 1}}

    assert refusal(body) == ("response_format.foo", "unknown_field", "response_format.foo: there is no such field")
    made, left_out = validated(body, ChatRequest, lenient=True)

    assert left_out == ["response_format.foo"]
    assert isinstance(made.response_format, JsonSchemaFormat)
    assert made.response_format.json_schema.schema_ == schema["schema"]


def test_lenient_keeps_the_fields_of_the_kind_that_is_asked_for() -> None:
    body = {"messages": [USER], "response_format": {"type": "text", "json_schema": {}, "text": {"q": 1}}}

    assert validated(body, ChatRequest, lenient=True)[1] == ["response_format.json_schema", "response_format.text"]


def test_lenient_leaves_out_a_field_of_each_of_many_messages() -> None:
    body = {"messages": [{**USER, "mood": "good"} for _ in range(4096)]}

    _, left_out = validated(body, ChatRequest, lenient=True)

    assert left_out == [f"messages[{place}].mood" for place in range(4096)]


MANY = 200_000
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        (ChatRequest, {"messages": [0] * MANY}, "messages[0]"),
        (ChatRequest, {"messages": [USER], "tools": [0] * MANY}, "tools[0]"),
        (ChatRequest, {"messages": [{"role": "user", "content": [0] * MANY}]}, "messages[0].content[0]"),
        (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [CALL, *[0] * MANY]}]}, "messages[0].tool_calls[1]"),
        (ChatRequest, {"messages": [USER], "stop": [0] * MANY}, "stop[0]"),
        (ChatRequest, {"messages": [USER], "dry_sequence_breakers": [0] * MANY}, "dry_sequence_breakers[0]"),
        (ChatRequest, {"messages": [USER], "logit_bias": dict.fromkeys(map(str, range(MANY)), "x")}, "logit_bias"),
        (ChatRequest, {"messages": [{**USER, **dict.fromkeys(map(str, range(MANY)), 0)}]}, "messages[0]"),
        (CompletionRequest, {"prompt": [-1] * MANY}, "prompt[0]"),
        (CompletionRequest, {"prompt": ["a", *[0] * MANY]}, "prompt[1]"),
        (CompletionRequest, {"prompt": [[-1]] * MANY}, "prompt[0][0]"),
        (EmbeddingRequest, {"input": [[]] * MANY}, "input[0]"),
        (DetokenizeRequest, {"tokens": [-1] * MANY}, "tokens[0]"),
    ],
)  # fmt: skip
def test_a_hundred_thousand_faults_are_not_all_looked_for(model: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        validated(fields, model)
    fault = caught.value.__cause__

    assert caught.value.param == param
    assert isinstance(fault, ValidationError)
    assert fault.error_count() == 1


def read(body: dict[str, Any], model: Any, limits: BodyLimits) -> Any:
    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)
    return asyncio.run(read_body(request, model, limits))


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        (ChatRequest, {"messages": [0, 0, 0]}, "messages: 3 is more than the 2 that this server takes"),
        (ChatRequest, {"messages": [USER], "tools": [0, 0]}, "tools: 2 is more than the 1 that this server takes"),
        (CompletionRequest, {"prompt": [[0], 0, 0, 0]}, "prompt: 4 is more than the 3 that this server takes"),
        (EmbeddingRequest, {"input": ["a", 0, 0, 0]}, "input: 4 is more than the 3 that this server takes"),
    ],
)
def test_too_long_a_list_is_refused_before_its_items_are_looked_at(
    model: Any, body: dict[str, Any], message: str
) -> None:
    with pytest.raises(ApiError) as caught:
        read(body, model, BodyLimits(messages=2, tools=1, prompts=3))

    assert (caught.value.status, caught.value.message) == (400, message)


def test_token_ids_of_one_prompt_are_not_counted_as_prompts() -> None:
    made, _ = read({"prompt": [1, 2, 3, 4]}, CompletionRequest, BodyLimits(prompts=3))

    assert made.prompt == [1, 2, 3, 4]


def test_a_body_of_nothing_but_unknown_fields_is_refused_in_one_word() -> None:
    with pytest.raises(ApiError) as caught:
        validated({f"x{number}": 0 for number in range(MANY)}, ChatRequest)

    assert caught.value.message == f"has {MANY} fields, most of them unknown"


def test_lenient_does_not_forgive_a_wrong_value() -> None:
    with pytest.raises(ApiError) as caught:
        validated({"messages": [USER], "x": 1, "temperature": 5}, ChatRequest, lenient=True)

    assert caught.value.message == "temperature: must be at most 2, found 5"


def test_what_changes_nothing_is_accepted() -> None:
    harmless = {
        "user": "u",
        "metadata": {"a": "b"},
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "service_tier": "auto",
        "store": False,
        "modalities": ["text"],
        "verbosity": "medium",
        "stream": True,
        "stream_options": {"include_obfuscation": False},
    }
    null = dict.fromkeys(("audio", "prediction", "web_search_options", "functions", "function_call", "stop", "n"))
    message: dict[str, Any] = {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None}

    made, left_out = validated({"messages": [USER, message, USER], **harmless, **null}, ChatRequest)

    assert left_out == []
    assert made.messages[1].text() == "a"


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "disabled"}, "reasoning_budget": 0},
        {"thinking": {"type": "disabled"}, "reasoning_effort": "none"},
        {"thinking": {"type": "enabled"}, "reasoning_budget": -1},
        {"thinking": {"type": "enabled"}, "reasoning_budget": 7},
        {"thinking": {"type": "enabled"}, "reasoning_effort": "low"},
    ],
)
def test_a_switch_and_a_budget_that_agree_are_taken(fields: dict[str, Any]) -> None:
    validated({"messages": [USER], **fields}, ChatRequest)
