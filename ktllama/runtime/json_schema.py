"""From a JSON schema to a GBNF grammar of the compact or indented JSON texts that are valid under it.

Properties come in the order in which the schema names them. Where ``additionalProperties`` is not given, an object
with ``properties`` has no others. Keywords that a grammar cannot enforce are errors that name them; annotations, and
formats other than date, time, date-time and uuid, mean nothing to validity and are passed over. ``oneOf`` needs
alternatives that can be proven to have no value in common (:mod:`~ktllama.runtime.schema_overlap`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ktllama.engine.executor import GrammarError
from ktllama.runtime.integer_range import integers
from ktllama.runtime.schema_merging import ASSERTIONS, TYPE_OF, UNSUPPORTED, merged
from ktllama.runtime.schema_overlap import Overlaps, is_of_type, value_key
from ktllama.runtime.string_pattern import pattern_to_gbnf
from ktllama.runtime.text_choice import none_of, one_of, quoted

_Schema: TypeAlias = Mapping[str, Any]

_MAX_BYTES = 256 * 1024
_MAX_DEPTH = 60
_MAX_RULES = 4_000
_MAX_COUNT = 2_000

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_FORMATS = ("date", "time", "date-time", "uuid")
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_DATE = '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])'
_TIME = (
    '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,9})? '
    '("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])'
)
_BUILT_IN = {
    "ws": '| " " | "\\n" [ \\t]{0,40}',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws "}" | "{" ws member ("," ws member)* ws "}"',
    "member": 'string ":" ws value',
    "array": '"[" ws "]" | "[" ws value ("," ws value)* ws "]"',
    "string": '"\\"" char* "\\""',
    "char": '[^"\\\\\\x00-\\x1F\\x7F] | "\\\\" (["\\\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "integer": '"-"? natural',
    "natural": '"0" | [1-9] [0-9]{0,17}',
    "number": 'integer ("." [0-9]{1,17})? ([eE] [+-]? [0-9]{1,3})?',
    "positive": 'natural ("." [0-9]{1,17})? ([eE] [+-]? [0-9]{1,3})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "date": f'"\\"" {_DATE} "\\""',
    "time": f'"\\"" {_TIME} "\\""',
    "date-time": f'"\\"" {_DATE} [Tt] {_TIME} "\\""',
    "uuid": '"\\"" [0-9a-fA-F]{8} ("-" [0-9a-fA-F]{4}){3} "-" [0-9a-fA-F]{12} "\\""',
}


def schema_to_gbnf(text: str) -> str:
    """The grammar of a schema's JSON text.

    Raises:
        GrammarError: for what is no JSON, no schema, or cannot be enforced.
    """
    if len(text.encode(errors="replace")) > _MAX_BYTES:
        raise GrammarError(f"the JSON schema has more than {_MAX_BYTES} bytes")
    try:
        schema = json.loads(text, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the JSON schema is no JSON: {error}") from error
    try:
        return _Converter(schema).grammar()
    except RecursionError as error:  # a value within const or enum
        raise GrammarError("the JSON schema nests too deep") from error


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no number that can be written")
    return number


class _Converter:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._depth = 0
        self._overlaps = Overlaps(self._target)

    def grammar(self) -> str:
        self._rules["root"] = self._expression(self._schema, "#")
        for name in list(_BUILT_IN):
            self._add_built_in(name)
        return "\n".join(f"{name} ::= {body}" for name, body in self._rules.items())

    def _add_built_in(self, name: str) -> str:
        self._rules.setdefault(name, _BUILT_IN[name])
        return name

    def _add(self, body: str) -> str:
        """A rule of its own for ``body``."""
        if len(self._rules) >= _MAX_RULES:
            raise GrammarError(f"the JSON schema needs more than {_MAX_RULES} rules")
        name = f"r{len(self._rules)}"
        self._rules[name] = body
        return name

    def _rule(self, schema: Any, where: str) -> str:
        body = self._expression(schema, where)
        return body if body in self._rules or body in _BUILT_IN else self._add(body)

    def _expression(self, schema: Any, where: str) -> str:
        """The right-hand side for one schema; ``where`` is its JSON pointer, for messages."""
        if schema is True:
            return "value"
        if not isinstance(schema, dict):
            raise GrammarError(f"the JSON schema at {where} is no object")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise GrammarError(f"the JSON schema nests more than {_MAX_DEPTH} deep")
        try:
            return self._of_object(schema, where)
        finally:
            self._depth -= 1

    def _of_object(self, schema: _Schema, where: str) -> str:
        for keyword in UNSUPPORTED:
            if keyword in schema and not (keyword == "uniqueItems" and schema[keyword] is False):
                raise GrammarError(f"the JSON schema at {where} uses {keyword}, which cannot be enforced")
        if "$ref" in schema:
            self._refuse_siblings(schema, "$ref", where)
            return self._reference(schema["$ref"])
        if "allOf" in schema:
            return self._expression(self._merged(schema, where), where)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                self._refuse_siblings(schema, keyword, where, but=("type",))
                return self._union(schema, keyword, f"{where}/{keyword}")
        if "const" in schema or "enum" in schema:
            return self._listed(schema, where)
        return self._of_types(schema, where)

    def _refuse_siblings(self, schema: _Schema, keyword: str, where: str, but: tuple[str, ...] = ()) -> None:
        for other in ("type", "anyOf", "oneOf", "allOf", "const", "enum", *TYPE_OF):
            if other in schema and other != keyword and other not in but:
                raise GrammarError(f"the JSON schema at {where} has {other} beside {keyword}; use allOf of objects")

    def _listed(self, schema: _Schema, where: str) -> str:
        """The values of ``const`` and ``enum`` that a ``type`` beside them allows."""
        keyword = "const" if "const" in schema else "enum"
        passed_over = () if schema.get("format") in _FORMATS else ("format",)
        self._refuse_siblings(schema, keyword, where, but=("type", "enum", *passed_over))
        values = _list(schema["enum"], f"{where}/enum") if "enum" in schema else [schema["const"]]
        if "const" in schema:
            values = [value for value in values if value_key(value) == value_key(schema["const"])]
        if "type" in schema:
            types = _types(schema["type"], where)
            values = [value for value in values if any(is_of_type(value, name) for name in types)]
        if not values:
            raise GrammarError(
                f"the JSON schema at {where} has no value that its {keyword} and its other keywords allow"
            )
        return one_of(map(_text, values), self._add)

    def _union(self, schema: _Schema, keyword: str, where: str) -> str:
        alternatives = _list(schema[keyword], where)
        if "type" in schema:
            alternatives = [self._narrowed(each, schema["type"], where) for each in alternatives]
        if keyword == "oneOf" and (pair := self._overlaps.first(alternatives)) is not None:
            raise GrammarError(
                f"the alternatives {pair[0]} and {pair[1]} of the JSON schema at {where} may have values in common; "
                "use anyOf"
            )
        rules = (self._rule(each, f"{where}/{index}") for index, each in enumerate(alternatives))
        return " | ".join(dict.fromkeys(rules))

    def _narrowed(self, alternative: Any, types: Any, where: str) -> Any:
        """An alternative with the types that stand beside its ``anyOf`` or ``oneOf``."""
        if alternative is True:
            return {"type": types}
        found = self._part(alternative, where)
        if any(keyword in found for keyword in ("anyOf", "oneOf")) or (
            "type" not in found and found is not alternative
        ):
            raise GrammarError(
                f"the JSON schema at {where} has a type beside it that does not reach into an alternative"
            )
        if "type" not in found:
            return {**found, "type": types}
        allowed = _types(types, where)
        if not {*_types(found["type"], where)} <= {*allowed, *(("integer",) if "number" in allowed else ())}:
            raise GrammarError(f"the JSON schema at {where} has a type beside it that an alternative's excludes")
        return alternative

    def _of_types(self, schema: _Schema, where: str) -> str:
        types = schema.get("type")
        if types is None:
            implied = dict.fromkeys(TYPE_OF[keyword] for keyword in schema if keyword in TYPE_OF)
            types = list(implied) if "format" not in schema or len(implied) > 1 else ["string"]
            if not types:
                return "value"
        listed = _types(types, where)
        makers = {"object": self._object, "array": self._array, "string": self._string}
        made = []
        for each in dict.fromkeys(listed):
            if each in makers:
                made.append(makers[each](schema, where))
            elif each in ("number", "integer"):
                made.append(self._numbers(schema, each, where))
            else:
                made.append(each)
        return made[0] if len(made) == 1 else " | ".join(f"({body})" for body in made)

    def _reference(self, reference: Any) -> str:
        target = self._target(reference)
        if reference not in self._references:
            name = self._references[reference] = self._add("")
            self._rules[name] = self._expression(target, reference)
        return self._references[reference]

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
            raise GrammarError(
                f"the JSON schema refers to {str(reference)[:80]!r}, which is not in it; #/… is a place in it"
            )
        target = self._schema
        for part in reference.removeprefix("#").split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and (index := _index(key)) is not None and index < len(target):
                target = target[index]
            else:
                raise GrammarError(f"the JSON schema refers to {reference[:80]!r}, which it does not have")
        return target

    def _merged(self, schema: _Schema, where: str) -> dict[str, Any]:
        """One schema for ``allOf``: objects' properties together, or the only schema there is."""
        own = {key: value for key, value in schema.items() if key in ASSERTIONS}
        parts = [self._part(each, f"{where}/allOf") for each in (own, *_list(schema["allOf"], f"{where}/allOf"))]
        return merged(parts, where)

    def _part(self, part: Any, where: str) -> _Schema:
        """A part of ``allOf`` or ``anyOf``, or what it refers to."""
        for _ in range(_MAX_DEPTH):
            if not isinstance(part, dict) or "$ref" not in part:
                break
            self._refuse_siblings(part, "$ref", where)
            part = self._target(part["$ref"])
        if not isinstance(part, dict) or "$ref" in part:
            raise GrammarError(f"the JSON schema at {where} has a part that is no object")
        if "allOf" in part:
            raise GrammarError(f"the JSON schema at {where} nests allOf")
        return part

    def _object(self, schema: _Schema, where: str) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        others = schema.get("additionalProperties", not properties and not required)
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise GrammarError(f"the JSON schema at {where} has properties or required of the wrong type")
        if any(not isinstance(name, str) for name in required):
            raise GrammarError(f"the JSON schema at {where} requires what is no name")
        if others is True and not properties and not required:
            return "object"
        unnamed = [name for name in required if name not in properties]
        if unnamed and schema.get("additionalProperties") is False:
            raise GrammarError(f"the JSON schema at {where} requires {unnamed[0][:80]!r} and has no such property")
        known = {**properties, **dict.fromkeys(unnamed, schema.get("additionalProperties", True))}
        members = []
        needed = set(required)
        for name, value in known.items():
            rule = self._rule(value, f"{where}/properties/{name}")
            members.append((self._add(f'{quoted(_text(name))} ":" ws {rule}'), name in needed))
        other = self._other_member(others, list(known), where)
        first, _ = self._member_rules(members, other)
        return f'"{{" ws {first} "}}"'

    def _other_member(self, others: Any, known: list[str], where: str) -> str | None:
        if others is False:
            return None
        rule = self._rule(others, f"{where}/additionalProperties")
        key = none_of({json.dumps(name)[1:-1] for name in known}, self._add) if known else "char*"
        return self._add(f'"\\"" {key} "\\"" ":" ws {rule}')

    def _member_rules(self, members: Sequence[tuple[str, bool]], other: str | None) -> tuple[str, str]:
        """Rules for what is left of an object: when nothing was written yet, and after a member."""
        first = self._add(f'| {other} ("," ws {other})* ws' if other else '""')
        after = self._add(f'("," ws {other})* ws' if other else "ws")
        for member, required in reversed(members):
            begin, go_on = f"{member} {after}", f'"," ws {member} {after}'
            if not required:
                begin, go_on = f"{begin} | {first}", f"{go_on} | {after}"
            first, after = self._add(begin), self._add(go_on)
        return first, after

    def _array(self, schema: _Schema, where: str) -> str:
        least, most = _counts(schema, "minItems", "maxItems", where)
        fixed = _list(schema.get("prefixItems", []), f"{where}/prefixItems", empty=True)
        items = schema.get("items", True)
        if isinstance(items, list):
            raise GrammarError(f"the JSON schema at {where} has a list as items; prefixItems is that list's name")
        if items is False:
            most = len(fixed) if most is None else min(most, len(fixed))
        if most is not None and most < least:
            raise GrammarError(f"the JSON schema at {where} has no array that is long enough and short enough")
        rules = [self._rule(each, f"{where}/prefixItems/{index}") for index, each in enumerate(fixed)][:most]
        rest = "" if items is False else self._rule(items, f"{where}/items")
        return self._array_body(rules, rest, least, most)

    def _array_body(self, fixed: Sequence[str], rest: str, least: int, most: int | None) -> str:
        """``fixed`` items, then any number of ``rest``; built from the end, one rule a place."""
        n_fixed = len(fixed)
        if most == 0:
            return '"[" ws "]"'
        needed = max(least - n_fixed, 0)
        left = None if most is None else most - n_fixed
        bounds = f"{{{needed},}}" if left is None else f"{{{needed},{left}}}"
        tail = f'("," ws {rest}){bounds}' if rest and left != 0 else ""
        if not fixed:
            more = f"{{{max(least - 1, 0)},}}" if most is None else f"{{{max(least - 1, 0)},{most - 1}}}"
            tail = f'("," ws {rest}){more}' if most != 1 else ""
            filled = f'"[" ws {rest} {tail} ws "]"'
            return filled if least else f'"[" ws "]" | {filled}'
        for index in range(n_fixed - 1, 0, -1):
            tail = f'"," ws {fixed[index]} {tail}'
            tail = tail if index < least else self._add(f'{tail} | ""')
        filled = f'"[" ws {fixed[0]} {tail} ws "]"'
        return filled if least else f'"[" ws "]" | {filled}'

    def _string(self, schema: _Schema, where: str) -> str:
        least, most = _counts(schema, "minLength", "maxLength", where)
        bounded = least > 0 or most is not None
        if "pattern" in schema:
            if bounded or not isinstance(schema["pattern"], str):
                raise GrammarError(f"the JSON schema at {where} has pattern beside lengths, or one that is no text")
            return f'"\\"" ({pattern_to_gbnf(schema["pattern"])}) "\\""'
        if schema.get("format") in _FORMATS:
            if bounded:
                raise GrammarError(f"the JSON schema at {where} has format beside lengths")
            return str(schema["format"])
        if not bounded:
            return "string"
        return f'"\\"" char{{{least},{"" if most is None else most}}} "\\""'

    def _numbers(self, schema: _Schema, kind: str, where: str) -> str:
        bounds = {key: schema[key] for key in _BOUNDS if key in schema}
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in bounds.values()):
            raise GrammarError(f"the JSON schema at {where} has a bound that is no number")
        if not bounds:
            return kind
        if kind == "integer":
            return self._add(integers(bounds, where))
        if bounds == {"minimum": 0}:
            return "positive"
        raise GrammarError(f"the JSON schema at {where} bounds a number; only integers, and a minimum of 0, can be")


