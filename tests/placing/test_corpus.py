"""Our result against the one that ktransformers' own code produced, module by module."""

from __future__ import annotations

import json
import re

import pytest

from ktllama import devices
from ktllama.model.architecture import MODULE
from ktllama.model.modules import Module, ModuleTree, build
from ktllama.model.presets import load
from ktllama.placing.resolve import resolve
from ktllama.ruleset import loader
from ktllama.translation import analyse
from tests import corpus

pytestmark = corpus.needs_corpus

PAIRS = corpus.golden_pairs() if corpus.CORPUS.is_dir() else []


@pytest.mark.parametrize(("rules", "tree"), PAIRS)
def test_every_module_has_the_winner_and_device_that_ktransformers_gives_it(rules: str, tree: str) -> None:
    translation = analyse(corpus.rule_file(rules), preset=corpus.PRESET_OF_TREE[tree])
    modules = translation.resolution.tree.modules
    ours = dict(zip((module.name for module in modules), translation.resolution.decisions, strict=True))
    golden = corpus.read("golden", f"{rules}__{tree}")
    winners = corpus.read("winners", f"{rules}__{tree}")
    checked = 0
    for module in corpus.read("tree", tree):
        name = module["name"]
        if not module["params"]:
            continue
        checked += 1
        if name not in golden:
            assert ours[name].cut_by >= 0
            continue
        kwargs = golden[name]["kwargs"]
        winner = ours[name].rule
        assert (winner.index if winner else None) == winners[name]
        assert ours[name].generate_device == devices.canonical(kwargs.get("generate_device", "cuda:0"))
    assert checked > 200
    assert not translation.has_errors


@pytest.mark.parametrize(("rules", "tree"), PAIRS)
def test_every_tensor_is_where_the_module_that_owns_it_is(rules: str, tree: str) -> None:
    translation = analyse(corpus.rule_file(rules), preset=corpus.PRESET_OF_TREE[tree])
    golden = corpus.read("golden", f"{rules}__{tree}")
    for name, tensor in translation.placement.tensors.items():
        module = tensor.module
        assert module is not None
        if not tensor.loaded:
            continue  # an MTP block, which the Hugging Face model does not build
        if module.endswith(".experts") and golden[module]["class"] == "default":
            module = f"{module}.0.down_proj"
        while module not in golden:
            module = module.rpartition(".")[0]
        expected = devices.canonical((golden[module]["kwargs"] or {}).get("generate_device", "cuda:0"))
        assert tensor.device == expected, name
    for layer, device in translation.placement.kv.items():
        assert device == devices.canonical(golden[f"model.layers.{layer}.self_attn"]["kwargs"]["generate_device"])


@pytest.mark.parametrize("tree", sorted(corpus.PRESET_OF_TREE))
def test_module_tree_is_that_of_the_hugging_face_model(tree: str) -> None:
    theirs = corpus.read("tree", tree)
    built = build(load(corpus.PRESET_OF_TREE[tree]), {module["class"] for module in theirs})
    ours = [module for module in built.modules if not module.synthetic]
    assert [(m.name, m.class_path) for m in ours] == [(m["name"], m["class"]) for m in theirs]
    assert [m.n_experts for m in ours] == [m.get("n_experts", 0) for m in theirs]
    assert [bool(m.tensors) for m in ours] == [bool(m["params"]) for m in theirs]
    assert all(set(a.bases) <= set(b["mro"]) for a, b in zip(ours, theirs, strict=True))


def _toy() -> tuple[ModuleTree, list[dict[str, object]]]:
    toy = json.loads((corpus.CORPUS / "toy.json").read_text())
    modules: list[Module] = []
    index = {"": -1}
    for module in toy["tree"]:
        name = module["name"]
        parent = -1 if not name else index[name.rpartition(".")[0]]
        index[name] = len(modules)
        tensors = tuple(f"{name}.{param}" for param in module["params"])
        modules.append(Module(name, module["class"], (*module["mro"], MODULE), tensors, parent))
    tree = ModuleTree(
        model=load("deepseek-v2-lite"),
        variant="toy",
        modules=tuple(modules),
        owners={},
        unowned=(),
        layers={},
        attention={},
        n_trunk_layers=0,
    )
    return tree, toy["cases"]


TOY_CASES = [case["what"] for case in json.loads((corpus.CORPUS / "toy.json").read_text())["cases"]] if PAIRS else []


@pytest.mark.parametrize("what", TOY_CASES)
def test_toy_case(what: str) -> None:
    tree, cases = _toy()
    case = next(case for case in cases if case["what"] == what)
    ruleset = loader.loads(str(case["yaml"]))
    resolution = resolve(ruleset, tree, str(case.get("default_device", "cuda:0")))
    errors = [found for found in ruleset.diagnostics if found.severity == "error"]
    if "error" in case:
        unmatched = [rule for rule in ruleset.rules if not resolution.matches[rule.index]]
        assert errors or unmatched, "ktransformers raises here; ktllama must say something"
        return
    golden = case["golden"]
    assert isinstance(golden, dict)
    assert not errors
    for module, decision in zip(tree.modules, resolution.decisions, strict=True):
        if module.name in golden:
            assert _device(golden[module.name], str(case.get("default_device", "cuda:0"))) == decision.generate_device
            assert decision.cut_by < 0
        else:
            assert decision.cut_by >= 0


def _device(entry: dict[str, dict[str, str] | None], default: str) -> str:
    return (entry["kwargs"] or {}).get("generate_device", default)


def test_the_seed_says_that_its_general_rules_shadow_its_special_ones() -> None:
    found = analyse(corpus.rule_file("seed.yaml"), preset="deepseek-r1").diagnostics
    warnings = [
        (one.code, one.message, one.position.line if one.position else None) for one in found if one.severity != "note"
    ]
    shadowed = "rule {} never takes effect: the first matching rule wins, and rule {} before it already takes the {} modules it matches; move it above"
    assert warnings == [
        ("rule-shadowed", shadowed.format(3, "0 (line 1)", 30), 22),
        ("rule-shadowed", shadowed.format(4, "1 (line 8)", 31), 30),
        ("rule-shadowed", shadowed.format(5, "0 (line 1)", 27), 37),
    ]


@pytest.mark.parametrize("rules", ["seed.yaml", "seed_reordered.yaml"])
def test_the_seed_with_bare_class_names_is_the_same(rules: str) -> None:
    text = corpus.rule_file(rules).read_text()
    bare = re.sub(r"class: ktransformers\.[\w.]+\.(\w+)", r"class: \1", text)
    assert "class: DeepseekV3RotaryEmbedding" in bare
    assert "class: KDeepseekV2Attention" in bare
    as_written, shortened = (analyse(loader.loads(one, rules)) for one in (text, bare))
    assert shortened.settings == as_written.settings
    assert shortened.placement.tensors == as_written.placement.tensors
    assert not shortened.has_errors
