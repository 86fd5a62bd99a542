"""Override patterns: few, readable, and exactly the tensors that are meant.

A pattern is read by ``std::regex`` (ECMAScript) with ``regex_search``, and on llama-server's command line stands
before an ``=`` in a list split at ``,``. So patterns are anchored and use only ``^ $ | ( ) [ - ] \\.`` besides names,
which mean the same to Python's ``re``: what is proven here holds there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from ktllama.model.modules import block_of
from ktllama.ranges import numbers_pattern

_PARTS = ("gate", "up", "down", "gate_up")


def patterns_for(chosen: frozenset[str], all_names: Iterable[str]) -> tuple[str, ...]:
    """Patterns that together find exactly the names in ``chosen`` among ``all_names``.

    They do not overlap, so their order is free. Patterns for all three matrices of a layer's experts also cover
    the fused matrix that newer files have.
    """
    by_layer: dict[int, set[str]] = defaultdict(set)
    layers_with: dict[str, set[int]] = defaultdict(set)
    for name in all_names:
        layer = block_of(name)
        if layer is not None:
            suffix = name.split(".", 2)[2]
            by_layer[layer].add(suffix)
            layers_with[suffix].add(layer)
    outside = sorted(name for name in chosen if block_of(name) is None)
    whole = {layer for layer, names in by_layer.items() if all(f"blk.{layer}.{name}" in chosen for name in names)}
    patterns = [_whole_layers(whole, set(by_layer))] if whole else []
    groups: dict[frozenset[int], set[str]] = defaultdict(set)
    for suffix, layers in layers_with.items():
        here = frozenset(layer for layer in layers - whole if f"blk.{layer}.{suffix}" in chosen)
        if here:
            groups[here].add(suffix)
    for here, suffixes in sorted(groups.items(), key=lambda item: (min(item[0]), sorted(item[1]))):
        every = all(here == layers_with[suffix] for suffix in suffixes)
        number = "[0-9]+" if every else numbers_pattern(here)
        patterns.append(f"^blk\\.{number}\\.{_suffixes(suffixes, frozenset(layers_with) - suffixes)}$")
    if outside:
        patterns.append(f"^{_alternatives(_literal(name) for name in outside)}$")
    return tuple(patterns)


def _whole_layers(layers: set[int], all_layers: set[int]) -> str:
    return f"^blk\\.{'[0-9]+' if layers == all_layers else numbers_pattern(layers)}\\."


def _suffixes(suffixes: Iterable[str], others: frozenset[str]) -> str:
    """``ffn_gate_exps.weight``, ``ffn_up_exps.weight`` → ``ffn_(gate|up)_exps\\.weight``; none of ``others`` fits."""
    by_parameter: dict[str, list[str]] = defaultdict(list)
    for suffix in sorted(suffixes):
        stem, dot, parameter = suffix.rpartition(".")
        by_parameter[dot + parameter].append(stem)
    return _alternatives(
        f"{_stems(stems, fused=f'ffn_gate_up_exps{parameter}' not in others)}{_literal(parameter)}"
        if stems != [""]
        else _literal(parameter)
        for parameter, stems in by_parameter.items()
    )


def _stems(stems: list[str], *, fused: bool) -> str:
    matrices: dict[str, set[str]] = defaultdict(set)
    written = []
    for stem in stems:
        found = re.fullmatch(r"ffn_(gate|up|down|gate_up)(_exps|_shexp|)", stem)
        if found:
            matrices[found.group(2)].add(found.group(1))
        else:
            written.append(_literal(stem))
    for kind, names in matrices.items():
        more = {"gate_up"} if fused and kind == "_exps" and {"gate", "up", "down"} <= names else set()
        written.append(f"ffn_{_alternatives(sorted(names | more, key=_PARTS.index))}{kind}")
    return _alternatives(written)


def _literal(name: str) -> str:
    """A pattern for ``name`` itself; ``,`` and ``=`` as both grammars write them by number."""
    return re.escape(name).replace(",", r"\x2c").replace("=", r"\x3d")


def _alternatives(options: Iterable[str]) -> str:
    listed = list(options)
    return listed[0] if len(listed) == 1 else f"({'|'.join(listed)})"


def prove(patterns: Iterable[tuple[str, str]], wanted: Mapping[str, str | None]) -> None:
    """Check that the patterns give every tensor name of ``wanted`` its device, or no override where it is None."""
    compiled = [(re.compile(pattern), device) for pattern, device in patterns]
    for name, device in wanted.items():
        found = next((target for pattern, target in compiled if pattern.search(name)), None)
        assert found == device, f"override patterns send {name} to {found}, not {device}"
