"""What is said about rules and plans, word for word."""

from __future__ import annotations

import pytest

from ktllama.model.model_file import ModelFile
from ktllama.ruleset import loader
from ktllama.translation import Options, analyse
from tests.models import deepseek, model, rule

V2_MOE = "ktransformers.models.modeling_deepseek.DeepseekV2MoE"
V3_GATE = "ktransformers.models.modeling_deepseek_v3.MoEGate"
EXPERTS = "ktransformers.operators.experts.KTransformersExperts"
EVERYTHING = rule("", "cuda:0")


def found(
    *rules: str, model: ModelFile | None = None, options: Options | None = None, notes: bool = False
) -> list[tuple[str, str, str, int | None]]:
    """(code, severity, message, line) of the findings; notes only where they are asked for."""
    translation = analyse(loader.loads("".join(rules), "r.yaml"), model or deepseek(), options=options)
    return [
        (one.code, one.severity, one.message, one.position.line if one.position else None)
        for one in translation.diagnostics
        if notes or one.severity != "note"
    ]


def test_a_plan_without_faults_is_silent() -> None:
    assert found(rule("embed_tokens", "cpu"), EVERYTHING, notes=True) == []


def test_a_shadowed_rule_names_the_rules_that_take_its_modules() -> None:
    assert found(rule("embed", "cpu"), rule("layers", "cuda:0"), rule(r"layers\.1\.self_attn$", "cpu"), EVERYTHING) == [
        (
            "rule-shadowed",
            "warning",
            "rule 2 never takes effect: the first matching rule wins, and rule 1 (line 3) before it already takes the "
            "1 module it matches; move it above",
            5,
        )
    ]


def test_a_rule_shadowed_by_two_names_both() -> None:
    rules = (
        rule(r"layers\.[01]\.", "cuda:0"),
        rule(r"layers\.[23]\.", "cuda:0"),
        rule("self_attn$", "cpu"),
        EVERYTHING,
    )
    assert found(rule("embed", "cpu"), *rules)[0][2] == (
        "rule 3 never takes effect: the first matching rule wins, and rule 1 (line 3) and rule 2 (line 5) before it "
        "already take the 4 modules it matches; move it above"
    )


def test_a_rule_below_a_cut_names_the_cut() -> None:
    rules = (rule(r"layers\.1\.mlp$", "cuda:0", recursive=False), rule(r"layers\.1\.mlp\.gate", "cpu"), EVERYTHING)
    assert found(rule("embed", "cpu"), *rules) == [
        (
            "rule-below-cut",
            "warning",
            "rule 2 never takes effect: the 1 module it matches are below one that rule 1 took with "
            "'recursive: false' (line 5)",
            6,
        )
    ]


@pytest.mark.parametrize(
    ("dead", "why"),
    [
        (rule("no_such_module", "cpu"), "no module's name is like its pattern"),
        (
            rule(r"^model\.layers\.([0-9])$", cls="torch.nn.Linear"),
            "its name matches 4 modules such as model.layers.0, but that is a DeepseekV3DecoderLayer, not a Linear",
        ),
        (rule(cls=V2_MOE), "DeepseekV2MoE is a class of DeepSeek-V2"),
        (
            rule(cls="ktransformers.models.modeling_deepseek_v3.DeepseekV3MLPs"),
            "no class is called DeepseekV3MLPs; did you mean DeepseekV3MLP?",
        ),
        (
            rule(cls="ktransformers.wrong.MoEGate"),
            f"class ktransformers.wrong.MoEGate is not in it; did you mean {V3_GATE}?",
        ),
        (
            rule(cls="transformers.models.deepseek_v3.modeling_deepseek_v3.DeepseekV3TopkRouter"),
            "it has no module of class DeepseekV3TopkRouter in the variant that the other rules name (ktransformers)",
        ),
        (
            rule(r"^model\.layers\.([0-9])$", cls="ktransformers.models.modeling_deepseek_v3.DeepseekV3MLP"),
            "its name matches 4 modules such as model.layers.0, but that is a DeepseekV3DecoderLayer, "
            "not a DeepseekV3MLP",
        ),
    ],
)
def test_a_rule_that_matches_nothing_says_why(dead: str, why: str) -> None:
    own = rule(cls=V3_GATE, device="cuda:0") + rule(cls="ktransformers.models.modeling_deepseek_v3.DeepseekV3MoE")
    messages = [
        one[2] for one in found(own, dead, rule("embed", "cpu"), EVERYTHING) if one[0] == "rule-matches-nothing"
    ]
    assert messages == [f"rule 2 matches no module of tiny: {why}"]


def test_rules_for_another_model_are_one_error() -> None:
    rules = (rule(cls=V2_MOE), rule(cls="ktransformers.models.modeling_deepseek.MoEGate"), rule("embed", "cpu"))
    assert found(*rules, EVERYTHING) == [
        (
            "rules-for-another-model",
            "error",
            "these rules are for DeepSeek-V2, the model is tiny (DeepSeek-V3): none of the 2 model classes that they "
            "name is in it; use rules written for this model, or give the right --model",
            1,
        )
    ]


