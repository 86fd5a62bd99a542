"""Refuses grammars that llama.cpp would abort, hang or run out of memory on.

llama.cpp's parser (``src/llama-grammar.cpp`` of llama-cpp-python 0.3.36) trusts its input: ``"a"{5,2}`` loops for ever,
deep parentheses overflow the stack, left recursion behind a rule that is empty only by another rule is not seen and
grows without end, more than 2,000 repetitions silently become any number, and an ambiguous rule doubles the parse
states with every character. A token element that follows a character lets tokens through that it aborts on: in the
middle of a token it is held against the whole token, and ignored when that is accepted. A grammar that passes
:func:`check_gbnf` has none of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ktllama.engine.executor import GrammarError
from ktllama.runtime.gbnf_parser import Characters, Parser, Rules, Sequence, Symbol, TokenElement
from ktllama.runtime.gbnf_states import MAX_STATES, probe_ambiguity

MAX_TEXT_BYTES = 256 * 1024


def check_gbnf(text: str) -> None:
    """Raise a GrammarError that says what is wrong with a grammar, if something is."""
    if len(text.encode(errors="replace")) > MAX_TEXT_BYTES:
        raise GrammarError(f"the grammar has more than {MAX_TEXT_BYTES} bytes")
    if "\0" in text:
        raise GrammarError("the grammar holds a NUL character")
    parser = Parser(text)
    parser.parse()
    if "root" not in parser.numbers:
        raise GrammarError("the grammar has no rule called root")
    rules = parser.finished_rules()
    empty = _nullable(rules)
    order = _left_order(rules, empty, parser.names)
    _check_tokens(rules, empty)
    _check_states(rules, empty, order, parser.names)
    probe_ambiguity(rules, parser.numbers["root"])


def _nullable(rules: Rules) -> list[bool]:
    """Which rules can be empty."""
    users: list[list[int]] = [[] for _ in rules]
    for number, body in enumerate(rules):
        for sequence in body:
            for symbol in sequence:
                if isinstance(symbol, int):
                    users[symbol].append(number)
    empty = [False] * len(rules)
    todo = list(range(len(rules)))
    while todo:
        number = todo.pop()
        if empty[number] or not any(_all_empty(sequence, empty) for sequence in rules[number]):
            continue
        empty[number] = True
        todo += users[number]
    return empty


def _all_empty(sequence: Sequence, empty: list[bool]) -> bool:
    return all(isinstance(symbol, int) and empty[symbol] for symbol in sequence)


def _left_symbols(body: Iterable[Sequence], empty: list[bool]) -> Iterator[Symbol]:
    """What can come first in a rule."""
    for sequence in body:
        for symbol in sequence:
            yield symbol
            if not (isinstance(symbol, int) and empty[symbol]):
                break


def _left_order(rules: Rules, empty: list[bool], names: list[str]) -> list[int]:
    """The rules, each after those that it can begin with.

    Raises:
        GrammarError: where a rule can begin with itself.
    """
    order: list[int] = []
    state = [0] * len(rules)  # 1: being visited, 2: done
    for start in range(len(rules)):
        if state[start]:
            continue
        state[start] = 1
        path = [(start, _left_symbols(rules[start], empty))]
        while path:
            number, symbols = path[-1]
            following = next((symbol for symbol in symbols if isinstance(symbol, int) and state[symbol] != 2), None)
            if following is None:
                path.pop()
                state[number] = 2
                order.append(number)
            elif state[following] == 1:
                named = next((names[rule] for rule, _ in reversed(path) if names[rule]), "root")
                raise GrammarError(f"the rule {named} can begin with itself, or repeats something that may be empty")
            else:
                state[following] = 1
                path.append((following, _left_symbols(rules[following], empty)))
    return order


def _check_tokens(rules: Rules, empty: list[bool]) -> None:
    """Refuse a token element that can follow a character."""
    begins = _reaching(rules, lambda body: _left_symbols(body, empty), TokenElement)
    ends = _reaching(rules, lambda body: _left_symbols((each[::-1] for each in body), empty), Characters)
    for body in rules:
        for sequence in body:
            follows_character = False
            for symbol in sequence:
                if follows_character and (begins[symbol] if isinstance(symbol, int) else _is_token(symbol)):
                    raise GrammarError(
                        "a token such as <|name|> or !<[123]> can follow a character; "
                        "llama.cpp can have tokens at the beginning and after tokens alone"
                    )
                ends_so = ends[symbol] if isinstance(symbol, int) else not _is_token(symbol)
                passes = isinstance(symbol, int) and empty[symbol]
                follows_character = ends_so or (passes and follows_character)


def _is_token(symbol: Symbol) -> bool:
    return isinstance(symbol, TokenElement)


def _reaching(
    rules: Rules, edge: Callable[[tuple[Sequence, ...]], Iterator[Symbol]], kind: type[Characters | TokenElement]
) -> list[bool]:
    """Which rules have a ``kind`` at their ``edge``, themselves or by a rule that stands there."""
    users: list[list[int]] = [[] for _ in rules]
    found = [False] * len(rules)
    todo = []
    for number, body in enumerate(rules):
        for symbol in edge(body):
            if isinstance(symbol, int):
                users[symbol].append(number)
            elif isinstance(symbol, kind):
                todo.append(number)
    while todo:
        number = todo.pop()
        if not found[number]:
            found[number] = True
            todo += users[number]
    return found


def _check_states(rules: Rules, empty: list[bool], order: list[int], names: list[str]) -> None:
    """Refuse rules that can begin in too many ways; a class of many characters counts for several."""
    ways = [0] * len(rules)
    for number in order:
        ways[number] = sum(
            ways[symbol] if isinstance(symbol, int) else symbol.ways for symbol in _left_symbols(rules[number], empty)
        )
        if ways[number] > MAX_STATES:
            raise GrammarError(f"the rule {names[number] or 'root'} can begin in more than {MAX_STATES} ways")
