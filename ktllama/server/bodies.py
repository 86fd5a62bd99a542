"""A request's body, from the wire to a model of `protocol`: hostile until it is read, and every fault is a 400."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from ktllama.ruleset.wording import did_you_mean, shown
from ktllama.server.errors import ApiError
from ktllama.server.lenience import leave_out, models_in
from ktllama.server.protocol.base import Body, is_branch
from ktllama.server.wording import plain_words

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from starlette.requests import Request

    from ktllama.server.state import BodyLimits

BodyModel = TypeVar("BodyModel", bound=Body)

_JSON_TYPES = ("application/json", "text/json")
_MAX_FIELDS_NAMED = 5
# Where a text holds no such thing, its numbers are read without a call of ours for each: millions of token ids.
_LONG_NUMBER = re.compile("[0-9]{21}")
_LARGE_EXPONENT = re.compile("[eE][+]?[0-9]{3}")


async def read_body(
    request: Request, model: type[BodyModel], limits: BodyLimits, *, lenient: bool = False
) -> tuple[BodyModel, list[str]]:
    """The body as `model`, and the paths of the fields that `lenient` left out.

    Raises ApiError: 415 for another media type, 413 for too many bytes, 400 for anything that is not such a body.
    """
    _check_media_type(request)
    raw = await _bytes(request, limits.body_bytes)
    body = parsed(raw, limits.json_depth)
    _check_lists(body, limits)
    return validated(body, model, lenient=lenient)


def _check_media_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    kind, _, parameters = given.partition(";")
    kind = kind.strip().lower()
    if not kind:
        raise ApiError(415, "the body has no Content-Type; send it as application/json")
    if kind not in _JSON_TYPES and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(415, f"the body is '{shown(kind, 60)}'; send it as application/json")
    charset = parameters.lower().partition("charset=")[2].strip(' "')
    if charset and charset not in ("utf-8", "utf8"):
        raise ApiError(415, f"the body is in '{shown(charset, 60)}'; JSON is sent in UTF-8")
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):  # what is small on the wire may be large in memory
        raise ApiError(415, f"the body is compressed ('{shown(coding, 60)}'); send it as it is", code="compressed_body")


async def _bytes(request: Request, limit: int) -> bytes:
    chunks = []
    n_bytes = 0
    async for chunk in request.stream():
        n_bytes += len(chunk)
        if n_bytes > limit:
            raise ApiError(413, f"the body is larger than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def parsed(raw: bytes, max_depth: int) -> dict[str, Any]:
    """The JSON object in `raw`. Strict: UTF-8, each name once, no NaN or Infinity, no half of a surrogate pair."""
    if not raw.strip():
        raise ApiError(400, "the body is empty; a JSON object is expected", code="invalid_json")
    try:
        text = raw.decode("utf-8")
        long = _LONG_NUMBER.search(text) is not None
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_not_a_number,
            parse_float=_finite if long or _LARGE_EXPONENT.search(text) else None,
            parse_int=_whole if long else None,
        )
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 (at byte {error.start})", code="invalid_json") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ApiError(400, f"the body is not JSON: {error.msg} ({where})", code="invalid_json") from error
    except RecursionError as error:
        raise ApiError(400, _too_deep(max_depth), code="invalid_json") from error
    if text.count("{") + text.count("[") > max_depth and _depth_exceeds(value, max_depth):
        raise ApiError(400, _too_deep(max_depth), code="invalid_json")
    if "\\u" in text and _has_surrogate(value):
        raise ApiError(400, "the body holds half of a surrogate pair (\\ud800 to \\udfff)", code="invalid_json")
    if not isinstance(value, dict):
        raise ApiError(400, f"the body must be a JSON object, not {_kind(value)}", code="invalid_json")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ApiError(400, f"the name '{shown(name, 60)}' stands twice in one object", code="invalid_json")
            seen.add(name)
    return made


def _not_a_number(constant: str) -> NoReturn:
    raise ApiError(400, f"the body is not JSON: {constant} is no number of JSON's", code="invalid_json")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ApiError(400, f"the number {shown(digits, 40)} is too large", code="invalid_json")
    return number


def _whole(digits: str) -> int:
    # Python refuses to read more than 4300 digits, with a ValueError; nothing here needs more than 64 bits.
    if len(digits) > 20:
        raise ApiError(400, f"the number {shown(digits, 40)} is too large", code="invalid_json")
    return int(digits)


def _too_deep(max_depth: int) -> str:
    return f"the body is nested more than {max_depth} levels deep"


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [
            part
            for holder in level
            for part in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(part, dict | list)
        ]
        if not level:
            return False
    return True


def _has_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")


def _check_lists(body: dict[str, Any], limits: BodyLimits) -> None:
    """Too long a list is refused before its items are looked at."""
    prompts = {name: limits.prompts for name in ("prompt", "input") if not _is_ids(body.get(name))}
    most = {"messages": limits.messages, "tools": limits.tools, **prompts}
    check_lengths({name: (len(body[name]), most[name]) for name in most if isinstance(body.get(name), list)})


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], int)


def validated(body: dict[str, Any], model: type[BodyModel], *, lenient: bool = False) -> tuple[BodyModel, list[str]]:
    """`body` as `model`. With `lenient`, fields that are unknown or cannot be honoured are left out and named."""
    left_out = leave_out(body, model) if lenient else []
    try:
        return model.model_validate(body), left_out
    except ValidationError as error:
        # Few enough to be listed: `protocol` ends a list at its first fault, and an object of many unknown fields.
        raise _refusal(body, model, error.errors(include_url=False)) from error


def _refusal(body: dict[str, Any], model: type[BaseModel], faults: list[ErrorDetails]) -> ApiError:
    named = [(_path(_keys(body, fault)), fault) for fault in faults]
    sentences = []
    for path, fault in named[:_MAX_FIELDS_NAMED]:
        words = plain_words(fault)
        if fault["type"] == "extra_forbidden":
            words += did_you_mean(fault["loc"][-1], _known_beside(model, fault))
        sentence = f"{path}: {words}" if path else words
        if sentence not in sentences:
            sentences.append(sentence)
    if len(named) > _MAX_FIELDS_NAMED:
        sentences.append(f"and {len(named) - _MAX_FIELDS_NAMED} more")
    first, fault = named[0]
    return ApiError(400, "; ".join(sentences), param=first or None, code=_code(fault))


def _code(fault: ErrorDetails) -> str:
    return {
        "extra_forbidden": "unknown_field",
        "unsupported_value": "unsupported_value",
        "unsupported_content": "unsupported_content",
        "missing": "missing_field",
    }.get(fault["type"], "invalid_value")


def _keys(body: dict[str, Any], fault: ErrorDetails) -> list[str | int]:
    """The fault's place as keys of the body; the names of a union's branches are no keys."""
    keys: list[str | int] = []
    at: Any = body
    step: Any
    last = len(fault["loc"]) - 1
    for place, step in enumerate(fault["loc"]):
        if place != last and is_branch(step):
            continue
        if (isinstance(at, dict) and step in at) or (isinstance(at, list) and isinstance(step, int) and step < len(at)):
            at = at[step]
        elif not (fault["type"] == "missing" and place == last and isinstance(at, dict)):
            continue
        keys.append(step)
    field = fault.get("ctx", {}).get("field")
    return keys if not isinstance(field, str) else [*keys, field]


def _path(keys: list[str | int]) -> str:
    path = ""
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        else:
            path += ("." if path else "") + shown(key, 60)
    return path


def _known_beside(model: type[BaseModel], fault: ErrorDetails) -> list[str]:
    """The field names of the object that the unknown one stands in."""
    steps = [step for step in fault["loc"][:-1] if isinstance(step, str)]
    here: list[type[BaseModel]] = [model]
    for step in steps:
        below = [found for owner in here for found in _models_below(owner, step)]
        here = below or here
    return sorted({field.alias or name for owner in here for name, field in owner.model_fields.items()})


def _models_below(owner: type[BaseModel], step: str) -> list[type[BaseModel]]:
    field = owner.model_fields.get(step)
    return models_in(field.annotation) if field is not None else []


def check_lengths(counts: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a field whose count (first) is above its limit (second)."""
    for field, (count, limit) in counts.items():
        if count > limit:
            raise ApiError(400, f"{field}: {count} is more than the {limit} that this server takes", param=field)
