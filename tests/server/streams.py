"""An event stream put together again by the test itself, to be held against the whole answer."""

from __future__ import annotations

import json
from typing import Any

import httpx

from ktllama.server.protocol.answers import ChatCompletionChunk, TextCompletion
from tests.server.recording import events


def gathered(response: httpx.Response) -> dict[str, Any]:
    """Choices and usage of a streamed chat completion, every chunk of it checked against the description."""
    *chunks, done = events(response)
    assert done == "[DONE]"
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for text in chunks:
        chunk = ChatCompletionChunk.model_validate_json(text).model_dump(exclude_none=True)
        usage = chunk.get("usage", usage)
        for part in chunk["choices"]:
            _add(choices.setdefault(part["index"], _empty()), part)
    return {"choices": [_tidy(choices[index]) for index in sorted(choices)], "usage": usage}


def _empty() -> dict[str, Any]:
    return {"content": "", "reasoning_content": "", "calls": [], "logprobs": [], "reasoning_logprobs": [], "end": None}


def _add(choice: dict[str, Any], part: dict[str, Any]) -> None:
    assert choice["end"] is None, "a choice goes on after its end"
    delta = part["delta"]
    choice["content"] += delta.get("content", "")
    choice["reasoning_content"] += delta.get("reasoning_content", "")
    for call in delta.get("tool_calls", []):
        if call["index"] == len(choice["calls"]):
            assert call["id"]
            choice["calls"].append([call["function"]["name"], ""])
        choice["calls"][call["index"]][1] += call["function"]["arguments"]
    logprobs = part.get("logprobs", {})
    choice["logprobs"] += logprobs.get("content", [])
    choice["reasoning_logprobs"] += logprobs.get("reasoning_content", [])
    if "finish_reason" in part:
        choice["end"] = (part["finish_reason"], part.get("ktllama"))


def _tidy(choice: dict[str, Any]) -> dict[str, Any]:
    assert choice["end"] is not None, "a choice without an end"
    return {**choice, "content": choice["content"] or None, "reasoning_content": choice["reasoning_content"] or None}


def whole(response: httpx.Response) -> dict[str, Any]:
    """The same of an answer that came whole."""
    assert response.status_code == 200, response.text
    made = response.json()
    return {"choices": [_whole_choice(choice) for choice in made["choices"]], "usage": made["usage"]}


def _whole_choice(choice: dict[str, Any]) -> dict[str, Any]:
    message, logprobs = choice["message"], choice["logprobs"] or {}
    return {
        "content": message["content"] or None,
        "reasoning_content": message.get("reasoning_content"),
        "calls": [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", [])],
        "logprobs": logprobs.get("content", []),
        "reasoning_logprobs": logprobs.get("reasoning_content", []),
        "end": (choice["finish_reason"], choice.get("ktllama")),
    }


def gathered_text(response: httpx.Response) -> dict[str, Any]:
    """Choices and usage of a streamed text completion."""
    *chunks, done = events(response)
    assert done == "[DONE]"
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for text in chunks:
        chunk = TextCompletion.model_validate_json(text).model_dump(exclude_none=True)
        usage = chunk.get("usage", usage)
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], {"text": "", "tokens": [], "offsets": [], "end": None})
            choice["text"] += part["text"]
            choice["tokens"] += part.get("logprobs", {}).get("tokens", [])
            choice["offsets"] += part.get("logprobs", {}).get("text_offset", [])
            if "finish_reason" in part:
                choice["end"] = part["finish_reason"]
    return {"choices": [choices[index] for index in sorted(choices)], "usage": usage}


def whole_text(response: httpx.Response) -> dict[str, Any]:
    """The same of an answer that came whole."""
    assert response.status_code == 200, response.text
    made = TextCompletion.model_validate_json(response.content).model_dump(exclude_none=True)
    json.loads(response.content)
    return {
        "choices": [
            {
                "text": choice["text"],
                "tokens": choice.get("logprobs", {}).get("tokens", []),
                "offsets": choice.get("logprobs", {}).get("text_offset", []),
                "end": choice["finish_reason"],
            }
            for choice in made["choices"]
        ],
        "usage": made["usage"],
    }
