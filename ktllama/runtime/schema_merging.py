"""The keywords of JSON schemas that say what is valid, and ``allOf`` of several schemas as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ktllama.engine.executor import GrammarError
from ktllama.runtime.schema_overlap import value_key

UNSUPPORTED = (
    "not", "if", "then", "else", "patternProperties", "propertyNames", "dependentRequired", "dependentSchemas",
    "dependencies", "minProperties", "maxProperties", "uniqueItems", "contains", "minContains", "maxContains",
    "multipleOf", "unevaluatedItems", "additionalItems", "$dynamicRef", "$recursiveRef",
)  # fmt: skip
#: keyword → the type that it says something about; the others say nothing about a value of another type
TYPE_OF = {
    "properties": "object", "required": "object", "additionalProperties": "object",
    "items": "array", "prefixItems": "array", "minItems": "array", "maxItems": "array",
    "minLength": "string", "maxLength": "string", "pattern": "string", "format": "string",
    "minimum": "number", "maximum": "number", "exclusiveMinimum": "number", "exclusiveMaximum": "number",
}  # fmt: skip
ASSERTIONS = frozenset(("type", "const", "enum", "anyOf", "oneOf", *UNSUPPORTED, *TYPE_OF))


def merged(parts: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """One schema that says what all ``parts`` say.

    Raises:
        GrammarError: where two say different things with one keyword, and for ``additionalProperties`` of a part
            that does not name all properties.
    """
    made: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    required: dict[str, None] = {}
    for part in parts:
        for key, value in part.items():
            if key == "properties" and isinstance(value, dict):
                _add(properties, value, where)
            elif key == "required" and isinstance(value, list):
                required |= dict.fromkeys(each for each in value if isinstance(each, str))
            elif key in ASSERTIONS:
                _add(made, {key: value}, where)
    for part in parts:
        unknown = (properties | required).keys() - part.get("properties", {}).keys()
        if unknown and part.get("additionalProperties", True) is not True:
            raise GrammarError(f"a part of allOf at {where} has additionalProperties for properties of another")
    if properties:
        made["properties"] = properties
    return made | ({"required": list(required)} if required else {})


def _add(made: dict[str, Any], added: Mapping[str, Any], where: str) -> None:
    for key, value in added.items():
        if value_key(made.setdefault(key, value)) != value_key(value):
            raise GrammarError(f"the parts of allOf at {where} differ in {key[:80]}")
