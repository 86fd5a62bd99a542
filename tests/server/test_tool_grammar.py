"""Grammars of tool calls, judged by llama.cpp's own grammar sampler on a real vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from ktllama.engine.executor import GrammarError
from ktllama.r1.tool_formats import FORMATS
from ktllama.runtime.gbnf import check_gbnf
from ktllama.runtime.grammar import Constraint
from ktllama.runtime.json_schema import schema_to_gbnf
from ktllama.server import tool_grammar as tool_grammar_module
from ktllama.server.errors import ApiError
from ktllama.server.protocol.messages import FunctionTool
from ktllama.server.tool_grammar import characters_but, literal, tool_grammar
from tests.runtime import smollm2
from tests.runtime.vocabularies import vocabulary_of

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Bern", "Zürich"]}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
STRICT = FunctionTool(name="get_weather", parameters=SCHEMA, strict=True)
FREE = FunctionTool(name="look")
TOOLS = [(0, STRICT), (1, FREE)]
BERN = ("get_weather", '{"city": "Bern", "days": 3}')
Fits = Callable[[str, str], bool]


@pytest.fixture(scope="module")
def fits() -> Iterator[Fits]:
    """Whether a text is a whole answer under a grammar, token by token."""
    with vocabulary_of(smollm2.path()) as loaded:
        api, vocab = loaded.api, loaded.vocab

        def judged(grammar: str, text: str) -> bool:
            check_gbnf(grammar)
            constraint = Constraint(api, vocab, grammar)
            data = text.encode()
            tokens = (api.llama_token * (len(data) + 8))()
            n_tokens = api.llama_tokenize(vocab, data, len(data), tokens, len(tokens), False, False)
            for token in tokens[:n_tokens]:
                if not constraint.allows(token):
                    return False
                constraint.accept(token)
            return bool(constraint.allows(api.llama_vocab_eos(vocab)))

        yield judged


@pytest.mark.parametrize("name", FORMATS)
def test_required_calls_are_calls_and_nothing_else(fits: Fits, name: Any) -> None:
    wanted = FORMATS[name]
    grammar = tool_grammar(wanted, TOOLS, required=True, parallel=True)

    assert fits(grammar, wanted.calls([BERN]))
    assert fits(grammar, "\n\n" + wanted.calls([BERN, ("look", '{"at": [1, {"b": null}]}')]))
    assert not fits(grammar, "")
    assert not fits(grammar, "Hello")
    assert not fits(grammar, wanted.calls([("other", "{}")]))
    assert not fits(grammar, wanted.calls([("look", "[]")]))
    assert not fits(grammar, wanted.calls([("get_weather", '{"city": "Rome"}')]))
    assert not fits(grammar, wanted.calls([("get_weather", '{"days": 3}')]))
    assert not fits(grammar, wanted.calls([BERN]) + " more")


@pytest.mark.parametrize("name", FORMATS)
def test_strict_arguments_hold_where_a_call_comes_and_text_is_free(fits: Fits, name: Any) -> None:
    wanted = FORMATS[name]
    grammar = tool_grammar(wanted, TOOLS, required=False, parallel=True)
    opener = wanted.openers[0]

    assert fits(grammar, "")
    assert fits(grammar, f"a < b, {opener[:-1]} and <<{opener[:3]} are text. Grüße 👋")
    assert fits(grammar, "Let me look." + wanted.calls([BERN, ("look", "{}")]))
    assert not fits(grammar, "x" + wanted.calls([("get_weather", '{"city": "Rome"}')]))
    assert not fits(grammar, f"a {opener} b")


def test_one_call_where_no_more_are_wanted(fits: Fits) -> None:
    wanted = FORMATS["deepseek-r1"]
    grammar = tool_grammar(wanted, TOOLS, required=True, parallel=False)

    assert fits(grammar, wanted.calls([BERN]))
    assert not fits(grammar, wanted.calls([BERN, BERN]))


def test_a_schema_without_grammar_is_named_by_its_place() -> None:
    tool = FunctionTool(name="f", strict=True, parameters={"type": "object", "minProperties": 2})

    with pytest.raises(ApiError) as caught:
        tool_grammar(FORMATS["hermes"], [(3, tool)], required=False, parallel=True)
    assert caught.value.param == "tools[3].function.parameters"
    assert "minProperties" in caught.value.message
    assert isinstance(caught.value.__cause__, GrammarError)


def test_no_more_schemas_are_converted_than_a_grammar_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {f"v{j}": {"enum": [f"v{j}x{k}" for k in range(15)]} for j in range(300)}
    large = FunctionTool(name="f", parameters={"type": "object", "properties": values}, strict=True)
    converted = Mock(side_effect=schema_to_gbnf)
    monkeypatch.setattr(tool_grammar_module, "schema_to_gbnf", converted)
    with pytest.raises(ApiError) as caught:
        tool_grammar(FORMATS["deepseek-r1"], [(place, large) for place in range(64)], required=True, parallel=True)
    assert (caught.value.param, caught.value.code) == ("tools", "invalid_json_schema")
    assert "a grammar of more than 262144 bytes" in caught.value.message
    assert converted.call_count < 8


def test_parameters_may_be_a_reference(fits: Fits) -> None:
    parameters = {"$ref": "#/$defs/city", "$defs": {"city": SCHEMA}}
    tool = FunctionTool(name="get_weather", parameters=parameters, strict=True)
    grammar = tool_grammar(FORMATS["deepseek-r1"], [(0, tool)], required=True, parallel=False)
    assert fits(grammar, FORMATS["deepseek-r1"].calls([BERN]))


def test_texts_and_classes_are_escaped() -> None:
    assert literal('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'
    assert characters_but({"]", "^", "-", "a"}) == "[^\\x2D\\]\\x5Ea]"
