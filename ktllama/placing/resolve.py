"""Resolve: for every module, the rule that wins.

This is ktransformers' ``gen_optimize_config`` (optimize/optimize.py, v0.3.2): for each module in tree order the
first rule that matches wins; ``match.class`` is an isinstance test and ``match.name`` an unanchored search, and
both must hold; a winner with ``recursive: false`` ends the walk below its module; a module that no rule matches
goes to the default device. What is below a cut follows the module that cut it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ktllama import devices
from ktllama.diagnostics import Diagnostic
from ktllama.model.modules import Module, ModuleTree
from ktllama.placing.searching import (
    ALL_TIME_LIMIT,
    TIME_LIMIT,
    Need,
    RunawayPatternError,
    Searcher,
    compiled,
    is_met,
    literal_prefix,
    may_run_away,
    need_of,
    without_numbers,
)
from ktllama.ruleset.rules import DEFAULT_CLASS, Rule, Ruleset
from ktllama.ruleset.wording import shown

DEFAULT_DEVICE = "cuda:0"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided for one module.

    ``rule`` is the winner, None where no rule matched. ``cut_by`` is the index of the module above whose rule said
    ``recursive: false``, or -1; such a module has that module's winner. ``prefill_device`` and ``out_device`` are
    None where the rule does not say.
    """

    rule: Rule | None
    generate_device: str
    prefill_device: str | None
    out_device: str | None
    cut_by: int = -1

    @property
    def is_operator(self) -> bool:
        """Whether a ktransformers operator replaces the module, rather than only its device being set."""
        return self.rule is not None and self.rule.replace_class != DEFAULT_CLASS


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """A rule set applied to a module tree.

    ``decisions`` has one entry a module of the tree. ``matches`` maps a rule's index to the indexes of all modules
    that it matches, whether it wins them or not. ``experts`` maps the index of a list of experts that stays in
    pieces to the devices of each piece: ``{0: {"gate_proj": {"cpu": 255, "cuda:0": 1}}}``.
    """

    ruleset: Ruleset
    tree: ModuleTree
    default_device: str
    decisions: tuple[Decision, ...]
    matches: dict[int, frozenset[int]]
    experts: dict[int, dict[str, Counter[str]]]
    diagnostics: tuple[Diagnostic, ...]


def resolve(ruleset: Ruleset, tree: ModuleTree, default_device: str = DEFAULT_DEVICE) -> Resolution:
    """Decide for every module of ``tree``. Patterns that run away are reported and match nothing."""
    matcher = _Matcher(ruleset, tree)
    matches = {rule.index: matcher.matching(rule) for rule in ruleset.rules}
    decisions = _decide(ruleset, tree, matches, default_device)
    split = [
        index
        for index, module in enumerate(tree.modules)
        if module.n_experts > 1 and not _taken_whole(decisions[index])
    ]
    matcher.expect(name for index in split for name in _expert_names(tree, index))
    experts = {index: _pieces(tree, index, decisions, matcher, default_device) for index in split}
    return Resolution(
        ruleset=ruleset,
        tree=tree,
        default_device=devices.canonical(default_device),
        decisions=decisions,
        matches=matches,
        experts=experts,
        diagnostics=tuple(matcher.diagnostics),
    )


def is_instance(module: Module, class_path: str) -> bool:
    """Whether ``module`` is an instance of the class that a rule names, by its path or by its bare name.

    ``torch.nn.Linear`` is the public name of ``torch.nn.modules.linear.Linear``.
    """
    paths = (module.class_path, *module.bases)
    if class_path in paths:
        return True
    package, _, name = class_path.rpartition(".")
    if package == "torch.nn":
        return any(path.startswith("torch.nn.modules.") and path.endswith(f".{name}") for path in paths)
    return not package and any(path.rpartition(".")[2] == name for path in paths)


class _ForExperts(NamedTuple):
    """A rule that may match experts, with what their names must begin with and hold."""

    rule: Rule
    prefix: str
    need: Need


