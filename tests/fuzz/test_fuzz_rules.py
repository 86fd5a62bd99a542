"""Rule files of any shape: nothing but ktllama's own errors, ktransformers' decisions, and settings that keep them."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.errors import KtllamaError
from ktllama.lower.settings import Target
from ktllama.model.model_file import ModelFile
from ktllama.model.modules import Module, ModuleTree
from ktllama.ruleset import loader
from ktllama.translation import Options, Translation, analyse
from tests.lower.test_lowering import NAMES, base_by_llama_cpp, check_exact
from tests.models import deepseek

MODELS = (deepseek(), deepseek(3, n_mtp=1, fused=True), deepseek(3, tied=True, legacy_kv_b=True, extra=["odd,=[]{}.x"]))

DEVICES = st.sampled_from(["cpu", "cuda", "cuda:0", "cuda:1", "cuda:2"])
PATTERNS = st.sampled_from(
    [
        "",
        "^lm_head",
        r"^model\.layers\.[0-9]+\.",
        r"^model\.layers\.(0|2)\.",
        r"layers\.([12])\.(?!self_attn\.kv_b_proj).*$",
        r"\.mlp$",
        r"mlp\.experts$",
        r"experts\.[0-9]+\.",
        r"experts\.[13]$",
        r"experts\.2\.up_proj",
        r"(?i)SELF_ATTN$",
        "norm",
        "embed_tokens",
        "^model$",
        "layers$",
        "gate|up",
        "[[a-m]",
        "nothing",
    ]
)
CLASSES = st.sampled_from(
    [
        "torch.nn.Linear",
        "torch.nn.ModuleList",
        "Linear",
        "DeepseekV3MoE",
        "ktransformers.models.modeling_deepseek_v3.DeepseekV3MLP",
        "ktransformers.models.modeling_deepseek_v3.DeepseekV3DecoderLayer",
        "no.such.Class",
    ]
)
REPLACEMENTS = st.sampled_from(
    [
        "default",
        "ktransformers.operators.linear.KTransformersLinear",
        "ktransformers.operators.experts.KTransformersExperts",
    ]
)


@st.composite
def rules(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rules without a mistake; every one names its device."""
    made = []
    for _ in range(draw(st.integers(0, 7))):
        name, path = st.fixed_dictionaries({"name": PATTERNS}), st.fixed_dictionaries({"class": CLASSES})
        match = draw(name | path | st.builds(lambda one, other: one | other, name, path))
        kwargs: dict[str, object] = {"generate_device": draw(DEVICES)}
        if draw(st.booleans()):
            kwargs["prefill_device"] = draw(DEVICES)
        if draw(st.integers(0, 5)) == 0:
            kwargs["transfer_map"] = draw(st.dictionaries(st.integers(0, 5), DEVICES, max_size=2))
        rule: dict[str, Any] = {"match": match, "replace": {"class": draw(REPLACEMENTS), "kwargs": kwargs}}
        if draw(st.integers(0, 4)) == 0:
            rule["recursive"] = False
        made.append(rule)
    return made


def generate_devices(tree: ModuleTree, said: list[dict[str, Any]]) -> list[str]:
    """``gen_optimize_config`` of ktransformers v0.3.2 (optimize/optimize.py), as it goes: walk, first match wins."""
    found = [""] * len(tree.modules)

    def is_a(module: Module, path: str) -> bool:
        public = {
            re.sub(r"^torch\.nn\.modules\.\w+", "torch.nn", known) for known in (module.class_path, *module.bases)
        }
        names = {known.rpartition(".")[2] for known in public} if "." not in path else set()
        return path in public | names | {module.class_path, *module.bases}

    def visit(index: int) -> None:
        module, recursive, device = tree.modules[index], True, "cuda:0"
        for rule in said:
            match = rule["match"]
            if "class" in match and not is_a(module, match["class"]):
                continue
            if "name" in match and re.search(match["name"], module.name) is None:
                continue
            device, recursive = rule["replace"]["kwargs"]["generate_device"], rule.get("recursive", True)
            break
        found[index] = {"cuda": "cuda:0"}.get(device, device)
        for child in (number for number, one in enumerate(tree.modules) if one.parent == index):
            if recursive:
                visit(child)

    visit(0)
    return found


def check_server(done: Translation) -> None:
    """On llama-server's command line the weights are where they were planned, whatever becomes of a KV cache."""
    said = done.settings
    base = base_by_llama_cpp(said, done.model.n_layers)
    assert "CPU" not in said.devices
    warned = any(found.code == "kv-not-expressible" for found in done.diagnostics)
    assert warned == ({layer: NAMES[base[layer]] for layer in done.placement.kv} != dict(done.placement.kv))
    for override in said.tensor_overrides:
        assert not {",", "="} & set(override.pattern)


@given(said=rules(), model=st.sampled_from(MODELS))
@settings(max_examples=150, deadline=None)
def test_decisions_are_the_first_match_and_settings_keep_them(said: list[dict[str, Any]], model: ModelFile) -> None:
    ruleset = loader.loads(json.dumps(said))
    assert len(ruleset.rules) == len(said)
    done = analyse(ruleset, model)
    assert set(done.placement.tensors) == {tensor.name for tensor in model.tensors}
    reference = generate_devices(done.resolution.tree, said)
    for index, decision in enumerate(done.resolution.decisions):
        if decision.cut_by < 0:
            assert decision.generate_device == reference[index], done.resolution.tree.modules[index].name
        else:
            assert reference[index] == ""
            assert decision.generate_device == reference[decision.cut_by]
    if not done.has_errors:
        check_exact(done.placement, done.lowering)
        check_server(analyse(ruleset, model, options=Options(target="llama-server")))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**6),
    st.floats(),
    st.sampled_from(
        ["cpu", "cuda:0", "cuda:99999", "auto", "default", "", "(", "(a|a)", "\x1b[31m", "\u202e", "[bold]"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=8),
)
KEYS = st.sampled_from(
    [
        "match",
        "name",
        "class",
        "replace",
        "kwargs",
        "recursive",
        "generate_device",
        "prefill_device",
        "out_device",
        "transfer_map",
        "generate_op",
    ]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | SCALARS, inner, max_size=4),
    max_leaves=12,
)
NEARLY = st.lists(
    st.fixed_dictionaries(
        {
            "match": st.one_of(ANYTHING, st.fixed_dictionaries({"name": PATTERNS | SCALARS})),
            "replace": st.one_of(
                ANYTHING,
                st.fixed_dictionaries(
                    {"class": REPLACEMENTS, "kwargs": st.dictionaries(KEYS, DEVICES | ANYTHING, max_size=3)}
                ),
            ),
        },
        optional={"recursive": ANYTHING},
    ),
    max_size=4,
)


@given(tree=ANYTHING | NEARLY, target=st.sampled_from(["python", "llama-server"]))
@settings(max_examples=250, deadline=None)
def test_whatever_a_file_says_only_ktllamas_errors_come_out(tree: object, target: Target) -> None:
    with contextlib.suppress(KtllamaError):
        done = analyse(loader.loads(json.dumps(tree)), MODELS[0], options=Options(target=target))
        assert all("".join([found.message, *found.excerpt]).isprintable() for found in done.diagnostics)
        assert set(done.placement.tensors) == {tensor.name for tensor in MODELS[0].tensors}
