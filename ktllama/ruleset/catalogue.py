"""ktransformers' operators as data: which exist, what they replace, on which kinds of device they run.

Collected from ktransformers v0.2 to v0.4 (``ktransformers/operators/``, ``ktransformers/optimize/optimize_rules/``).
The classes change no placement here; they are known so that a misspelt one is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_CPU = frozenset({"cpu"})
_CUDA = frozenset({"cuda"})
_XPU = frozenset({"xpu"})
_NPU = frozenset({"npu"})
_ANY = frozenset({"cpu", "cuda", "xpu", "npu"})

_OPERATORS = "ktransformers.operators"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceClass:
    """A class for ``replace.class``: the kind of module it stands in for, and where it runs."""

    path: str
    replaces: str
    runs_on: frozenset[str]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


def _classes(module: str, replaces: str, runs_on: frozenset[str], names: str) -> dict[str, ReplaceClass]:
    made = (
        ReplaceClass(path=f"{_OPERATORS}.{module}.{name}", replaces=replaces, runs_on=runs_on) for name in names.split()
    )
    return {known.path: known for known in made}


#: By full path.
REPLACE_CLASSES: Mapping[str, ReplaceClass] = MappingProxyType(
    _classes(
        "RoPE",
        "rotary embedding",
        _ANY,
        "RotaryEmbedding RotaryEmbeddingV2 RotaryEmbeddingV3 RotaryEmbeddingV4 YarnRotaryEmbedding"
        " YarnRotaryEmbeddingV3 DynamicNTKScalingRotaryEmbedding KQwen3MoeRotaryEmbedding KGlm4MoeRotaryEmbedding"
        " KSmallthinkerRotaryEmbedding KLlama4RotaryEmbedding KHunYuanRotaryEmbedding KQwen3NextRotaryEmbedding",
    )
    | _classes("linear", "linear layer", _ANY, "KTransformersLinear")
    | _classes(
        "attention",
        "attention",
        _ANY,
        "KDeepseekV2Attention KLlamaAttention KQwen2MoeAttention KHunYuanAttention",
    )
    | _classes(
        "balance_serve_attention",
        "attention",
        _CUDA,
        "flashinfer_attn KQwen2MoeAttention KQwen3MoeAttention KGlm4MoeAttention KSmallthinkerAttention"
        " KLlama4Attention KHunYuanAttention KQwen3NextAttention KQwen3NextGatedDeltaNet deepseek_torch_attn",
    )
    | _classes(
        "experts",
        "mixture of experts block",
        _ANY,
        "KDeepseekV2MoE KDeepseekV3MoE KDeepseekV3MoEV2 KQwen2MoeSparseMoeBlock KQwen2MoeSparseMoeBlockV2"
        " KQwen3MoeSparseMoeBlock KQwen3MoeSparseMoeBlockV2 KQwen3NextSparseMoeBlockV2 KMistralSparseMoEBlock"
        " KGlm4MoeMoE KSmallthinkerMoeBlock KLlama4Moe KHunyuanMoE",
    )
    | _classes(
        "experts",
        "routed experts",
        _ANY,
        "KTransformersExperts KTransformersExpertsV2 KGlm4Experts KSmallthinkerExperts KLlama4Experts",
    )
    | _classes("gate", "router", _ANY, "KMoEGate KMoEGateQwen2Moe KMoEGateIPEXLLM")
    | _classes(
        "layernorm",
        "norm",
        _CUDA,
        "RMSNorm KQwen2MoeRMSNorm KQwen3MoeRMSNorm KGlm4MoeRMSNorm KQwen3NextRMSNorm KQwen3NextRMSNormGated"
        " KSmallthinkerRMSNorm KLlama4RMSNorm KHunYuanRMSNorm DeepseekV3RMSNormTorch KDeepseekRMSNormIPEXLLM",
    )
    | _classes(
        "mlp",
        "dense MLP",
        _ANY,
        "kDeepseekV3MLP KQwen2MoeMLP KGlm4MoeMLP KSmallthinkerDenseMlpBlock KLlama4MLP KHunYuanMLP",
    )
    | _classes(
        "models",
        "model",
        _ANY,
        "KDeepseekV2Model KQwen2MoeModel KQwen3MoeModel KLlamaModel KLlama4Model KHunyuanModel KGlm4MoeModel",
    )
    | _classes("ascend.ascend_linear", "linear layer", _NPU, "KTransformersLinearW8A8A2")
    | _classes(
        "ascend.ascend_attention",
        "attention",
        _NPU,
        "KDeepseekV2AttentionW8A8A2 KDeepseekV2AttentionW8A8A2Serve KQwen3MoeAttentionW8A8A2"
        " KQwen3MoeAttentionW8A8A2Serve",
    )
    | _classes(
        "ascend.ascend_experts",
        "mixture of experts block",
        _ANY,
        "KDeepseekV3MoEW8A8 KQwen3MoeSparseMoeBlockW8A8 KTransformersExpertsW8A8 KExpertsCPUW8A8",
    )
    | _classes("ascend.ascend_gate", "router", _NPU, "KDeepseekV3GateA2")
    | _classes("ascend.ascend_mlp", "dense MLP", _NPU, "KDeepseekV3MLPW8A8A2V1 KDeepseekV3MLPW8A8A2V2")
    | _classes(
        "ascend.ascend_layernorm", "norm", _NPU, "KDeepseekV3RMSNormW8A8 KQwen3MoeRMSNormW8A8 KQwen3MoeRMSNormW8A8Serve"
    )
)

#: The last parts of the paths, which is how articles write them.
REPLACE_CLASS_NAMES: frozenset[str] = frozenset(known.name for known in REPLACE_CLASSES.values())

#: Linear operators for ``generate_op`` and ``prefill_op`` (``linear.py`` and ``ascend_linear.py``, ``LINEAR_MAP``).
LINEAR_OPERATORS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "KLinearTorch": _ANY,
        "KLinearMarlin": _CUDA,
        "VLinearMarlin": _CUDA,
        "KLinearFP8": _CUDA,
        "KLinearQ8": _CUDA,
        "KLinearW8A8": _CUDA,
        "KLinearCPUInfer": _CPU,
        "KLinearIPEXLLM": _XPU,
        "KLinearTorchW8A8A2": _NPU,
    }
)

#: Expert operators (``experts.py`` and ``ascend_experts.py``, ``EXPERTS_MAP``).
EXPERT_OPERATORS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "KExpertsTorch": _ANY,
        "KExpertsCPU": _CPU,
        "KExpertsMarlin": _CUDA,
        "KExpertsCUDA": _CUDA,
        "KExpertsCPUW8A8": _CPU,
        "KSFTExpertsCPU": _CPU,
        "KSFTExpertsTorch": _ANY,
    }
)

OPERATORS: Mapping[str, frozenset[str]] = MappingProxyType({**LINEAR_OPERATORS, **EXPERT_OPERATORS})

#: Names that old tutorials write (v0.1), and today's.
OLD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "KTransformerLinear": "KTransformersLinear",
        "QuantizedLinearMarlin": "KLinearMarlin",
        "QuantizedLinearTorch": "KLinearTorch",
        "QuantizedLinearCPUInfer": "KLinearCPUInfer",
        "QuantizedLinearQ8": "KLinearQ8",
        "KTransformersMLPExpert": "KTransformersExperts",
        "KTransformersMLPExperts": "KTransformersExperts",
        "MLPCPUExperts": "KExpertsCPU",
        "MLPCUDAExperts": "KExpertsMarlin",
        "MLPExpertsTorch": "KExpertsTorch",
        "DeepseekV2AttentionInjected": "KDeepseekV2Attention",
        "DeepseekV2MoEInjected": "KDeepseekV2MoE",
        "Qwen2MoeSparseMoeBlockInjected": "KQwen2MoeSparseMoeBlock",
        "MistralSparseMoEBlockInjected": "KMistralSparseMoEBlock",
        "DeepseekV2ModelPerLayerPrefill": "KDeepseekV2Model",
        "DeepseekV2ModelKTransformers": "KDeepseekV2Model",
        "Qwen2MoeModelPerLayerPrefill": "KQwen2MoeModel",
        "Qwen2MoeModelKTransformers": "KQwen2MoeModel",
    }
)

#: Old names of keyword arguments, and today's.
OLD_KWARGS: Mapping[str, str] = MappingProxyType(
    {
        "generate_linear_type": "generate_op",
        "prefill_linear_type": "prefill_op",
        "generate_mlp_type": "generate_op",
        "prefill_mlp_type": "prefill_op",
    }
)

DEVICE_KWARGS = ("generate_device", "prefill_device", "out_device")
OPERATOR_KWARGS = ("generate_op", "prefill_op")
#: The misspelling is ktransformers' own and the only name that works there.
THRESHOLD_KWARG = "per_layer_prefill_intput_threshold"

#: Keyword arguments that some operator reads (the constructors in ``ktransformers/operators/``).
KNOWN_KWARGS: frozenset[str] = frozenset(
    {
        *DEVICE_KWARGS,
        *OPERATOR_KWARGS,
        THRESHOLD_KWARG,
        "transfer_map",
        "absorb_for_prefill",
        "attention_block_size",
        "chunk_size",
        "chunck_size",
        "backend",
        "n_deferred_experts",
        "use_cuda_graph",
        "num_bits",
        "group_size",
        "act_order",
        "is_k_full",
        "stride",
        "group_max_len",
        "max_position_embeddings",
        "dim",
        "base",
        "scaling_factor",
        "dump_enable",
        "dump_dir",
    }
)


def runs_on(operator: str) -> frozenset[str] | None:
    """The kinds of device (``cpu``, ``cuda``, ``xpu``, ``npu``) that an operator runs on; None for an unknown one."""
    return OPERATORS.get(operator)


def is_replace_class(path: str) -> bool:
    """Whether ``path`` is a known class, by its full path or by its bare name."""
    return path in REPLACE_CLASSES or path in REPLACE_CLASS_NAMES


def todays_name(path: str) -> str | None:
    """Today's name of an old class or operator, told by its last part; None if it is not an old one."""
    return OLD_NAMES.get(path.rpartition(".")[2])
