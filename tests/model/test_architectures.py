"""What each architecture's description makes of its model: one block's modules, their tensors and their classes."""

from __future__ import annotations

import pytest

from ktllama.model import modules, presets
from ktllama.model.architectures import ARCHITECTURES, FAMILIES, find
from ktllama.model.modules import ModuleTree
from ktllama.model.quantization import MIXES
from tests.models import model


def block(tree: ModuleTree, layer: int) -> dict[str, str]:
    """Modules of a block that own tensors, by name below it, with the tensors below it."""
    prefix, tensor_prefix = f"model.layers.{layer}.", f"blk.{layer}."
    return {
        module.name.removeprefix(prefix): " ".join(tensor.removeprefix(tensor_prefix) for tensor in module.tensors)
        for module in tree.modules
        if module.name.startswith(prefix) and module.tensors
    }


QKVO = {
    "self_attn.q_proj": "attn_q.weight",
    "self_attn.k_proj": "attn_k.weight",
    "self_attn.v_proj": "attn_v.weight",
    "self_attn.o_proj": "attn_output.weight",
}
QKVO_BIASED = {
    "self_attn.q_proj": "attn_q.bias attn_q.weight",
    "self_attn.k_proj": "attn_k.bias attn_k.weight",
    "self_attn.v_proj": "attn_v.bias attn_v.weight",
    "self_attn.o_proj": "attn_output.weight",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm.weight", "self_attn.k_norm": "attn_k_norm.weight"}
MLP = {"mlp.gate_proj": "ffn_gate.weight", "mlp.up_proj": "ffn_up.weight", "mlp.down_proj": "ffn_down.weight"}
EXPERTS = {
    "mlp.experts.0.gate_proj": "ffn_gate_exps.weight",
    "mlp.experts.0.up_proj": "ffn_up_exps.weight",
    "mlp.experts.0.down_proj": "ffn_down_exps.weight",
}
NORMS = {"input_layernorm": "attn_norm.weight", "post_attention_layernorm": "ffn_norm.weight"}
NORMS_POST = {"input_layernorm": "attn_norm.weight", "post_attention_layernorm": "post_attention_norm.weight"}


def shared(name: str) -> dict[str, str]:
    return {f"mlp.{name}.{part}_proj": f"ffn_{part}_shexp.weight" for part in ("gate", "up", "down")}


QWEN_MOE = {
    "mlp.gate": "ffn_gate_inp.weight",
    **EXPERTS,
    **shared("shared_expert"),
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp.weight",
}
W123 = {
    "block_sparse_moe.experts.0.w1": "ffn_gate_exps.weight",
    "block_sparse_moe.experts.0.w2": "ffn_down_exps.weight",
    "block_sparse_moe.experts.0.w3": "ffn_up_exps.weight",
}

BLOCKS = {
    ("r1-distill-llama-8b", 0): {**QKVO, **MLP, **NORMS},
    ("internlm2.5-7b-1m", 31): {**QKVO, **MLP, **NORMS},
    ("minicpm-v-4", 0): {**QKVO, **MLP, **NORMS},
    ("minicpm-v-2.6", 0): {**QKVO_BIASED, **MLP, **NORMS},
    ("r1-distill-qwen-32b", 63): {**QKVO_BIASED, **MLP, **NORMS},
    ("r1-0528-qwen3-8b", 35): {**QKVO, **HEAD_NORMS, **MLP, **NORMS},
    ("ernie-4.5-0.3b", 0): {**QKVO, **MLP, **NORMS},
    ("mixtral-8x7b", 31): {**QKVO, "block_sparse_moe.gate": "ffn_gate_inp.weight", **W123, **NORMS},
    ("qwen2-57b-a14b", 0): {**QKVO_BIASED, **QWEN_MOE, **NORMS},
    ("qwen3-235b-a22b", 93): {**QKVO, **HEAD_NORMS, "mlp.gate": "ffn_gate_inp.weight", **EXPERTS, **NORMS},
    ("qwen3-next-80b-a3b", 0): {
        "linear_attn": "ssm_a ssm_dt.bias",
        "linear_attn.conv1d": "ssm_conv1d.weight",
        "linear_attn.in_proj_qkvz": "attn_qkv.weight attn_gate.weight",
        "linear_attn.in_proj_ba": "ssm_ba.weight",
        "linear_attn.norm": "ssm_norm.weight",
        "linear_attn.out_proj": "ssm_out.weight",
        **QWEN_MOE,
        **NORMS_POST,
    },
    ("qwen3-next-80b-a3b", 3): {**QKVO, **HEAD_NORMS, **QWEN_MOE, **NORMS_POST},
    ("glm-4.5", 2): {**QKVO_BIASED, **HEAD_NORMS, **MLP, **NORMS_POST},
    ("glm-4.5-air", 45): {
        **QKVO_BIASED,
        **EXPERTS,
        "mlp.gate": "ffn_gate_inp.weight exp_probs_b.bias",
        **shared("shared_experts"),
        **NORMS_POST,
    },
    ("glm-4.5-air", 46): {
        **QKVO_BIASED,
        **EXPERTS,
        "mlp.gate": "ffn_gate_inp.weight exp_probs_b.bias",
        **shared("shared_experts"),
        **NORMS_POST,
        "embed_tokens": "nextn.embed_tokens.weight",
        "enorm": "nextn.enorm.weight",
        "hnorm": "nextn.hnorm.weight",
        "eh_proj": "nextn.eh_proj.weight",
        "shared_head.norm": "nextn.shared_head_norm.weight",
        "shared_head.head": "nextn.shared_head_head.weight",
    },
    ("minimax-m2", 61): {
        **QKVO,
        **HEAD_NORMS,
        "block_sparse_moe": "exp_probs_b.bias",
        "block_sparse_moe.gate": "ffn_gate_inp.weight",
        **W123,
        **NORMS,
    },
    ("ernie-4.5-21b-a3b", 1): {
        **QKVO,
        "mlp.moe_statics": "exp_probs_b.bias",
        "mlp.gate": "ffn_gate_inp.weight",
        **EXPERTS,
        **shared("shared_experts"),
        **NORMS,
    },
    ("smallthinker-21b-a3b", 51): {
        **QKVO,
        "block_sparse_moe.primary_router": "ffn_gate_inp.weight",
        "block_sparse_moe.experts.0.up": "ffn_up_exps.weight",
        "block_sparse_moe.experts.0.gate": "ffn_gate_exps.weight",
        "block_sparse_moe.experts.0.down": "ffn_down_exps.weight",
        **NORMS,
    },
    ("gpt-oss-20b", 0): {
        "self_attn": "attn_sinks.weight",
        "self_attn.q_proj": "attn_q.bias attn_q.weight",
        "self_attn.k_proj": "attn_k.bias attn_k.weight",
        "self_attn.v_proj": "attn_v.bias attn_v.weight",
        "self_attn.o_proj": "attn_output.bias attn_output.weight",
        "mlp.router": "ffn_gate_inp.bias ffn_gate_inp.weight",
        "mlp.experts": " ".join(
            f"ffn_{part}_exps.{kind}" for part in ("gate", "up", "down") for kind in ("bias", "weight")
        ),
        **NORMS_POST,
    },
    ("kimi-k2", 60): {
        "self_attn.q_a_proj": "attn_q_a.weight",
        "self_attn.q_a_layernorm": "attn_q_a_norm.weight",
        "self_attn.q_b_proj": "attn_q_b.weight",
        "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa.weight",
        "self_attn.kv_a_layernorm": "attn_kv_a_norm.weight",
        "self_attn.kv_b_proj": "attn_k_b.weight attn_v_b.weight",
        "self_attn.o_proj": "attn_output.weight",
        **EXPERTS,
        "mlp.gate": "ffn_gate_inp.weight exp_probs_b.bias",
        **shared("shared_experts"),
        **NORMS,
    },
}


@pytest.mark.parametrize(("preset", "layer"), BLOCKS)
def test_the_modules_of_a_block_own_these_tensors(preset: str, layer: int) -> None:
    tree = modules.build(presets.load(preset))
    assert block(tree, layer) == BLOCKS[preset, layer]


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_tensor_of_a_preset_has_a_module_and_the_backbone_is_whole(preset: str) -> None:
    tree = modules.build(presets.load(preset))
    outside = [module.name for module in tree.modules if module.tensors and ".layers." not in module.name]
    tied = preset in {"ernie-4.5-0.3b", "ernie-4.5-21b-a3b"}
    assert tree.unowned == ()
    assert not tree.generic
    assert outside == ["model.embed_tokens", "model.norm", *([] if tied else ["lm_head"])]
    assert sorted(tree.layers) == list(range(tree.model.n_layers))


def test_every_architecture_has_a_preset() -> None:
    found = {id(find(presets.load(name))) for name in presets.PRESETS}
    assert found == {id(architecture) for architecture in ARCHITECTURES.values()}


def test_llama_with_experts_is_mixtral() -> None:
    assert find(model([], n_layers=1, architecture="llama", expert_count=8)) is ARCHITECTURES["mixtral"]
    assert find(model([], n_layers=1, architecture="llama")) is ARCHITECTURES["llama"]


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_variant_has_a_name_of_its_own_and_a_known_family(preset: str) -> None:
    built = presets.load(preset)
    variants = modules.architecture_of(built).variants(built)
    roots = [variant.class_path("@ForCausalLM") for variant in variants]
    assert len({variant.name for variant in variants}) == len(variants)
    assert None not in {modules.family_of(root) for root in roots}


@pytest.mark.parametrize(
    ("operators", "variant"),
    [
        ([], "ktransformers"),
        (["ktransformers.operators.linear.KTransformersLinear"], "ktransformers"),
        (["ktransformers.operators.ascend.ascend_linear.KTransformersLinearW8A8A2"], "npu-serve"),
    ],
)
@pytest.mark.parametrize("preset", ["qwen3-30b-a3b", "deepseek-r1"])
def test_operators_for_npus_choose_the_tree_for_npus(preset: str, operators: list[str], variant: str) -> None:
    assert modules.build(presets.load(preset), [], operators).variant == variant


@pytest.mark.parametrize(
    ("preset", "family"),
    [
        ("qwen3-30b-a3b", "Qwen3-MoE"),
        ("mixtral-8x7b", "Mixtral"),
        ("internlm2.5-7b-1m", "Llama"),
        ("deepseek-v2", "DeepSeek-V2"),
        ("kimi-k2", "DeepSeek-V3"),
    ],
)
def test_a_model_is_of_the_family_that_its_root_class_builds(preset: str, family: str) -> None:
    assert modules.families(presets.load(preset)) == {family}
    assert family in FAMILIES.values()


#: Billions of parameters, as the models are known by (the MTP block of GLM-4.5 included).
PARAMETERS = {
    "deepseek-r1": 671.0,
    "kimi-k2": 1026.4,
    "qwen3-235b-a22b": 235.1,
    "qwen3-30b-a3b": 30.5,
    "qwen3-next-80b-a3b": 79.7,
    "qwen2-57b-a14b": 57.4,
    "mixtral-8x7b": 46.7,
    "glm-4.5": 358.3,
    "glm-4.5-air": 110.5,
    "minimax-m2": 228.7,
    "gpt-oss-120b": 116.8,
    "gpt-oss-20b": 20.9,
    "smallthinker-21b-a3b": 21.5,
    "ernie-4.5-21b-a3b": 21.8,
    "ernie-4.5-300b-a47b": 299.5,
    "internlm2.5-7b-1m": 7.7,
    "qwen3-8b": 8.2,
    "r1-distill-qwen-32b": 32.8,
}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_a_preset_has_as_many_parameters_as_its_model(preset: str) -> None:
    tensors = presets.load(preset).tensors
    assert round(sum(_n_values(tensor.shape) for tensor in tensors) / 1e9, 1) == PARAMETERS[preset]


def _n_values(shape: tuple[int, ...]) -> int:
    return shape[0] * _n_values(shape[1:]) if shape else 1


def test_a_model_published_in_mxfp4_keeps_its_types() -> None:
    tensors = {tensor.name: tensor.type for tensor in presets.load("gpt-oss-20b").tensors}
    assert presets.PRESETS["gpt-oss-20b"][1].quantization in MIXES
    assert {name: tensors[f"blk.0.{name}"] for name in ("ffn_up_exps.weight", "ffn_up_exps.bias", "attn_q.weight")} == {
        "ffn_up_exps.weight": "MXFP4",
        "ffn_up_exps.bias": "F32",
        "attn_q.weight": "Q8_0",
    }
