"""llama.cpp places models of every architecture, at full size, exactly as a rule file says.

``bench/verify_presets.py`` does the same with every preset.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktllama.model import presets, sparse
from ktllama.model.presets import qwen
from ktllama.model.presets.gqa import GqaModel
from ktllama.ruleset import loader
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.verify import Mismatch, Tally, Verification, verify
from ktllama.translation import Translation, analyse

#: Experts on the CPU, the first ten layers on one GPU, the others on another.
RULES = loader.loads("""
- match: {name: 'experts$'}
  replace: {class: default, kwargs: {generate_device: cpu, prefill_device: cpu}}
  recursive: false
- match: {name: '^model\\.layers\\.[0-9]\\.'}
  replace: {class: default, kwargs: {generate_device: 'cuda:0', prefill_device: 'cuda:0'}}
- match: {name: ''}
  replace: {class: default, kwargs: {generate_device: 'cuda:1', prefill_device: 'cuda:1'}}
""")

CONTEXT = ContextOptions(n_ctx=8192, n_seq_max=2)


def verified(translation: Translation, folder: Path) -> Verification:
    path = folder / "model.gguf"
    sparse.write(translation.model, path, vocabulary_size=translation.model.integer("vocab_size"))
    return verify(translation.placement, translation.settings, path, CONTEXT)


#: One of each architecture, and Mixtral, which is a llama too.
ONE_OF_EACH = {architecture: name for name, (architecture, _) in presets.PRESETS.items()} | {"mixtral": "mixtral-8x7b"}


@pytest.mark.parametrize("preset", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_a_preset_is_placed_as_planned(preset: str, tmp_path: Path) -> None:
    translation = analyse(RULES, preset=preset)
    model = translation.model
    found = verified(translation, tmp_path)
    n_states = len(translation.placement.recurrent)
    assert found.mismatches == ()
    assert found.layers == Tally(checked=model.n_layers + 1, matched=model.n_layers + 1)
    assert found.kv == Tally(checked=model.n_layers + n_states, matched=model.n_layers + n_states)
    loaded = [tensor for tensor in translation.placement.tensors.values() if tensor.loaded]
    assert found.tensors == Tally(checked=len(loaded), matched=len(loaded))
    experts = sum("_exps." in tensor.name or "_shexp." in tensor.name for tensor in loaded)
    assert found.overrides.matched == found.overrides.checked
    assert (found.overrides.checked > 0) == (experts > 0)


def test_a_recurrent_layer_on_another_device_than_its_state_is_told(tmp_path: Path) -> None:
    translation = analyse(RULES, preset="qwen3-next-80b-a3b")
    recurrent = {**translation.placement.recurrent, 0: "cuda:1"}
    moved = replace(translation, placement=replace(translation.placement, recurrent=recurrent))
    assert verified(moved, tmp_path).mismatches == (
        Mismatch(what="recurrent state of layer 0", expected="CUDA1", found="CUDA0"),
    )


def test_states_and_caches_of_a_hybrid_model_are_counted_to_the_byte(tmp_path: Path) -> None:
    found = verified(analyse(RULES, preset="qwen3-next-80b-a3b"), tmp_path)
    # 8 of the first 10 layers keep a state for 2 sequences, 2 a cache of 8192 cells; of the others 28 and 10
    state, cache = 2 * 4 * (3 * 64 * 128 + 32 * 128 * 128), 8192 * 2 * 2 * 256 * 2
    assert found.kv_bytes == {"CUDA0": 8 * state + 2 * cache, "CUDA1": 28 * state + 10 * cache}


def test_a_model_of_an_unknown_architecture_is_placed_by_the_names_of_a_table(tmp_path: Path) -> None:
    sizes = GqaModel(
        title="OLMoE 1B 7B",
        n_vocab=50304,
        n_embd=2048,
        n_layers=16,
        n_heads=16,
        n_kv_heads=16,
        head_dim=128,
        ffn=1024,
        expert_ffn=1024,
        n_experts=64,
        n_experts_used=8,
        head_norms="all",
        context=4096,
        rope_base=10000.0,
    )
    translation = analyse(RULES, presets.build("olmoe", sizes))
    assert [(found.severity, found.code) for found in translation.diagnostics if found.code != "embedding-on-cpu"] == [
        ("note", "architecture-unknown")
    ]
    assert {name: tensor.device for name, tensor in translation.placement.tensors.items() if "blk.9." in name} == {
        **{f"blk.9.{stem}.weight": "cuda:0" for stem in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")},
        **{f"blk.9.{stem}.weight": "cuda:0" for stem in ("attn_q_norm", "attn_k_norm", "ffn_norm", "ffn_gate_inp")},
        **{f"blk.9.ffn_{part}_exps.weight": "cpu" for part in ("gate", "up", "down")},
    }
    assert verified(translation, tmp_path).mismatches == ()


def test_rules_by_class_match_nothing_where_classes_are_unknown() -> None:
    text = "- match: {class: torch.nn.Linear}\n  replace: {class: default, kwargs: {generate_device: cpu}}\n"
    sizes = replace(qwen.QWEN3["qwen3-8b"], title="Strange")
    translation = analyse(loader.loads(text), presets.build("granite", sizes))
    assert [found.message for found in translation.diagnostics if found.code == "rule-matches-nothing"] == [
        "rule 0 matches no module of Strange Q4_K_M: the classes of architecture 'granite' are not known; match by name"
    ]
