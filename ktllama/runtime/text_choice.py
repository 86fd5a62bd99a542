"""Texts as GBNF, and the choice of one among many with what they begin with alike written once.

llama.cpp holds every token against every alternative that is open. As a flat list an ``enum`` of a thousand strings has
a thousand open for each token of a value; as a tree, as many as there are ways to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from ktllama.engine.executor import GrammarError
from ktllama.r1.markers import common_beginning

_MAX_PLACES = 4_000
_FLAT = 32  # alternatives that are left as they are: a rule each would cost more than it saves


def quoted(text: str) -> str:
    """A GBNF literal."""
    return '"' + "".join(_escaped(text)) + '"'


def in_class(character: str) -> str:
    """A character as it is written in a GBNF class."""
    return f"\\U{ord(character):08X}" if character in '[]-^\\"' or not character.isprintable() else character


def one_of(texts: Iterable[str], add: Callable[[str], str]) -> str:
    """A right-hand side for one of ``texts``; ``add`` makes a rule of a right-hand side and gives its name."""
    places = [(sorted(set(texts)), 0)]  # texts that begin alike, and how many characters of them
    children: list[list[tuple[str, int | None]]] = []  # a place's alternatives, each with the place that goes on
    for together, n_alike in places:
        if len(together) <= _FLAT:
            children.append([(text[n_alike:], None) for text in together])
            continue
        children.append([])
        for _, each in groupby(together, key=lambda text: text[n_alike : n_alike + 1]):
            group = list(each)
            if len(group) == 1:
                children[-1].append((group[0][n_alike:], None))
            else:
                n_more = len(common_beginning(group[0], group[-1]))
                children[-1].append((group[0][n_alike:n_more], len(places)))
                places.append((group, n_more))
    bodies = [""] * len(places)
    for place in reversed(range(len(places))):
        bodies[place] = " | ".join(
            quoted(text) if following is None else f"{quoted(text)} {add(bodies[following])}"
            for text, following in children[place]
        )
    return bodies[0]


def none_of(names: set[str], add: Callable[[str], str]) -> str:
    """A rule for the text of a JSON string that is none of ``names``, as JSON writes them; it uses the rule ``char``.

    Names with escapes are kept out by their first escape: then no other text has one at that place.
    """
    places = [(names, 0)]  # names that begin alike, and how many characters of them
    following: list[dict[str, int]] = []  # a place's next characters, each with the place after it
    for together, n_alike in places:
        characters = sorted({name[n_alike] for name in together if len(name) > n_alike})
        following.append({})
        for character in characters:
            following[-1][character] = len(places)
            if character != "\\":
                places.append(({name for name in together if name.startswith(character, n_alike)}, n_alike + 1))
        if len(places) > _MAX_PLACES:
            raise GrammarError(f"the JSON schema has property names that part at more than {_MAX_PLACES} places")
    rules = [""] * len(places)
    for place in reversed(range(len(places))):
        together, n_alike = places[place]
        goes_on = {each: rules[at] for each, at in following[place].items() if each != "\\"}
        excluded = "".join(map(in_class, following[place]))
        choices = [f'[^"\\\\\\x00-\\x1F\\x7F{excluded}] char*'] if following[place] else ["char+"]
        choices += [f"{quoted(character)} {rest}" for character, rest in goes_on.items()]
        if all(len(name) > n_alike for name in together):
            choices.append('""')
        rules[place] = choices[0] if choices == ["char+"] else add(" | ".join(choices))
    return rules[0]


def _escaped(text: str) -> Iterator[str]:
    for character in text:
        if character in '"\\':
            yield "\\" + character
        elif character.isprintable():
            yield character
        else:
            yield f"\\U{ord(character):08X}"