def _list(value: Any, where: str, *, empty: bool = False) -> list[Any]:
    if not isinstance(value, list) or not (value or empty):
        raise GrammarError(f"the JSON schema at {where} must be a list that is not empty")
    return value


def _types(types: Any, where: str) -> list[str]:
    listed = types if isinstance(types, list) else [types]
    if not listed or not all(isinstance(each, str) and each in _TYPES for each in listed):
        raise GrammarError(f"the JSON schema at {where} has the type {json.dumps(types)[:80]}")
    return listed


def _index(key: str) -> int | None:
    """A place in a list, as a JSON pointer writes it."""
    return int(key) if key.isascii() and key.isdigit() and len(key) < 10 else None


def _counts(schema: _Schema, least: str, most: str, where: str) -> tuple[int, int | None]:
    found = []
    for keyword in (least, most):
        value = schema.get(keyword)
        if value is not None and (type(value) is not int or not 0 <= value <= _MAX_COUNT):
            raise GrammarError(f"the JSON schema at {where} has {keyword} {str(value)[:40]}; 0 to {_MAX_COUNT} can be")
        found.append(value)
    low, high = found[0] or 0, found[1]
    if high is not None and high < low:
        raise GrammarError(f"the JSON schema at {where} has {least} above {most}")
    return low, high


def _text(value: Any) -> str:
    """A JSON value as it must be written."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
