"""Grammars that would abort, hang or mislead llama.cpp are refused before it sees them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ktllama import assets
from ktllama.engine.executor import GrammarError
from ktllama.runtime.gbnf import check_gbnf
from ktllama.runtime.gbnf_parser import Characters, merged_ranges
from ktllama.runtime.grammar import Constraint
from ktllama.runtime.sampler_chain import Candidates
from tests.runtime.own_process import in_own_process, process
from tests.runtime.vocabularies import vocabulary_of

_ACCEPTED = [
    'root ::= "a"',
    "root ::= [a-z]+ # letters\n",
    "root ::= (\n  item |\n  [^\\n] .\n)*\nitem ::= \"- \" [^\\r\\n\\x0b\\u2028]+ '\\n'".replace("'", '"'),
    'root ::= "x"{2} "y"{1,} "z"{0,3}',
    "root ::= <|im_end|> | !<[5]>",
    'root ::= value\nvalue ::= "[" (value ("," value)*)? "]"',
    'root ::= "a" root | ""',
    'root ::= ([a-z]+ " "?)* ((" "* "\\n"*)? "b"+)* ("a" | "a")* "."',
    'root ::= [\\]\\[^-] "\\"\\\\\\t"',
    'root ::= <think> (!</think>)* </think> "" "a"*',
    'root ::= "a" | (<[5]> a)*\na ::= "" | <[6]>',
]

_REFUSED = {
    'root ::= "a"{5,2}': "{5,2} ends before it begins",
    'root ::= "a"{3000}': "more than 2000 repetitions",
    'root ::= "a"{1,5000}': "more than 2000 repetitions",
    'root ::= (("a"{100}){100}){100} "b"{50}{50}': "repetitions multiply to more than 2000",
    'root ::= root "a" | "b"': "can begin with itself",
    'root ::= a root "x" | "y"\na ::= b\nb ::= ""': "can begin with itself",
    'root ::= ("a"?)*': "repeats something that may be empty",
    'root ::= "x" root "a" | "x" root "b" | "c"': "more than 2000 ways at once",
    "root ::= " + "(" * 5000 + '"a"' + ")" * 5000: "nest more than 100 deep",
    'root ::= "a': "ends within quotes",
    "root ::= [a": "ends within quotes or brackets",
    "root ::= []": "a class of characters is empty",
    "root ::= *": "nothing to repeat",
    'root ::= ""*': "nothing to repeat",
    'root = "a"': "expected ::=",
    "root ::= other": "uses the rule other, which it does not define",
    'other ::= "a"': "no rule called root",
    'root ::= "a"\nroot ::= "b"': "defined twice",
    'root ::= "\\q"': "unknown escape",
    'root ::= "\\x4"': "unknown escape",
    'root ::= "a" )': "expected the end of the line",
    'root ::= ("a"': "expected )",
    'root ::= "a\0"': "NUL",
    'root ::= "<" !<[5]>': "can follow a character",
    'root ::= a b? <[5]>\na ::= <[1]> | "x" b\nb ::= "" | <[2]>': "can follow a character",
    'root ::= (<[5]> "x")*': "can follow a character",
    'root ::= (<[5]> | "x" root | "y")': "can follow a character",
    "root ::= !<[6]> root <[6]> | !<[7]> root <[7]> | <[8]>": "2000 ways at once",
    "root ::= <": "a token such as",
    'root ::= ("a" | "a" | "a" | "a")* "x"': "8 characters can be read in more than 30000 ways",
    'root ::= "' + "b" * 40 + '" ([a-z] | [a-f] | . | "a")+ "x"': "8 characters can be read in more than 30000 ways",
    "": "no rule called root",
    "root ::= [" + "".join(map(chr, range(0x4E00, 0x5400, 2))) + "]": "more than 512 ranges",
    "root ::= "
    + " | ".join(["c"] * 100)
    + "\nc ::= ["
    + "".join(map(chr, range(0x4E00, 0x4F00, 2)))
    + "]": "2000 ways",
    "\n".join(f'r{i} ::= r{i + 1} "x" | r{i + 1} "y"' for i in range(40)) + '\nr40 ::= "z"\nroot ::= r0': "2000 ways",
    "root ::= " + '"a" ' * 60_000: "more than 50000 elements",
    "\n".join(f'r{i} ::= "a"' for i in range(6000)): "more than 5000 rules",
    "x" * 300_000: "more than 262144 bytes",
}


@pytest.mark.parametrize("grammar", _ACCEPTED)
def test_grammars_pass(grammar: str) -> None:
    check_gbnf(grammar)


@pytest.mark.parametrize("grammar", _REFUSED, ids=lambda grammar: grammar[:30].replace("\0", "NUL"))
def test_hostile_grammars_are_refused(grammar: str) -> None:
    with pytest.raises(GrammarError) as caught:
        check_gbnf(grammar)
    assert _REFUSED[grammar] in str(caught.value)


def test_errors_have_a_place() -> None:
    with pytest.raises(GrammarError, match=r"^grammar, line 2, column 10: there is nothing to repeat"):
        check_gbnf('root ::= a\na    ::= * "x"')


def test_checking_takes_bounded_work() -> None:
    """Deep ambiguity in a rule that the probe reaches late still ends."""
    rules = [f'r{i} ::= "(" r{i} ")" | "(" r{i} "]" | "x"' for i in range(60)]
    started = time.process_time()
    with pytest.raises(GrammarError, match="ways at once"):
        check_gbnf("\n".join([*rules, "root ::= " + " | ".join(f'"{i}" r{i}' for i in range(60))]))
    assert time.process_time() - started < 20


def test_classes_of_many_characters_count_for_several_ways() -> None:
    """A class of 50 ranges costs llama.cpp as much as 13 characters, and the check no more than one."""
    scattered = "".join(map(chr, range(0x4E00, 0x4E64, 2)))
    check_gbnf("root ::= " + " | ".join(["c c"] * 150) + f"\nc ::= [{scattered}]")
    with pytest.raises(GrammarError, match="more than 2000 ways"):
        check_gbnf("root ::= " + " | ".join(["c c"] * 160) + f"\nc ::= [{scattered}]")


def test_ranges_are_merged_for_the_check_alone() -> None:
    found = Characters(tuple(merged_ranges([(5, 3), (20, 30), (97, 99), (1, 2), (98, 110), (31, 31)])), inverted=True)
    assert found.ranges == ((1, 2), (20, 31), (97, 110))
    assert [code for code in range(120) if not found.matches(code)] == [1, 2, *range(20, 32), *range(97, 111)]


@pytest.fixture(scope="module")
def own_process() -> Iterator[ProcessPoolExecutor]:
    with process() as pool:
        yield pool


_WORDS = (
    *(
        "root",
        "a",
        "b",
        "::=",
        "\n",
        "\n",
        "|",
        "|",
        "(",
        ")",
        '"x"',
        '"yz"',
        '""',
        "[a-z]",
        "[^x]",
        ".",
        "*",
        "+",
        "?",
    ),
    *("{2}", "{1,}", "{0,3}", "{3,1}", "{", "}", '"', "[", "]", "\\", "<eos>", "!<[3]>", "<", "#", "-", "é"),
)


_TOKEN_WORDS = (*("<[5]>", "!<[5]>", "<think>", "!</think>") * 2, '"<"', '"t"', "[^a]", ".", *"ab|||()*?", "\n")


@in_own_process
def test_llama_cpp_accepts_every_token_that_it_allows() -> None:
    """Of a real vocabulary, whose tokens are longer than a character, within random grammars of tokens and characters."""
    passed = 0
    with vocabulary_of(assets.tiny_r1()) as loaded:
        candidates = Candidates(loaded.api, loaded.vocabulary.size)
        logits = np.zeros(loaded.vocabulary.size, np.float32)
        for seed in range(1500):
            draw = random.Random(seed)
            words = [draw.choices(_TOKEN_WORDS, k=draw.randrange(1, 7)) for _ in range(3)]
            root, a, b = (" ".join(body).replace("\n", '""') for body in words)
            grammar = f'root ::= {root}\na ::= <think> | {a}\nb ::= "" | {b}'
            try:
                check_gbnf(grammar)
            except GrammarError:
                continue
            passed += "<" in root
            constraint = Constraint(loaded.api, loaded.vocab, grammar)
            for _ in range(3):
                candidates.load(None, logits, descending=False)
                candidates.apply(constraint.sampler)
                allowed = np.flatnonzero(np.isfinite(candidates.logits(len(logits)))).tolist()
                if not allowed:
                    break
                for token in {*allowed[:16], *draw.sample(allowed, min(len(allowed), 16))}:
                    tried = loaded.api.llama_sampler_clone(constraint.sampler)
                    loaded.api.llama_sampler_accept(tried, token)
                    loaded.api.llama_sampler_free(tried)
                constraint.accept(draw.choice(allowed[:16]))
            constraint.close()
    assert passed > 50


@in_own_process
def test_llama_cpp_survives_every_grammar_that_passes(llama: Path) -> None:
    """Random grammars: those that pass are parsed by llama.cpp too, and a walk through them does not end the process."""
    passed = 0
    with vocabulary_of(llama) as loaded:
        for seed in range(800):
            draw = random.Random(seed)
            words = " ".join(draw.choices(_WORDS, k=draw.randrange(1, 9)))
            grammar = f'root ::= {words}\na ::= "q" | "r" a\nb ::= [0-9] a'
            try:
                check_gbnf(grammar)
            except GrammarError:
                continue
            try:
                constraint = Constraint(loaded.api, loaded.vocab, grammar)
            except GrammarError:
                assert "<" in grammar  # only llama.cpp can tell whether <text> is a token
                continue
            passed += 1
            for _ in range(4):
                allowed = [token for token in range(257) if constraint.allows(token)]
                if not allowed or allowed == [256]:
                    break
                constraint.accept(draw.choice([token for token in allowed if token != 256]))
            constraint.close()
    assert passed > 10
