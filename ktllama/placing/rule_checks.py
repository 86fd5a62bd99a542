"""What can be said about the rules themselves once they were held against a model's modules."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property

from ktllama.diagnostics import Diagnostic, Position
from ktllama.layers import layer_ranges
from ktllama.model.modules import Module, class_paths, families, family_of
from ktllama.placing.resolve import Resolution, is_instance
from ktllama.placing.searching import RunawayPatternError, Searcher, compiled
from ktllama.ruleset.rules import Rule

#: Rules that a message names before it counts the others.
_NAMED_WINNERS = 4


def check_rules(resolution: Resolution) -> tuple[Diagnostic, ...]:
    """Rules that never win, that match nothing, that are for another model, and layers that no rule covers."""
    return tuple(_Checker(resolution).findings())


class _Checker:
    def __init__(self, resolution: Resolution) -> None:
        self.resolution = resolution
        self.tree = resolution.tree
        self.rules = resolution.ruleset.rules
        self.searcher = Searcher()
        self.winners: dict[frozenset[int], list[Rule]] = {}
        self.runaways = {found.position for found in resolution.diagnostics}

    def findings(self) -> Iterator[Diagnostic]:
        foreign = self._for_another_model()
        if foreign is not None:
            yield foreign
        else:
            yield from self._dead_rules()
        yield from self._uncovered_layers()

    @cached_property
    def kinds(self) -> tuple[Module, ...]:
        """One module of each class."""
        return tuple({module.class_path: module for module in self.tree.modules}.values())

    @cached_property
    def class_paths(self) -> frozenset[str]:
        """The classes of the model in any variant."""
        return class_paths(self.tree.model)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all modules."""
        return tuple(module.name for module in self.tree.modules)

    @cached_property
    def reachable(self) -> frozenset[int]:
        """Modules that a rule can win: those below no cut."""
        return frozenset(index for index, found in enumerate(self.resolution.decisions) if found.cut_by < 0)

    @cached_property
    def won(self) -> dict[int, set[int]]:
        """By rule index, the modules that it wins itself."""
        won: dict[int, set[int]] = {rule.index: set() for rule in self.rules}
        for index in self.reachable:
            rule = self.resolution.decisions[index].rule
            if rule is not None:
                won[rule.index].add(index)
        return won

    def _for_another_model(self) -> Diagnostic | None:
        """One error in place of a crowd of warnings when every model class that the file names is foreign."""
        named = [(rule, family_of(rule.class_path)) for rule in self.rules if rule.class_path]
        named = [(rule, name) for rule, name in named if name is not None]
        own = self.class_paths
        families_here = families(self.tree.model)
        if self.tree.generic or not named:
            return None
        if any(rule.class_path in own or name in families_here for rule, name in named):
            return None
        theirs = sorted({name for _, name in named if name})
        position = named[0][0].position("match.class")
        return Diagnostic(
            code="rules-for-another-model",
            severity="error",
            message=f"these rules are for {' and '.join(theirs)}, the model is {self._model_title()}: none of the "
            f"{len({rule.class_path for rule, _ in named})} model classes that they name is in it; "
            "use rules written for this model, or give the right --model",
            position=position,
        )

    def _model_title(self) -> str:
        return f"{self.tree.model.name} ({' or '.join(sorted(families(self.tree.model)))})"

    def _dead_rules(self) -> Iterator[Diagnostic]:
        for rule in self.rules:
            if rule.position("match.name") in self.runaways:
                continue
            if self.won[rule.index]:
                yield from self._without_tensors(rule)
                continue
            matched = self.resolution.matches[rule.index]
            if not matched:
                yield self._matches_nothing(rule)
            elif not matched.isdisjoint(self.reachable):
                yield self._shadowed(rule, matched & self.reachable)
            else:
                yield self._below_cut(rule, matched)

    def _without_tensors(self, rule: Rule) -> Iterator[Diagnostic]:
        """A rule that wins only modules which a GGUF holds nothing of: rotary embeddings, MoE wrappers."""
        won = self.won[rule.index]
        kv_owners = set(self.tree.attention.values())
        if rule.transfer_map or won & kv_owners or any(self._has_tensors(index) for index in won):
            return
        classes = sorted({self.tree.modules[index].class_path.rpartition(".")[2] for index in won})
        yield Diagnostic(
            code="rule-without-tensors",
            severity="note",
            message=f"rule {rule.index} places nothing: {_count(len(won), 'module')} of class {', '.join(classes[:3])} "
            "hold no weights in a GGUF; llama.cpp computes them where their layer is",
            position=rule.position(),
        )

    def _has_tensors(self, index: int) -> bool:
        """Whether a module owns tensors, itself or as the root of a subtree that follows it."""
        if self.tree.modules[index].tensors or self.tree.modules[index].n_experts:
            return True
        rule = self.resolution.decisions[index].rule
        return rule is not None and not rule.recursive

    def _shadowed(self, rule: Rule, matched: frozenset[int]) -> Diagnostic:
        winners = self._winners(matched)
        named = [f"rule {winner.index}{_line(winner.position())}" for winner in winners[:_NAMED_WINNERS]]
        more = len(winners) - len(named)
        by = " and ".join([*named, *([_count(more, "further rule")] if more else [])])
        modules = _count(len(matched), "module")
        return Diagnostic(
            code="rule-shadowed",
            severity="warning",
            message=f"rule {rule.index} never takes effect: the first matching rule wins, and {by} before it already "
            f"{'takes' if len(winners) == 1 else 'take'} the {modules} it matches; move it above",
            position=rule.position(),
        )

    def _winners(self, modules: frozenset[int]) -> list[Rule]:
        """The rules that won ``modules``, in the file's order."""
        if modules not in self.winners:
            taken = [self.resolution.decisions[index].rule for index in modules]
            by_index = {rule.index: rule for rule in taken if rule is not None}
            self.winners[modules] = [by_index[index] for index in sorted(by_index)]
        return self.winners[modules]

    def _below_cut(self, rule: Rule, matched: frozenset[int]) -> Diagnostic:
        first = self._winners(matched)[0]
        return Diagnostic(
            code="rule-below-cut",
            severity="warning",
            message=f"rule {rule.index} never takes effect: the {_count(len(matched), 'module')} it matches are below "
            f"one that rule {first.index} took with 'recursive: false'{_line(first.position('recursive'))}",
            position=rule.position(),
        )

    def _matches_nothing(self, rule: Rule) -> Diagnostic:
        return Diagnostic(
            code="rule-matches-nothing",
            severity="warning",
            message=f"rule {rule.index} matches no module of {self.tree.model.name}: {self._why_nothing(rule)}",
            position=rule.position("match.name" if rule.name is not None else "match.class"),
        )

    def _why_nothing(self, rule: Rule) -> str:
        if rule.class_path is not None and not any(is_instance(kind, rule.class_path) for kind in self.kinds):
            return self._why_no_class(rule.class_path)
        if rule.name is None:
            return "nothing to match"
        by_name = self.resolution.matches[rule.index] if rule.class_path is None else self._of_name(rule)
        if rule.class_path is not None and by_name:
            example = self.tree.modules[min(by_name)]
            return (
                f"its name matches {_count(len(by_name), 'module')} such as {example.name}, but that is a "
                f"{example.class_path.rpartition('.')[2]}, not a {rule.class_path.rpartition('.')[2]}"
            )
        if rule.name.endswith(r"\.$") or (
            r")$" in rule.name and "layers" in rule.name and "self_attn" not in rule.name
        ):
            return "its pattern ends ($) right after the layer number, where a module's name goes on; end it with \\."
        return "no module's name is like its pattern"

    def _of_name(self, rule: Rule) -> set[int]:
        try:
            hits = self.searcher.search_all(compiled(rule.name or ""), self.names)
        except RunawayPatternError:
            return set()
        return {index for index, hit in enumerate(hits) if hit}

    def _why_no_class(self, class_path: str) -> str:
        name = class_path.rpartition(".")[2]
        named = family_of(class_path)
        if self.tree.generic:
            return f"the classes of architecture '{self.tree.model.architecture}' are not known; match by name"
        own = self.class_paths
        if class_path in own:
            return f"it has no module of class {name} in the variant that the other rules name ({self.tree.variant})"
        short = {path.rpartition(".")[2]: path for path in own}
        if named and named not in families(self.tree.model):
            return f"{name} is a class of {named}"
        close = difflib.get_close_matches(name, short, n=1, cutoff=0.75)
        if name in short:
            return f"class {class_path} is not in it; did you mean {short[name]}?"
        if close:
            return f"no class is called {name}; did you mean {close[0]}?"
        return f"it has no module of class {class_path}"

    def _uncovered_layers(self) -> Iterator[Diagnostic]:
        """Blocks that have modules which rules match in other blocks, and none of whose own any rule matches."""
        matched = set().union(*set(self.resolution.matches.values()))
        matched |= {index for index, found in enumerate(self.resolution.decisions) if found.cut_by >= 0}
        present = self._parts_of_layers(range(len(self.tree.modules)))
        covered = self._parts_of_layers(matched)
        meant = set().union(*covered.values())
        bare = [layer for layer, parts in present.items() if layer not in covered and parts & meant]
        if not bare:
            return
        yield Diagnostic(
            code="layer-not-covered",
            severity="warning",
            message=f"no rule matches anything in layer {layer_ranges(bare)}, while layer {layer_ranges(covered)} "
            f"{'is' if len(covered) == 1 else 'are'} covered; what no rule matches goes to the default device "
            f"{self.resolution.default_device}",
        )

    def _parts_of_layers(self, indexes: Iterable[int]) -> dict[int, set[str]]:
        """By layer, the names below it of the modules in ``indexes``; MTP blocks are left out."""
        parts: dict[int, set[str]] = defaultdict(set)
        for index in indexes:
            _, found, tail = self.tree.modules[index].name.partition("model.layers.")
            number, _, part = tail.partition(".")
            if found and part and number.isdigit() and int(number) < self.tree.n_trunk_layers:
                parts[int(number)].add(part)
        return parts


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _line(position: Position | None) -> str:
    return f" (line {position.line})" if position else ""
