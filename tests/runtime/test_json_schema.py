"""Everything that a schema's grammar lets through is valid under the schema, and what it cannot enforce is named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from ktllama.engine.executor import GrammarError
from ktllama.engine.messages import Sampling
from ktllama.runtime.grammar import Constraint, gbnf_of
from ktllama.runtime.sampler_chain import SamplerChain, SamplerFactory
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
    if name not in ("array_empty",):
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
