"""A server's model, over the chat API with a stream of events."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from ktllama.chatting.speaker import Ended, Question, Said, SpeakerError

_CONNECT_SECONDS = 10.0
#: A server that works sends at least a comment far more often.
_SILENCE_SECONDS = 300.0
_LONGEST_LINE = 1 << 22
_LONGEST_BODY = 1 << 24


class HttpSpeaker:
    """A server at ``url``, with or without ``/v1`` at its end. The first of its models answers.

    Raises SpeakerError at once where there is no such server.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            self._address = (parts.hostname or "", parts.port)
        except ValueError as fault:
            raise SpeakerError(f"{url!r} is no address: {fault}") from fault
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SpeakerError(f"{url!r} is no address; expected such as http://127.0.0.1:8080")
        self._secure = parts.scheme == "https"
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._name = self._first_model()

    @property
    def name(self) -> str:
        """The model's."""
        return self._name

    def plan(self) -> tuple[str, ...]:
        """What the server says of its placement; only ktllama's says any."""
        found = self._get("/props").get("plan")
        if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
            raise SpeakerError("the server says nothing about its placement")
        return tuple(found)

    def answer(self, question: Question, hear: Callable[[Said], None]) -> Ended:
        """See `speaker.Speaker`."""
        body = {
            "model": self._name,
            "messages": list(question.messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **question.fields,
        }
        connection = self._connected()
        try:
            reason = ""
            usage: Mapping[str, Any] = {}
            with self._asked(connection, "POST", "/v1/chat/completions", json.dumps(body).encode()) as response:
                for chunk in _chunks(response):
                    reason = _heard(chunk, hear) or reason
                    usage = chunk.get("usage") or usage
            if not reason:
                raise SpeakerError("the server's answer broke off")
            return _ended(reason, usage)
        except (OSError, http.client.HTTPException) as fault:
            raise SpeakerError(f"the connection broke: {_words(fault)}") from fault
        finally:
            connection.close()  # an answer that is not read to its end is given up by the server

    def close(self) -> None:
        """Nothing is held between questions."""

    def _first_model(self) -> str:
        data = self._get("/v1/models").get("data")
        entry = data[0] if isinstance(data, list) and data else None
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            raise SpeakerError("the server has no model, or does not speak OpenAI's API")
        return str(entry["id"])

    def _get(self, path: str) -> dict[str, Any]:
        connection = self._connected()
        try:
            with self._asked(connection, "GET", path) as response:
                found = _object(response.read(_LONGEST_BODY))
        except (OSError, http.client.HTTPException) as fault:
            raise SpeakerError(f"the connection broke: {_words(fault)}") from fault
        finally:
            connection.close()
        return found

    def _connected(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(*self._address, timeout=_CONNECT_SECONDS)
        try:
            connection.connect()
        except OSError as fault:
            where = ":".join(str(part) for part in self._address if part is not None)
            raise SpeakerError(f"nothing answers at {where}: {_words(fault)}") from fault
        connection.sock.settimeout(_SILENCE_SECONDS)
        return connection

    def _asked(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
    ) -> http.client.HTTPResponse:
        headers = {**self._headers, "Content-Type": "application/json"} if body is not None else self._headers
        connection.request(method, self._root + path, body, headers)
        response = connection.getresponse()
        if response.status != 200:
            with response:
                raise SpeakerError(_refusal(response))
        return response


def _chunks(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each event, until ``[DONE]``. An event that is an error is raised."""
    while line := response.readline(_LONGEST_LINE):
        name, _, value = line.strip().partition(b":")
        if name != b"data":
            continue  # a comment that keeps the connection, an event's name, the end of an event
        if value.strip() == b"[DONE]":
            return
        chunk = _object(value)
        if "error" in chunk:
            raise SpeakerError(_error_message(chunk))
        yield chunk


def _heard(chunk: dict[str, Any], hear: Callable[[Said], None]) -> str:
    """Tell what a chunk holds; its finish reason, if it has one."""
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    delta = choice.get("delta") if isinstance(choice, dict) else None
    if not isinstance(delta, dict):
        return ""
    thinking, content = delta.get("reasoning_content"), delta.get("content")
    if isinstance(thinking, str) and thinking:
        hear(Said(kind="reasoning", text=thinking))
    if isinstance(content, str) and content:
        hear(Said(kind="content", text=content))
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) else ""


def _ended(reason: str, usage: Mapping[str, Any]) -> Ended:
    details = usage.get("completion_tokens_details")
    reasoning = details.get("reasoning_tokens") if isinstance(details, dict) else None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), reasoning)
    prompt, completion, thinking = (count if isinstance(count, int) else None for count in counts)
    return Ended(reason=reason, prompt_tokens=prompt, completion_tokens=completion, reasoning_tokens=thinking)


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise SpeakerError("the server sent what is no JSON") from fault
    if not isinstance(found, dict):
        raise SpeakerError("the server sent what is no JSON object")
    return found


def _refusal(response: http.client.HTTPResponse) -> str:
    try:
        message = _error_message(_object(response.read(_LONGEST_BODY)))
    except SpeakerError:
        message = response.reason
    return f"the server refused ({response.status}): {message}"


def _error_message(answer: Mapping[str, Any]) -> str:
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else "it does not say why"


def _words(fault: Exception) -> str:
    return getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