class _Matcher:
    """Which modules a rule matches. Classes are looked at once a class, names once a name."""

    def __init__(self, ruleset: Ruleset, tree: ModuleTree) -> None:
        self.ruleset = ruleset
        self.tree = tree
        self.patterns = {rule.index: compiled(rule.name) for rule in ruleset.rules if rule.name is not None}
        self.diagnostics: list[Diagnostic] = []
        self.searcher = Searcher()
        self.same: dict[tuple[str | None, str | None], frozenset[int]] = {}
        self.sets: dict[frozenset[int], frozenset[int]] = {}
        self.expected: list[str] = []
        self.remembered: dict[str, dict[str, bool]] = {}
        self.expert_rules: dict[tuple[str, str], list[_ForExperts]] = {}

    def matching(self, rule: Rule) -> frozenset[int]:
        key = (rule.name, rule.class_path)
        if key not in self.same:
            candidates = self._of_class(rule, self.tree.modules)
            names = [self.tree.modules[index].name for index in candidates]
            hits = self.search(rule, names)
            found = frozenset(index for index, hit in zip(candidates, hits, strict=True) if hit)
            self.same[key] = self.sets.setdefault(found, found)  # thousands of rules may match much the same
        return self.same[key]

    def expect(self, names: Iterable[str]) -> None:
        """Say what will be searched, so that a pattern that needs a child process gets one for all of it."""
        self.expected = list(names)

    def rules_for(self, template: Module, stem: str, tail: str) -> list[_ForExperts]:
        """The rules that may match ``stem`` + number + ``tail``, whatever its numbers, for ``template``'s class."""
        key = (template.class_path, tail)
        if key not in self.expert_rules:
            name = re.sub("[0-9]+", "0", f"{stem}0{tail}")
            self.expert_rules[key] = [
                _ForExperts(rule, literal_prefix(rule.name or ""), need_of(rule.name or ""))
                for rule in self.ruleset.rules
                if (rule.class_path is None or is_instance(template, rule.class_path))
                and (rule.name is None or is_met(without_numbers(need_of(rule.name)), name))
            ]
        return self.expert_rules[key]

    def _of_class(self, rule: Rule, modules: Sequence[Module]) -> list[int]:
        if rule.class_path is None:
            return list(range(len(modules)))
        known: dict[str, bool] = {}
        for module in modules:
            if module.class_path not in known:
                known[module.class_path] = is_instance(module, rule.class_path)
        return [index for index, module in enumerate(modules) if known[module.class_path]]

    def search(self, rule: Rule, names: Sequence[str]) -> list[bool]:
        pattern = self.patterns.get(rule.index)
        if pattern is None:
            return [rule.name is None] * len(names)
        try:
            if may_run_away(pattern.pattern):
                return self._remembering(pattern, names)
            return self.searcher.search_all(pattern, names)
        except RunawayPatternError:
            self._give_up(rule)
            return [False] * len(names)

    def _remembering(self, pattern: re.Pattern[str], names: Sequence[str]) -> list[bool]:
        known = self.remembered.setdefault(pattern.pattern, {})
        if any(name not in known for name in names):
            need = need_of(pattern.pattern)
            asked = [*names, *(name for name in self.expected if is_met(need, name))]
            known |= dict.fromkeys(self.expected, False)
            known |= dict(zip(asked, self.searcher.search_all(pattern, asked), strict=True))
        return [known[name] for name in names]

    def _give_up(self, rule: Rule) -> None:
        if self.searcher.is_exhausted:
            self.patterns.clear()
            self.diagnostics.append(_out_of_time(rule))
        else:
            del self.patterns[rule.index]
            self.diagnostics.append(_runaway(rule))


def _runaway(rule: Rule) -> Diagnostic:
    return Diagnostic(
        code="regex-runaway",
        severity="error",
        message=f"this pattern was stopped after {TIME_LIMIT:g} s on the model's module names: it backtracks without "
        "end; write it without a repeat inside a repeat, such as (a+)+",
        position=rule.position("match.name"),
        excerpt=(shown(rule.name),) if rule.name else (),
    )


def _out_of_time(rule: Rule) -> Diagnostic:
    return Diagnostic(
        code="regex-runaway",
        severity="error",
        message=f"the patterns of this file were stopped at this one, after {ALL_TIME_LIMIT:g} s together on the "
        "model's module names; write fewer or simpler rules",
        position=rule.position("match.name"),
    )


def _decide(
    ruleset: Ruleset, tree: ModuleTree, matches: dict[int, frozenset[int]], default_device: str
) -> tuple[Decision, ...]:
    winner: list[Rule | None] = [None] * len(tree.modules)
    for rule in reversed(ruleset.rules):
        for index in matches[rule.index]:
            winner[index] = rule
    unmatched = decision_for(None, default_device)
    made = {rule.index: decision_for(rule, default_device) for rule in ruleset.rules}
    decisions: list[Decision] = []
    for index, module in enumerate(tree.modules):
        above = decisions[module.parent] if module.parent >= 0 else unmatched
        cut_by = module.parent if above.cut_by < 0 and above.rule and not above.rule.recursive else above.cut_by
        if cut_by >= 0:
            taken = decisions[cut_by]
            decisions.append(
                Decision(taken.rule, taken.generate_device, taken.prefill_device, taken.out_device, cut_by)
            )
        else:
            won_by = winner[index]
            decisions.append(made[won_by.index] if won_by else unmatched)
    return tuple(decisions)


