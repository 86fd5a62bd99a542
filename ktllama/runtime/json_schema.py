"""From a JSON schema to a GBNF grammar of the compact or indented JSON texts that are valid under it.

Properties come in the order in which the schema names them. Where ``additionalProperties`` is not given, an object
with ``properties`` has no others. Keywords that a grammar cannot enforce are errors that name them; annotations, and
formats other than date, time, date-time and uuid, mean nothing to validity and are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ktllama.engine.executor import GrammarError
from ktllama.runtime.integer_range import integers
from ktllama.runtime.string_pattern import pattern_to_gbnf

_Schema: TypeAlias = Mapping[str, Any]

_MAX_BYTES = 256 * 1024
_MAX_DEPTH = 60
_MAX_RULES = 4_000
_MAX_COUNT = 2_000

_UNSUPPORTED = (
    "not", "if", "then", "else", "patternProperties", "propertyNames", "dependentRequired", "dependentSchemas",
    "dependencies", "minProperties", "maxProperties", "uniqueItems", "contains", "minContains", "maxContains",
    "multipleOf", "unevaluatedItems", "additionalItems", "$dynamicRef", "$recursiveRef",
)  # fmt: skip
#: keyword → the type that it says something about; the others say nothing about a value of another type
_TYPE_OF = {
    "properties": "object", "required": "object", "additionalProperties": "object",
    "items": "array", "prefixItems": "array", "minItems": "array", "maxItems": "array",
    "minLength": "string", "maxLength": "string", "pattern": "string", "format": "string",
    "minimum": "number", "maximum": "number", "exclusiveMinimum": "number", "exclusiveMaximum": "number",
}  # fmt: skip
_MERGED = frozenset(("type", "const", "enum", "anyOf", "oneOf", *_UNSUPPORTED, *_TYPE_OF))
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
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
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the JSON schema is no JSON: {error}") from error
    return _Converter(schema).grammar()


class _Converter:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._depth = 0

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
        for keyword in _UNSUPPORTED:
            if keyword in schema and not (keyword == "uniqueItems" and schema[keyword] is False):
                raise GrammarError(f"the JSON schema at {where} uses {keyword}, which cannot be enforced")
        if "$ref" in schema:
            self._refuse_siblings(schema, "$ref", where)
            return self._reference(schema["$ref"], where)
        if "allOf" in schema:
            return self._expression(self._merged(schema, where), where)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                self._refuse_siblings(schema, keyword, where)
                return self._union(_list(schema[keyword], f"{where}/{keyword}"), f"{where}/{keyword}")
        if "const" in schema:
            return _literal(schema["const"])
        if "enum" in schema:
            values = _list(schema["enum"], f"{where}/enum")
            return " | ".join(dict.fromkeys(_literal(value) for value in values))
        return self._of_types(schema, where)

    def _refuse_siblings(self, schema: _Schema, keyword: str, where: str) -> None:
        for other in ("type", "anyOf", "oneOf", "const", "enum", *_TYPE_OF):
            if other in schema and other != keyword and not (other == "type" and keyword in ("anyOf", "oneOf")):
                raise GrammarError(f"the JSON schema at {where} has {other} beside {keyword}; use allOf of objects")

    def _union(self, schemas: Sequence[Any], where: str) -> str:
        return " | ".join(dict.fromkeys(self._rule(each, f"{where}/{index}") for index, each in enumerate(schemas)))

    def _of_types(self, schema: _Schema, where: str) -> str:
        types = schema.get("type")
        if types is None:
            implied = dict.fromkeys(_TYPE_OF[keyword] for keyword in schema if keyword in _TYPE_OF)
            types = list(implied) if "format" not in schema or len(implied) > 1 else ["string"]
            if not types:
                return "value"
        listed = types if isinstance(types, list) else [types]
        if not listed or not all(each in _TYPES for each in listed):
            raise GrammarError(f"the JSON schema at {where} has the type {json.dumps(types)[:80]}")
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

    def _reference(self, reference: Any, where: str) -> str:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise GrammarError(f"the JSON schema at {where} refers to {str(reference)[:80]!r}, which is not in it")
        if reference not in self._references:
            name = self._references[reference] = self._add("")
            self._rules[name] = self._expression(self._target(reference), reference)
        return self._references[reference]

    def _target(self, reference: str) -> Any:
        target = self._schema
        for part in reference.removeprefix("#").split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isascii() and key.isdigit() and int(key) < len(target):
                target = target[int(key)]
            else:
                raise GrammarError(f"the JSON schema refers to {reference[:80]!r}, which it does not have")
        return target

    def _merged(self, schema: _Schema, where: str) -> dict[str, Any]:
        """One schema for ``allOf``: objects' properties together, or the only schema there is."""
        merged: dict[str, Any] = {"properties": {}, "required": []}
        own = {key: value for key, value in schema.items() if key in ("type", "const", "enum") or key in _TYPE_OF}
        for part in (own, *_list(schema["allOf"], f"{where}/allOf")):
            resolved, hops = part, 0
            while isinstance(resolved, dict) and "$ref" in resolved and hops < _MAX_DEPTH:
                self._reference(resolved["$ref"], where)  # checks it
                resolved, hops = self._target(resolved["$ref"]), hops + 1
            if not isinstance(resolved, dict) or "$ref" in resolved:
                raise GrammarError(f"the JSON schema at {where}/allOf has a part that is no object")
            if "allOf" in resolved:
                raise GrammarError(f"the JSON schema at {where} nests allOf")
            for key, value in resolved.items():
                if key == "properties" and isinstance(value, dict):
                    merged["properties"] |= value
                elif key == "required" and isinstance(value, list):
                    merged["required"] += value
                elif key in _MERGED and merged.setdefault(key, value) != value:
                    raise GrammarError(f"the parts of allOf at {where} differ in {key}")
        return {key: value for key, value in merged.items() if value != [] and value != {}}

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
        known = {**properties, **{name: True for name in required if name not in properties}}
        members = []
        for name, value in known.items():
            rule = self._rule(value, f"{where}/properties/{name}")
            members.append((self._add(f'{_literal(name)} ":" ws {rule}'), name in required))
        other = self._other_member(others, list(known), where)
        first, _ = self._member_rules(members, other)
        return f'"{{" ws {first} "}}"'

    def _other_member(self, others: Any, known: list[str], where: str) -> str | None:
        if others is False:
            return None
        rule = self._rule(others, f"{where}/additionalProperties")
        key = self._other_key({json.dumps(name)[1:-1] for name in known}) if known else "char*"
        return self._add(f'"\\"" {key} "\\"" ":" ws {rule}')

    def _other_key(self, names: set[str]) -> str:
        """A rule for the text of a string that is none of ``names`` (as JSON writes them)."""
        if len(names) == 1 and "" in names:
            return "char+"
        following = sorted({name[0] for name in names if name})
        excluded = "".join(_in_class(character) for character in following)
        choices = [f'[^"\\\\\\x00-\\x1F\\x7F{excluded}] char*']
        for character in following:
            if character != "\\":
                rest = self._other_key({name[1:] for name in names if name.startswith(character)})
                choices.append(f"{_quoted(character)} {rest}")
        if "" not in names:
            choices.append('""')
        return self._add(" | ".join(choices))

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
        if schema.get("format") in ("date", "time", "date-time", "uuid"):
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


def _literal(value: Any) -> str:
    """A JSON value as it must be written, as a GBNF literal."""
    return _quoted(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


def _quoted(text: str) -> str:
    return '"' + "".join(_escaped(text)) + '"'


def _escaped(text: str) -> Iterator[str]:
    for character in text:
        if character in '"\\':
            yield "\\" + character
        elif character.isprintable():
            yield character
        else:
            yield f"\\U{ord(character):08X}"


def _in_class(character: str) -> str:
    return f"\\U{ord(character):08X}" if character in '[]-^\\"' or not character.isprintable() else character
