"""What is wrong with a value, in the words of JSON rather than of Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ktllama.ruleset.wording import shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_EXPECTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def plain_words(fault: ErrorDetails) -> str:
    """One clause, to stand behind a field's path."""
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return "there is no such field"
    if kind == "missing":
        return "is required"
    found = described(fault["input"])
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, found {found}"
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"must be {words} {_number(context[bound])}, found {found}"
    if kind in ("literal_error", "union_tag_invalid"):
        return f"expected {context.get('expected') or context.get('expected_tags')}, found {found}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty" if context["min_length"] == 1 else f"must have at least {context['min_length']}"
    if kind in ("too_long", "string_too_long"):
        return f"may have at most {context['max_length']} {'items' if kind == 'too_long' else 'characters'}"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}, found {found}"
    return f"{fault['msg'][:1].lower()}{fault['msg'][1:]}" if kind.startswith("union_tag") else fault["msg"]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def described(value: Any) -> str:
    """A value of JSON, named and if it is short shown."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"the string '{shown(value, 60)}'"
        case int() | float():
            return str(value)
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"
