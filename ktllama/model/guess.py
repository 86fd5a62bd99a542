"""Which known model a rule file was written for, told from the classes and the layers that it names."""

from __future__ import annotations

import functools
import re
from pathlib import PurePath

from ktllama.errors import UnknownPresetError
from ktllama.model import presets
from ktllama.model.modules import class_paths, families, family_of
from ktllama.placing.searching import RunawayPatternError, Searcher, compiled
from ktllama.ruleset.rules import Ruleset

#: Classes that say nothing about the model.
_EVERYWHERE = ("torch.", "transformers.modeling_", "transformers.activations.")


def guess_preset(ruleset: Ruleset) -> str:
    """The preset that most of the rules' classes belong to.

    Among models that share their classes, the one that the file's name names wins, then one whose layers are all
    matched by some rule, then the first in the list of presets.

    Raises:
        UnknownPresetError: when the rules name no class of a known model.
    """
    named = {rule.class_path for rule in ruleset.rules if rule.class_path}
    scores = {name: _n_classes(name, named) for name in presets.PRESETS}
    if not any(scores.values()):  # a class may be mistyped where its modelling file is known
        scores = {name: _n_families(name, named) for name in presets.PRESETS}
    best = max(scores.values())
    if best == 0:
        known = ", ".join(presets.PRESETS)
        raise UnknownPresetError(
            f"{ruleset.file}: the rules name no class of a model that ktllama knows, so it cannot tell which model "
            f"they are for; give --model FILE.gguf or --preset NAME (known presets: {known})"
        )
    candidates = [name for name, score in scores.items() if score == best]
    searcher = Searcher()
    return max(
        candidates, key=lambda name: (_named_by_file(name, ruleset.file), _covers_layers(name, ruleset, searcher))
    )


def _n_classes(preset: str, named: set[str]) -> int:
    own = _own_classes(preset)
    return sum(path in own for path in named)


def _n_families(preset: str, named: set[str]) -> int:
    own = families(presets.without_tensors(preset))
    return sum(family_of(path) in own for path in named)


@functools.cache
def _own_classes(preset: str) -> frozenset[str]:
    """The classes of a preset's modules by path and by bare name, without those that every model has."""
    paths = {path for path in class_paths(presets.without_tensors(preset)) if not path.startswith(_EVERYWHERE)}
    return frozenset(paths | {path.rpartition(".")[2] for path in paths})


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9.]+", text.lower())


def _named_by_file(preset: str, file: str) -> float:
    """How much of the preset's name stands in the file's and its folder's, less what is there and not of the preset."""
    path = PurePath(file)
    words = _words(f"{path.parent.name} {path.stem}")
    own = _words(preset)
    others = {word for name in presets.PRESETS for word in _words(name)} - set(own)
    return sum(word in words for word in own) / len(own) - sum(word in others for word in words)


def _covers_layers(preset: str, ruleset: Ruleset, searcher: Searcher) -> bool:
    names = [f"model.layers.{layer}.self_attn" for layer in range(presets.PRESETS[preset][1].n_layers)]
    covered = [False] * len(names)
    for rule in ruleset.rules:
        if rule.name is None or rule.class_path is not None:
            continue
        try:
            hits = searcher.search_all(compiled(rule.name), names)
        except RunawayPatternError:
            continue
        covered = [before or hit for before, hit in zip(covered, hits, strict=True)]
    return all(covered)
