"""Which module owns which tensor."""

from __future__ import annotations

import pytest

from ktllama.errors import UnsupportedModelError
from ktllama.model import modules
from ktllama.model.architecture import MODULE
from ktllama.model.modules import ModuleTree
from tests.models import deepseek, model

V3 = "ktransformers.models.modeling_deepseek_v3.DeepseekV3"


def owners(tree: ModuleTree, tensor: str) -> list[str]:
    return [tree.modules[index].name for index in tree.owners[tensor]]


def test_a_layer_has_the_hugging_face_names_in_their_order() -> None:
    tree = modules.build(deepseek(2))
    names = [module.name.removeprefix("model.layers.1") for module in tree.modules if ".1" in module.name]
    assert names == [
        "",
        ".self_attn",
        ".self_attn.q_a_proj",
        ".self_attn.q_a_layernorm",
        ".self_attn.q_b_proj",
        ".self_attn.kv_a_proj_with_mqa",
        ".self_attn.kv_a_layernorm",
        ".self_attn.kv_b_proj",
        ".self_attn.o_proj",
        ".self_attn.rotary_emb",
        ".mlp",
        ".mlp.experts",
        ".mlp.experts.0",
        ".mlp.experts.0.gate_proj",
        ".mlp.experts.0.up_proj",
        ".mlp.experts.0.down_proj",
        ".mlp.experts.0.act_fn",
        ".mlp.gate",
        ".mlp.shared_experts",
        ".mlp.shared_experts.gate_proj",
        ".mlp.shared_experts.up_proj",
        ".mlp.shared_experts.down_proj",
        ".mlp.shared_experts.act_fn",
        ".input_layernorm",
        ".post_attention_layernorm",
    ]


def test_kv_b_is_one_module_whether_the_file_splits_it_or_not() -> None:
    split, legacy = modules.build(deepseek()), modules.build(deepseek(legacy_kv_b=True))
    module = "model.layers.0.self_attn.kv_b_proj"
    assert owners(split, "blk.0.attn_k_b.weight") == owners(split, "blk.0.attn_v_b.weight") == [module]
    assert owners(legacy, "blk.0.attn_kv_b.weight") == [module]


def test_fused_experts_belong_to_gate_and_up() -> None:
    tree = modules.build(deepseek(fused=True))
    experts = "model.layers.1.mlp.experts.0"
    assert owners(tree, "blk.1.ffn_gate_up_exps.weight") == [f"{experts}.gate_proj", f"{experts}.up_proj"]


def test_router_owns_its_selection_bias() -> None:
    tree = modules.build(deepseek())
    assert (
        owners(tree, "blk.1.exp_probs_b.bias")
        == owners(tree, "blk.1.ffn_gate_inp.weight")
        == ["model.layers.1.mlp.gate"]
    )


def test_a_tied_output_still_has_its_module() -> None:
    tree = modules.build(deepseek(tied=True))
    assert tree.modules[-1].name == "lm_head"
    assert tree.modules[-1].tensors == ()


def test_mtp_blocks_get_synthetic_names_behind_the_last_layer() -> None:
    tree = modules.build(deepseek(3, n_mtp=1))
    synthetic = [module.name for module in tree.modules if module.synthetic]
    assert tree.n_trunk_layers == 2
    assert synthetic[0] == "model.layers.2"
    assert owners(tree, "blk.2.nextn.eh_proj.weight") == ["model.layers.2.eh_proj"]
    assert owners(tree, "blk.2.nextn.shared_head_norm.weight") == ["model.layers.2.shared_head.norm"]
    assert all(name.startswith("model.layers.2") for name in synthetic)


def test_unknown_tensors_are_listed_and_not_guessed() -> None:
    tree = modules.build(deepseek(extra=["blk.0.attn_sinks.weight", "mystery.weight", "blk.99.attn_q.weight"]))
    assert tree.unowned == ("blk.0.attn_sinks.weight", "mystery.weight", "blk.99.attn_q.weight")


@pytest.mark.parametrize(("gating", "family"), [(2, V3), (1, "ktransformers.models.modeling_deepseek.DeepseekV2")])
def test_v2_and_v3_are_told_by_their_gating(gating: int, family: str) -> None:
    names = [tensor.name for tensor in deepseek().tensors if "exp_probs_b" not in tensor.name]
    tree = modules.build(model(names, n_layers=4, expert_gating_func=gating))
    assert tree.modules[0].class_path == f"{family}ForCausalLM"