def test_layers_that_no_rule_covers() -> None:
    rules = (rule("embed|norm|lm_head", "cuda:0"), rule(r"^model\.layers\.[01]\.", "cuda:0"))
    assert ("layer-not-covered", "warning") in [one[:2] for one in found(rule("embed", "cpu"), *rules[1:])]
    messages = [one[2] for one in found(rule("embed", "cpu"), rules[1]) if one[0] == "layer-not-covered"]
    assert messages == [
        "no rule matches anything in layer 2-3, while layer 0-1 are covered; what no rule matches goes to the default "
        "device cuda:0"
    ]


def test_experts_that_no_rule_names_are_a_warning() -> None:
    messages = found(rule("embed", "cpu"), rule("self_attn|norm|lm_head", "cuda:0"))
    assert messages == [
        (
            "default-device",
            "warning",
            "no rule matches the routed experts of layer 1-3 (9 tensors, 9 MiB); they go to the default device cuda:0",
            None,
        )
    ]


def test_a_default_device_of_another_kind_than_all_rules_is_a_warning() -> None:
    rules = (rule("embed", "cpu"), rule("self_attn|mlp|lm_head", "xpu"))
    messages = [one[2] for one in found(*rules) if one[0] == "default-device"]
    assert messages == [
        "no rule matches attn_norm, ffn_norm, output_norm of layer 0-3 (9 tensors, 9 MiB); they go to the default "
        "device cuda:0, though the rules name only xpu devices: --default-device xpu:0 keeps them together"
    ]


def test_the_embedding_stays_on_the_cpu() -> None:
    assert found(EVERYTHING, notes=True) == [
        (
            "embedding-on-cpu",
            "note",
            "embed_tokens stays on the CPU, where llama.cpp and ktransformers both keep it, not on cuda:0",
            2,
        )
    ]


def test_a_transfer_map_that_the_layers_do_not_follow() -> None:
    mapped = (
        "- match: {name: '^model$'}\n"
        "  replace: {class: default, kwargs: {generate_device: 'cuda:0', transfer_map: {1: 'cuda:1'}}}\n"
    )
    rules = (rule(r"layers\.[3]\.", "cuda:1"), mapped, rule("embed", "cpu"), EVERYTHING)
    assert [one for one in found(*rules) if one[0] == "transfer-map"] == [
        (
            "transfer-map",
            "warning",
            "transfer_map moves the activations of layer 1-2 to cuda:1, but the rules put their attention on cuda:0; "
            "llama.cpp copies activations by itself and follows the weights",
            4,
        )
    ]


def test_a_transfer_map_beyond_the_last_layer() -> None:
    mapped = (
        "- match: {name: '^model$'}\n"
        "  replace: {class: default, kwargs: {generate_device: 'cuda:0', transfer_map: {90: 'cuda:1'}}}\n"
    )
    assert [one[1:3] for one in found(mapped, rule("embed", "cpu"), EVERYTHING)] == [
        ("warning", "transfer_map names layer 90, but the model has layers 0-3")
    ]


def test_a_prefill_device_that_differs_from_the_gpu_of_the_weights() -> None:
    away = rule("lm_head", "cuda:0").replace('prefill_device: "cuda:0"', 'prefill_device: "cuda:1"')
    assert found(away, rule("embed", "cpu"), EVERYTHING, notes=True) == [
        (
            "prefill-elsewhere",
            "note",
            "prefill_device cuda:1 has no effect: llama.cpp uses weights that are on cuda:0 there during prefill too",
            2,
        )
    ]


def test_rules_for_experts_alone_do_not_miss_the_dense_layers() -> None:
    codes = [one[0] for one in found(rule(r"mlp\.experts$", "cpu", recursive=False), rule("embed", "cpu"))]
    assert codes == []


def test_an_out_device_away_from_the_layer() -> None:
    rules = (rule(r"experts$", "cpu", replace=EXPERTS, out_device="cuda:1"), rule("embed", "cpu"), EVERYTHING)
    assert [one for one in found(*rules) if one[0] == "out-device"] == [
        (
            "out-device",
            "warning",
            "out_device sends the experts' result of layer 1-3 to cuda:1, but their attention is on cuda:0; "
            "llama.cpp follows the weights",
            2,
        )
    ]


def test_lm_head_away_from_the_final_norm() -> None:
    assert found(rule("embed|^model.norm", "cpu"), EVERYTHING) == [
        (
            "head-away-from-norm",
            "warning",
            "lm_head is on cuda:0 and the final norm on cpu: every token's last hidden state crosses between them; "
            "put both in one place",
            1,
        )
    ]


