"""Whether two JSON schemas can be proven to have no value in common, which ``oneOf`` asks of its alternatives.

A grammar gives texts of any alternative, and none of them may be valid under a second. What proves it: other types,
other values, or objects that differ in a property which one of them requires (the mark of a tagged union).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

_Schema: TypeAlias = Mapping[str, Any]

_MAX_COMPARISONS = 20_000
_MAX_DEPTH = 20
_ALL_TYPES = frozenset(("object", "array", "string", "number", "boolean", "null"))


def value_key(value: Any) -> str:
    """The same text for values that are equal in JSON: 1 is 1.0, and not true."""
    return json.dumps(_whole(value), sort_keys=True)


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    return value


def is_of_type(value: Any, name: str) -> bool:
    """Whether ``value`` is of a schema's type ``name``."""
    if name in ("number", "integer"):
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        return numeric and (name == "number" or value == int(value))
    made = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, made[name])


class Overlaps:
    """Compares the schemas of one document; ``target`` finds what a ``$ref`` means."""

    def __init__(self, target: Callable[[Any], Any]) -> None:
        self._target = target
        self._n_left = _MAX_COMPARISONS

    def first(self, schemas: Sequence[Any]) -> tuple[int, int] | None:
        """Two of ``schemas``, by their index, that may have a value in common; None where no two have."""
        listed = [_values(self._resolved(schema)) for schema in schemas]
        keys = [key for values in listed for key in values or ()]
        if all(values is not None for values in listed) and len(set(keys)) == len(keys):
            return None
        pairs = combinations(range(len(schemas)), 2)
        return next(((one, two) for one, two in pairs if not self._apart(schemas[one], schemas[two], 0)), None)

    def _apart(self, one: Any, two: Any, depth: int) -> bool:
        self._n_left -= 1
        if self._n_left < 0 or depth > _MAX_DEPTH:
            return False
        one, two = self._resolved(one), self._resolved(two)
        if not isinstance(one, dict) or not isinstance(two, dict):
            return one is False or two is False
        if self._parts_apart(one, two, depth) or self._parts_apart(two, one, depth):
            return True
        return _values_apart(one, two) or self._kinds_apart(one, two, depth)

    def _parts_apart(self, schema: _Schema, other: _Schema, depth: int) -> bool:
        """Whether all alternatives of a schema, or one of its parts, have nothing of ``other``."""
        for keyword, enough in (("anyOf", all), ("oneOf", all), ("allOf", any)):
            parts = schema.get(keyword)
            if isinstance(parts, list) and parts and enough(self._apart(each, other, depth + 1) for each in parts):
                return True
        return False

    def _kinds_apart(self, one: _Schema, two: _Schema, depth: int) -> bool:
        common = _types(one) & _types(two)
        if common != {"object"}:
            return not common
        mine, yours = _members(one), _members(two)
        if any(
            self._apart(mine[0][name], yours[0][name], depth + 1)
            for name in (mine[1] | yours[1]) & mine[0].keys() & yours[0].keys()
        ):
            return True
        return bool(
            (two.get("additionalProperties") is False and mine[1] - yours[0].keys())
            or (one.get("additionalProperties") is False and yours[1] - mine[0].keys())
        )

    def _resolved(self, schema: Any) -> Any:
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            schema = self._target(schema["$ref"])
        return {}  # a ring: nothing is known of it


def _values(schema: Any) -> set[str] | None:
    """The keys of the only values that can be valid; None where they are not listed."""
    if not isinstance(schema, dict) or not ("const" in schema or isinstance(schema.get("enum"), list)):
        return None
    values = [schema["const"]] if "const" in schema else schema["enum"]
    return {value_key(value) for value in values}


def _values_apart(one: _Schema, two: _Schema) -> bool:
    mine, yours = _values(one), _values(two)
    if mine is not None and yours is not None:
        return mine.isdisjoint(yours)
    listed, other = (mine, two) if mine is not None else (yours, one)
    if listed is None or "type" not in other:
        return False
    return not any(is_of_type(json.loads(key), name) for key in listed for name in _names(other["type"]))


def _types(schema: _Schema) -> frozenset[str]:
    """The types of the values that a schema lets through; integers are numbers."""
    if "type" not in schema:
        return _ALL_TYPES
    return frozenset("number" if name == "integer" else name for name in _names(schema["type"]))


def _names(types: Any) -> list[str]:
    """A schema's types as a list; all of them where they are no types, which is an error elsewhere."""
    listed = types if isinstance(types, list) else [types]
    known = all(isinstance(name, str) and (name in _ALL_TYPES or name == "integer") for name in listed)
    return listed if known else sorted(_ALL_TYPES)


def _members(schema: _Schema) -> tuple[dict[str, Any], set[str]]:
    """A schema's properties, and the names of those that it requires."""
    properties, required = schema.get("properties"), schema.get("required")
    names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    return (properties if isinstance(properties, dict) else {}), names
