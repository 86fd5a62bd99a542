"""Everything that a schema's grammar lets through is valid under the schema, and what it cannot enforce is named."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from ktllama.engine.executor import GrammarError
from ktllama.engine.messages import Sampling
from ktllama.runtime.gbnf import check_gbnf
from ktllama.runtime.gbnf_parser import Characters, Parser, Rules
from ktllama.runtime.grammar import Constraint, gbnf_of
from ktllama.runtime.json_schema import schema_to_gbnf
from ktllama.runtime.sampler_chain import SamplerChain, SamplerFactory
from ktllama.runtime.text_choice import one_of
from tests.runtime.vocabularies import LoadedVocabulary, vocabulary_of

_SCHEMAS: dict[str, Any] = {
    "anything": {},
    "object": {"type": "object"},
    "person": {
        "title": "Person",
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "email": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}], "default": None},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "optional": {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}},
    "others": {
        "type": "object",
        "properties": {"a": {"const": 1}, "ab": {"const": 2}, '"q': {"const": 3}},
        "required": ["ab"],
        "additionalProperties": {"type": "boolean"},
    },
    "map": {"type": "object", "additionalProperties": {"enum": [1, "two", None]}},
    "required_only": {"type": "object", "required": ["x"]},
    "required_others": {"properties": {"a": {}}, "required": ["x"], "additionalProperties": {"const": 1}},
    "recursive": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "boolean"},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                },
                "required": ["v", "next"],
            }
        },
        "$ref": "#/$defs/node",
    },
    "all_of": {
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"const": "x"}}, "required": ["b"]}],
        "$defs": {"base": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}},
    },
    "array": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 4},
    "array_at_most_one": {"type": "array", "items": {"const": 0}, "maxItems": 1},
    "array_empty": {"type": "array", "maxItems": 0},
    "tuple": {
        "type": "array",
        "prefixItems": [{"const": 1}, {"const": 2}, {"const": 3}],
        "items": False,
        "minItems": 1,
    },
    "tuple_and_more": {"type": "array", "prefixItems": [{"const": "a"}], "items": {"type": "null"}, "minItems": 3},
    "tuple_bounded": {
        "type": "array",
        "prefixItems": [{"const": "a"}, {"const": "b"}],
        "items": {"const": 0},
        "maxItems": 4,
    },
    "all_of_empty_const": {"allOf": [{"const": []}, {"type": "array"}]},
    "others_long": {"properties": {"n" * 1500: {"const": 1}}, "additionalProperties": {"const": 2}},
    "others_escaped": {
        "properties": {"a": {"const": 1}, "a\nb": {"const": 1}, "\t": {"const": 1}, "": {"const": 1}},
        "additionalProperties": {"const": 2},
    },
    "enum_of_a_type": {"type": ["string", "integer"], "enum": ["aa", 1, 1.5, True, None, "bb", 2.0]},
    "const_within_enum": {"const": 1.0, "enum": [1, True, "1"]},
    "typed_alternatives": {"type": "number", "anyOf": [{"type": "integer"}, {"enum": [0.5, "b"]}, True]},
    "typed_references": {
        "type": ["null", "number"],
        "anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        "$defs": {"a": {"type": "integer", "minimum": 3}, "b": {"$ref": "#/$defs/c"}, "c": {"type": "null"}},
    },
    "one_of_types": {"oneOf": [{"type": "boolean"}, {"type": "string", "maxLength": 2}, {"const": 3}]},
    "one_of_values": {"oneOf": [{"const": 1}, {"enum": ["1", True]}, {"const": [1.0]}]},
    "one_of_tagged": {
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}, {"type": "null"}],
        "$defs": {
            kind: {
                "type": "object",
                "properties": {"kind": {"const": kind}, "age": {"enum": [1, 2]}},
                "required": ["kind"] if kind == "cat" else [],
            }
            for kind in ("cat", "dog")
        },
    },
    "one_of_closed": {
        "oneOf": [
            {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"const": 2}}, "additionalProperties": False},
        ]
    },
    "enum": {"enum": ["a", 'with "quotes"', "back\\slash", "line\nbreak", 1.5, {"a": [1]}, "ü"]},
    "types": {"type": ["string", "integer", "null"], "maxLength": 2, "minimum": 5, "maximum": 7},
    "number": {"type": "number"},
    "positive": {"type": "number", "minimum": 0},
    "negative_integers": {"type": "integer", "minimum": -120, "maximum": -7},
    "across_zero": {"type": "integer", "exclusiveMinimum": -12, "exclusiveMaximum": 1005},
    "from": {"type": "integer", "minimum": 37},
    "date": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "email": {"type": "string", "format": "email", "maxLength": 3},
    "pattern": {"type": "string", "pattern": "^[a-f]{2,3}(-\\d+|\\.\\w)?$"},
    "pattern_escapes": {"type": "string", "pattern": '^[^a]"\\\\[\\s\\S]$'},
    "pattern_alternatives": {"type": "string", "pattern": "^yes$|^no+$"},
}

_REFUSED = {
    "no JSON": ("{", "is no JSON"),
    "deep JSON": ("[" * 100_000, "is no JSON"),
    "no schema": ("3", "at # is no object"),
    "never": ("false", "at # is no object"),
    "not": ('{"properties": {"a": {"not": {}}}}', "at #/properties/a uses not"),
    "unique": ('{"type": "array", "uniqueItems": true}', "uses uniqueItems"),
    "elsewhere": ('{"$ref": "https://example.com/x"}', "which is not in it"),
    "nowhere": ('{"$ref": "#/$defs/x"}', "which it does not have"),
    "itself": ('{"$ref": "#"}', "can begin with itself"),
    "type": ('{"type": "decimal"}', 'has the type "decimal"'),
    "many items": ('{"type": "array", "minItems": 1000000000}', "has minItems 1000000000"),
    "items": ('{"type": "array", "minItems": 3, "maxItems": 2}', "minItems above maxItems"),
    "half item": ('{"type": "array", "minItems": 1.5}', "has minItems 1.5"),
    "bounds": ('{"type": "number", "maximum": 3}', "only integers"),
    "no integer": ('{"type": "integer", "minimum": 3, "maximum": 2}', "no integer within"),
    "large bound": ('{"type": "integer", "maximum": 1e300}', "more than 18 digits"),
    "look-ahead": ('{"type": "string", "pattern": "^(?=a)b$"}', "uses assert"),
    "back reference": ('{"type": "string", "pattern": "^(a)\\\\1$"}', "uses groupref"),
    "bad pattern": ('{"type": "string", "pattern": "("}', "cannot be read"),
    "enum": ('{"enum": []}', "list that is not empty"),
    "siblings": ('{"anyOf": [{}], "properties": {}}', "has properties beside anyOf"),
    "all of": ('{"allOf": [{"type": "string"}, {"type": "null"}]}', "differ in type"),
    "required, and none": (
        '{"properties": {"a": {}}, "required": ["a", "zz"], "additionalProperties": false}',
        "requires 'zz' and has no such property",
    ),
    "anchor": ('{"properties": {"a": {"$ref": "#name"}}}', "'#name', which is not in it"),
    "no text as place": ('{"$ref": []}', "which is not in it"),
    "long place": ('{"anyOf": [{"$ref": "#/anyOf/' + "1" * 5000 + '"}]}', "which it does not have"),
    "enum of another type": ('{"type": "integer", "enum": ["aa", "bb"]}', "at # has no value that its enum"),
    "const beside enum": ('{"const": 1, "enum": [true, "1"]}', "at # has no value that its const"),
    "enum and more": ('{"enum": ["a"], "minLength": 3}', "has minLength beside enum"),
    "const and more": ('{"allOf": [{"const": []}, {"items": {}}]}', "has items beside const"),
    "reference and more": ('{"$ref": "#/$defs/a", "allOf": [{}], "$defs": {"a": {}}}', "has allOf beside $ref"),
    "part and more": (
        '{"allOf": [{"$ref": "#/$defs/a", "minLength": 3}], "$defs": {"a": {}}}',
        "minLength beside $ref",
    ),
    "all of, any of": ('{"allOf": [{"required": ["a"]}], "anyOf": [{}]}', "has required beside anyOf"),
    "all of, one property": (
        '{"allOf": [{"properties": {"a": {"type": "null"}}}, {"properties": {"a": {"minimum": 3}}}]}',
        "differ in a",
    ),
    "all of, closed": (
        '{"allOf": [{"properties": {"a": {}}, "additionalProperties": false}, {"properties": {"b": {}}}]}',
        "additionalProperties for properties of another",
    ),
    "all of, true is not 1": ('{"allOf": [{"const": 1}, {"const": true}]}', "differ in const"),
    "any of, another type": ('{"type": "string", "anyOf": [{"type": "null"}]}', "excludes"),
    "any of, reference": ('{"type": "string", "anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {}}}', "does not reach"),
    "any of, any of": ('{"type": "string", "anyOf": [{"anyOf": [{}]}]}', "does not reach"),
    "one of, one value": ('{"oneOf": [{"type": "integer"}, {"const": 3}]}', "alternatives 0 and 1 of the JSON schema"),
    "one of, one number": ('{"oneOf": [{"const": 1}, {"const": 1.0}]}', "alternatives 0 and 1"),
    "one of, objects": (
        '{"oneOf": [{"type": "null"}, {"type": "object"}, {"type": "object", "properties": {"a": {}}}]}',
        "alternatives 1 and 2",
    ),
    "one of, no mark": (
        '{"oneOf": [{"type": "object", "properties": {"k": {"const": 1}}},'
        ' {"type": "object", "properties": {"k": {"const": 2}}}]}',
        "alternatives 0 and 1",
    ),
    "one of, ring": ('{"oneOf": [{"$ref": "#/oneOf/1"}, {"$ref": "#/oneOf/0"}]}', "alternatives 0 and 1"),
    "no number": ('{"const": NaN}', "is no JSON"),
    "large number": ('{"const": 1e999}', "is no JSON"),
    "very large bound": ('{"type": "integer", "maximum": 1' + "0" * 400 + "}", "more than 18 digits"),
    "deep value": ('{"const":' + "[" * 900 + "]" * 900 + "}", "nests too deep"),
    "many places": (
        json.dumps({"properties": {"n" * 9000: {}}, "additionalProperties": True}),
        "more than 4000 places",
    ),
    "nested": ('{"items":' * 80 + "{}" + "}" * 80, "nests more than 60 deep"),
    "large": ('{"enum": ["' + "x" * 300_000 + '"]}', "more than 262144 bytes"),
}


@pytest.fixture(scope="module")
def loaded(llama: Path) -> Iterator[LoadedVocabulary]:
    with vocabulary_of(llama) as found:
        yield found


def _texts(loaded: LoadedVocabulary, schema: Any, count: int) -> Iterator[str]:
    """Random texts of the grammar, each by a random walk over all bytes that it allows."""
    gbnf = gbnf_of("", json.dumps(schema))
    factory = SamplerFactory(loaded.api, loaded.vocab, loaded.vocabulary, n_ctx=64)
    logits = np.zeros(loaded.vocabulary.size, np.float32)
    logits[list(b'"]}0129ab')] = 4.0  # or strings and numbers would hardly end
    logits[list(b"[{")] = -2.0
    logits[128:256] = -math.inf  # llama.cpp lets broken UTF-8 through, which no model writes on purpose
    for seed in range(count):
        chain = SamplerChain(factory, Sampling(seed=seed), ())
        chain.constraint = Constraint(loaded.api, loaded.vocab, gbnf)
        tokens: list[int] = []
        while len(tokens) < 1500 and (token := chain.choose(logits)) not in (loaded.vocabulary.eos, None):
            assert token is not None
            tokens.append(token)
        chain.close()
        if len(tokens) < 1500:
            yield b"".join(map(loaded.vocabulary.piece, tokens)).decode()


@pytest.mark.parametrize("name", _SCHEMAS)
def test_every_text_of_the_grammar_is_valid(loaded: LoadedVocabulary, name: str) -> None:
    schema = _SCHEMAS[name]
    texts = list(_texts(loaded, schema, 25))
    assert len(texts) >= 15
    for text in texts:
        jsonschema.validate(json.loads(text), schema)
    if name not in ("array_empty", "all_of_empty_const", "const_within_enum"):
        assert len(set(texts)) > 1


@pytest.mark.parametrize("name", _REFUSED)
def test_what_cannot_be_enforced_is_named(name: str) -> None:
    schema, message = _REFUSED[name]
    with pytest.raises(GrammarError) as caught:
        gbnf_of("", schema)
    assert message in str(caught.value)


def test_integer_ranges_are_exact(loaded: LoadedVocabulary) -> None:
    """Every number of the range, and none beside it."""
    for low, high in ((0, 0), (5, 120), (-25, 13), (99, 1001), (-7, -7)):
        gbnf = gbnf_of("", json.dumps({"type": "integer", "minimum": low, "maximum": high}))
        allowed = {number for number in range(-1100, 1100) if _accepts(loaded, gbnf, str(number))}
        assert allowed == set(range(low, high + 1))


def test_a_choice_of_many_texts_is_these_texts() -> None:
    """As a set, whatever they have in common; and no place has more than a few ways to go on."""
    draw = random.Random(5)
    for letters, count in (("ab", 200), ("abcdefgh", 2000), ('a"\\n\u4e2d', 400)):
        texts = {"".join(draw.choices(letters, k=draw.randrange(12))) for _ in range(count)}
        rules: dict[str, str] = {}

        def add(body: str, rules: dict[str, str] = rules) -> str:
            rules[f"r{len(rules)}"] = body
            return f"r{len(rules) - 1}"

        rules["root"] = one_of(texts, add)
        parser = Parser("\n".join(f"{name} ::= {body}" for name, body in rules.items()))
        parser.parse()
        bodies = parser.finished_rules()
        assert _language(bodies, parser.numbers["root"]) == texts
        assert max(map(len, bodies)) <= 32


def _language(rules: Rules, rule: int) -> set[str]:
    """All texts of a rule; of one that does not contain itself."""
    found = set()
    for sequence in rules[rule]:
        texts = {""}
        for symbol in sequence:
            assert isinstance(symbol, int | Characters)
            following = _language(rules, symbol) if isinstance(symbol, int) else {chr(symbol.ranges[0][0])}
            texts = {before + after for before in texts for after in following}
        found |= texts
    return found


def test_a_long_enum_leaves_few_ways_open() -> None:
    values = [f"{place:05}" for place in range(0, 57000, 30)]
    text = schema_to_gbnf(json.dumps({"enum": values}))
    parser = Parser(text)
    parser.parse()
    assert max(map(len, parser.finished_rules())) <= 32
    check_gbnf(text)


def _accepts(loaded: LoadedVocabulary, gbnf: str, text: str) -> bool:
    constraint = Constraint(loaded.api, loaded.vocab, gbnf)
    try:
        for token in text.encode():
            if not constraint.allows(token):
                return False
            constraint.accept(token)
        return constraint.allows(loaded.vocabulary.eos)
    finally:
        constraint.close()