def test_parts_of_a_layer_away_from_its_attention() -> None:
    rules = (
        rule("embed|layers.1.*input_layernorm", "cpu"),
        rule(r"layers\.2.*o_proj", "cpu"),
        rule(r"layers\.3.*(mlp\.gate$|shared_experts)", "cpu"),
        EVERYTHING,
    )
    assert found(*rules) == [
        (
            "norms-away",
            "warning",
            "the norms of layer 1 are on cpu, but self_attn, and with it the KV cache, on cuda:0: every token crosses "
            "between them",
            None,
        ),
        (
            "attention-away",
            "warning",
            "attention weights of layer 2 are on cpu, but self_attn, and with it the KV cache, on cuda:0: every token "
            "crosses between them",
            None,
        ),
        (
            "gate-on-cpu",
            "warning",
            "the router of layer 3 is on the CPU beside attention on cuda:0: every token needs it; put it on cuda:0",
            None,
        ),
        (
            "shared-experts-on-cpu",
            "warning",
            "the shared experts of layer 3 are on the CPU beside attention on cuda:0: every token needs them; put them "
            "on cuda:0",
            None,
        ),
    ]


def test_gate_and_up_of_an_expert_block_on_two_devices() -> None:
    rules = (rule("embed", "cpu"), rule(r"layers\.1\.mlp\.experts\..*up_proj", "cpu"), EVERYTHING)
    assert found(*rules) == [
        (
            "experts-apart",
            "warning",
            "the routed experts of layer 1 are on several devices (ffn_down_exps on cuda:0, ffn_gate_exps on cuda:0, "
            "ffn_up_exps on cpu): their activations cross between them for every token; keep gate, up and down "
            "together",
            None,
        )
    ]


def test_experts_of_one_layer_cannot_be_split() -> None:
    rules = (rule("embed", "cpu"), rule(r"layers\.1\.mlp\.experts\.0\.", "cpu"), EVERYTHING)
    messages = [one[2] for one in found(*rules) if one[0] == "experts-split"]
    assert messages == [
        "a GGUF holds all experts of a layer in one tensor, but the rules spread those of layer 1 over several devices "
        "(3 on cuda:0, 1 on cpu in ffn_gate_exps.weight, ffn_up_exps.weight, ffn_down_exps.weight); all of each goes "
        "to cuda:0"
    ]


def test_prefill_wishes_that_llama_cpp_cannot_tell_apart() -> None:
    rules = (
        rule(r"layers\.1\.mlp\.experts$", "cpu", replace=EXPERTS, recursive=False),
        rule(r"mlp\.experts$", "cpu", replace=EXPERTS, recursive=False).replace(
            'prefill_device: "cpu"', 'prefill_device: "cuda:0"'
        ),
        rule("embed", "cpu"),
        EVERYTHING,
    )
    assert found(*rules) == [
        (
            "prefill-mixed",
            "warning",
            "prefill_device asks for the GPU for the routed experts of layer 2-3 and for the CPU for the routed experts "
            "of layer 1; llama.cpp has one switch for all (op_offload), which is turned on",
            None,
        )
    ]


def test_tensors_over_a_budget() -> None:
    options = Options(budgets={"cuda:0": 40 << 20, "cpu": 1 << 30})
    assert found(rule("embed", "cpu"), EVERYTHING, options=options) == [
        (
            "over-budget",
            "error",
            "the tensors on cuda:0 take 69 MiB, 29 MiB more than its budget of 40 MiB, before any KV cache and compute "
            "buffer; move layers or experts to another device",
            None,
        )
    ]


def test_tensors_of_no_module_and_mtp_blocks_are_told() -> None:
    weird = deepseek(3, n_mtp=1, extra=["blk.0.attn_sinks.weight", "mystery.weight"])
    assert found(rule("embed", "cpu"), EVERYTHING, model=weird, notes=True) == [
        (
            "tensor-without-module",
            "warning",
            "2 tensors of the file belong to no module that ktllama knows (blk.0.attn_sinks.weight, mystery.weight); "
            "those in a block follow its attention, the others go to cuda:0",
            None,
        ),
        (
            "mtp-not-loaded",
            "note",
            "layer 2 is a multi-token-prediction block, which the Hugging Face model does not build; its modules were "
            "named like a layer's, and llama.cpp leaves its tensors on disk",
            None,
        ),
    ]


def test_a_rule_whose_modules_have_no_tensors() -> None:
    assert found(rule("rotary_emb", "cuda:0"), rule("embed", "cpu"), EVERYTHING, notes=True) == [
        (
            "rule-without-tensors",
            "note",
            "rule 0 places nothing: 4 modules of class DeepseekV3RotaryEmbedding hold no weights in a GGUF; llama.cpp "
            "computes them where their layer is",
            1,
        )
    ]


def test_a_file_with_errors_is_not_judged_by_the_rules_that_are_left() -> None:
    codes = {
        one[0] for one in found("- match: {name: '['}\n  replace: {class: default}\n", rule(r"layers\.1\.", "cpu"))
    }
    assert codes == {"bad-regex"}


def test_the_model_helper_builds_what_it_says() -> None:
    assert model(["a"], n_layers=2).n_layers == 2