def test_an_old_file_without_gating_metadata_is_v3_if_it_has_the_selection_bias() -> None:
    tree = modules.build(model([tensor.name for tensor in deepseek().tensors], n_layers=4))
    assert tree.modules[0].class_path == f"{V3}ForCausalLM"


@pytest.mark.parametrize(
    ("named", "variant"),
    [
        ([], "ktransformers"),
        (["torch.nn.Linear"], "ktransformers"),
        (["ktransformers.models.custom_modeling_deepseek_v3.KDeepseekV3ForCausalLM"], "serve"),
        (["transformers.models.deepseek_v3.modeling_deepseek_v3.DeepseekV3TopkRouter"], "transformers"),
    ],
)
def test_the_variant_is_the_one_whose_classes_the_rules_name(named: list[str], variant: str) -> None:
    assert modules.build(deepseek(), named).variant == variant


def test_yarn_metadata_decides_the_class_of_the_rotary_embedding() -> None:
    plain = modules.build(deepseek())
    scaled = modules.build(
        model(
            [tensor.name for tensor in deepseek().tensors],
            n_layers=4,
            expert_gating_func=2,
            **{"rope.scaling.type": "yarn"},
        )
    )
    kinds = [
        {module.class_path for module in tree.modules if module.name.endswith("rotary_emb")} for tree in (plain, scaled)
    ]
    assert kinds == [{f"{V3}RotaryEmbedding"}, {f"{V3}YarnRotaryEmbedding"}]
    yarn = next(module for module in scaled.modules if module.name.endswith("rotary_emb"))
    assert f"{V3}RotaryEmbedding" in yarn.bases


STRANGE = [
    "token_embd.weight",
    "blk.0.attn_norm.weight",
    "blk.0.attn_q.weight",
    "blk.0.attn_output.weight",
    "blk.0.attn_mystery.weight",
    "blk.0.ffn_norm.weight",
    "blk.0.ffn_gate_inp.weight",
    "blk.0.ffn_gate_exps.weight",
    "blk.0.ffn_down_exps.weight",
    "blk.1.attn_norm.weight",
    "blk.1.ssm_in.weight",
    "output_norm.weight",
]


def test_an_unknown_architecture_gets_the_names_that_most_models_have_and_no_classes() -> None:
    tree = modules.build(model(STRANGE, n_layers=2, architecture="nobody-knows", expert_count=4))
    assert tree.generic
    assert {module.class_path for module in tree.modules} == {MODULE}
    assert {module.name: module.tensors for module in tree.modules if module.tensors} == {
        "model.embed_tokens": ("token_embd.weight",),
        "model.layers.0.input_layernorm": ("blk.0.attn_norm.weight",),
        "model.layers.0.self_attn.q_proj": ("blk.0.attn_q.weight",),
        "model.layers.0.self_attn.o_proj": ("blk.0.attn_output.weight",),
        "model.layers.0.post_attention_layernorm": ("blk.0.ffn_norm.weight",),
        "model.layers.0.mlp.gate": ("blk.0.ffn_gate_inp.weight",),
        "model.layers.0.mlp.experts.0.gate_proj": ("blk.0.ffn_gate_exps.weight",),
        "model.layers.0.mlp.experts.0.down_proj": ("blk.0.ffn_down_exps.weight",),
        "model.layers.1.input_layernorm": ("blk.1.attn_norm.weight",),
        "model.layers.1.in_proj": ("blk.1.ssm_in.weight",),
        "model.norm": ("output_norm.weight",),
    }
    assert [(module.name, module.n_experts) for module in tree.modules if module.n_experts] == [
        ("model.layers.0.mlp.experts", 4)
    ]
    assert tree.unowned == ("blk.0.attn_mystery.weight",)
    assert tree.recurrent == {1}
    assert tree.modules[tree.attention[0]].name == "model.layers.0.self_attn"


def test_an_unknown_architecture_is_refused_where_nothing_can_be_named() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        modules.build(model(["a.weight"], n_layers=1, architecture="mamba"))
    assert str(caught.value) == (
        "tiny: architecture 'mamba' has no module names in ktllama yet; known architectures: deepseek2, ernie4_5, "
        "ernie4_5-moe, glm4moe, gpt-oss, internlm2, llama, minimax-m2, mixtral, qwen2, qwen2moe, qwen3, qwen3moe, "
        "qwen3next, smallthinker"
    )