def decision_for(rule: Rule | None, default_device: str) -> Decision:
    """What ``rule`` decides; a rule that names no ``generate_device`` leaves the default one."""
    if rule is None:
        return Decision(None, devices.canonical(default_device), devices.canonical(default_device), None)
    generate = rule.generate_device or _own_default(rule) or devices.canonical(default_device)
    return Decision(rule, generate, rule.prefill_device, rule.out_device)


def _own_default(rule: Rule) -> str | None:
    """The device of an operator whose constructor has one of its own: experts are on the CPU unless told otherwise.

    Source: ktransformers v0.3.2 operators/experts.py, ``KTransformersExperts.__init__``.
    """
    return devices.CPU if _replaces_experts(rule) else None


def own_prefill_default(rule: Rule) -> str | None:
    """The prefill device of an operator that says none: experts are streamed to the GPU (same source)."""
    return DEFAULT_DEVICE if _replaces_experts(rule) else None


def _replaces_experts(rule: Rule) -> bool:
    return "Experts" in rule.replace_class.rpartition(".")[2]


def _taken_whole(decision: Decision) -> bool:
    """Whether a list of experts has one device because an operator replaces it or its subtree is cut."""
    return decision.is_operator or decision.cut_by >= 0 or (decision.rule is not None and not decision.rule.recursive)


def _pieces(
    tree: ModuleTree, index: int, decisions: tuple[Decision, ...], matcher: _Matcher, default_device: str
) -> dict[str, Counter[str]]:
    """The devices of all experts' parts of one layer, by the part's name below the expert."""
    expert, parts = _expert(tree, index)
    prefix = tree.modules[expert].name
    stem = prefix.removesuffix("0")
    numbers = range(1, tree.modules[index].n_experts)
    wholes = _winners(matcher, tree.modules[expert], stem, "", numbers)
    found: dict[str, Counter[str]] = {}
    for part in parts:
        tail = tree.modules[part].name.removeprefix(prefix)
        rules = _winners(matcher, tree.modules[part], stem, tail, numbers)
        counted = Counter(
            decision_for(whole if whole and not whole.recursive else rule, default_device).generate_device
            for whole, rule in zip(wholes, rules, strict=True)
        )
        counted[decisions[part].generate_device] += 1
        found[tail[1:]] = counted
    return found


def _expert(tree: ModuleTree, index: int) -> tuple[int, list[int]]:
    """Expert 0 of the list of experts at ``index``, and the modules below it that have tensors."""
    expert = next(i for i in range(index + 1, len(tree.modules)) if tree.modules[i].parent == index)
    prefix = tree.modules[expert].name
    below = itertools.takewhile(
        lambda i: tree.modules[i].name.startswith(f"{prefix}."), range(expert + 1, len(tree.modules))
    )
    return expert, [i for i in below if tree.modules[i].tensors]


def _expert_names(tree: ModuleTree, index: int) -> Iterator[str]:
    """The names of the experts from 1 on, and of their parts, in the list at ``index``."""
    expert, parts = _expert(tree, index)
    prefix = tree.modules[expert].name
    tails = ["", *(tree.modules[part].name.removeprefix(prefix) for part in parts)]
    stem = prefix.removesuffix("0")
    return (f"{stem}{number}{tail}" for number in range(1, tree.modules[index].n_experts) for tail in tails)


def _winners(matcher: _Matcher, template: Module, stem: str, tail: str, numbers: range) -> list[Rule | None]:
    """The first matching rule of each ``stem`` + number + ``tail``, for modules of ``template``'s class."""
    names = [f"{stem}{number}{tail}" for number in numbers]
    text = "\n".join(names)
    winners: list[Rule | None] = [None] * len(names)
    left = list(range(len(names)))
    for rule, prefix, need in matcher.rules_for(template, stem, tail):
        if not (stem.startswith(prefix) or prefix.startswith(stem)) or not is_met(need, text):
            continue  # no name of this layer can match
        hits = matcher.search(rule, [names[i] for i in left])
        for i, hit in zip(left, hits, strict=True):
            if hit:
                winners[i] = rule
        left = [i for i, hit in zip(left, hits, strict=True) if not hit]
        if not left:
            break
    return winners
