"""What a reference model is made of, as numbers: read from a GGUF file's metadata, or written by hand.

Nothing is inferred from the sizes of tensors. Defaults are those of llama.cpp where a key may be missing
(``llama_model_base::load_hparams`` in ``src/llama-model.cpp`` and ``src/models/{deepseek2,llama,qwen2}.cpp`` of the
llama.cpp in llama-cpp-python 0.3.36). No torch here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ktllama.model.gguf import MAX_EXPERTS, MAX_LAYERS
from ktllama.model.model_file import ModelFile
from ktllama.reference.metadata import Hyperparameters

Gating: TypeAlias = Literal["softmax", "sigmoid"]

#: How a group of experts is rated: by its two best (V3, and llama.cpp for every model), or by its best (V2's paper).
GroupScore: TypeAlias = Literal["top2", "max"]

#: Which two values of a head turn together: neighbours (ggml's NORMAL), or those half a head apart (NEOX).
Pairing: TypeAlias = Literal["neighbours", "halves"]

_GATINGS: dict[int, Gating] = {1: "softmax", 2: "sigmoid"}  # LLAMA_EXPERT_GATING_FUNC_TYPE_*
_SCALINGS = ("none", "linear", "yarn")
_MAX_WIDTH = 1 << 20
_MAX_VOCABULARY = 1 << 24
_MAX_CONTEXT = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnConfig:
    """YaRN's part of the rotation. ``log_multiplier`` is GGUF's: 0.1 × ``mscale_all_dim``; None where it is not given.

    llama.cpp reads no betas from a file; 32 and 1 are what it uses, and what DeepSeek's models have.
    """

    original_context: int
    log_multiplier: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """The rotary embedding of the first ``n_dims`` values of a head.

    ``factor`` stretches the context: linearly, or as ``yarn`` says. ``attention_factor`` scales sine and cosine.
    """

    n_dims: int
    base: float = 10000.0
    factor: float = 1.0
    attention_factor: float = 1.0
    yarn: YarnConfig | None = None

    def __post_init__(self) -> None:
        _require(self.n_dims > 0 and self.n_dims % 2 == 0, f"n_dims of RoPE is {self.n_dims}; expected an even number")

    @property
    def log_factor(self) -> float:
        """0.1 × ln(factor), by which YaRN's magnitudes grow."""
        return 0.1 * math.log(self.factor)

    @property
    def magnitude(self) -> float:
        """What sine and cosine are multiplied by.

        ggml's ``rope_yarn`` multiplies by 1 + 0.1 ln(factor), and ``llama_context`` sets ``yarn_attn_factor`` to a
        quotient by the same: where a multiplier is given they cancel, as ``mscale`` = ``mscale_all_dim`` there.
        """
        if self.yarn is None or self.yarn.log_multiplier or self.factor <= 1:
            return self.attention_factor
        return self.attention_factor * (1 + self.log_factor)

    @property
    def mla_score_factor(self) -> float:
        """What the scores of multi-head latent attention are multiplied by besides 1/√head.

        ``mscale²`` of ``llama_model_deepseek2::graph``: also without YaRN, where ``factor`` is not 1.
        """
        log_multiplier = (self.yarn.log_multiplier if self.yarn else None) or 0.0
        original = self.attention_factor * (1 + self.log_factor)
        if self.yarn is not None:
            original = self.magnitude
        return (original * (1 + log_multiplier * math.log(self.factor))) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """The experts of a layer and how they are chosen.

    ``n_groups`` over 1 first chooses ``n_groups_used`` groups. ``normalize`` makes the chosen weights sum to 1, before
    ``scale`` multiplies them. ``selection_bias`` says whether layers may have one (``exp_probs_b``).
    """

    n_experts: int
    n_experts_used: int
    n_shared: int
    expert_ffn: int
    gating: Gating = "sigmoid"
    selection_bias: bool = True
    n_groups: int = 1
    n_groups_used: int = 1
    group_score: GroupScore = "top2"
    normalize: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        used, groups = self.n_experts_used, self.n_groups
        _require(0 < used <= self.n_experts, f"n_experts_used is {used}; expected 1 to {self.n_experts}")
        _require(groups >= 1 and self.n_experts % groups == 0, f"{self.n_experts} experts make no {groups} groups")
        if groups > 1:
            size, chosen = self.n_experts // groups, self.n_groups_used
            _require(0 < chosen <= groups, f"n_groups_used is {chosen}; expected 1 to {groups}")
            _require(size >= 2, f"{self.n_experts} experts in {groups} groups; a group needs two experts or more")
            _require(used <= chosen * size, f"{used} experts cannot be chosen from {chosen} groups of {size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSeekConfig:
    """DeepSeek-V2, V2-Lite, V3 and R1, and what is built like them. ``n_layers`` leaves out the MTP blocks.

    ``nope`` and ``rope.n_dims`` are the parts of a query or key head without and with position, ``v_head`` the length
    of a value head. ``q_lora_rank`` is None where queries are not compressed. ``moe`` is used from layer ``n_dense``.
    """

    vocabulary: int
    n_layers: int
    width: int
    ffn: int
    n_heads: int
    nope: int
    v_head: int
    kv_lora_rank: int
    q_lora_rank: int | None
    rope: RopeConfig
    moe: MoeConfig
    n_dense: int = 1
    n_mtp: int = 0
    norm_epsilon: float = 1e-6
    context: int = 4096
    tied_output: bool = False

    architecture = "deepseek2"

    def __post_init__(self) -> None:
        _require(self.n_layers >= 1, f"n_layers is {self.n_layers}; expected 1 or more")
        _require(self.n_dense >= 0, f"n_dense is {self.n_dense}; expected 0 or more")
        _require(self.n_mtp in (0, 1), f"n_mtp is {self.n_mtp}; expected 0 or 1")

    @property
    def score_scale(self) -> float:
        """What the product of a query and a key is multiplied by."""
        return self.rope.mla_score_factor / math.sqrt(self.nope + self.rope.n_dims)

    @classmethod
    def from_metadata(cls, model: ModelFile) -> DeepSeekConfig:
        """The config of a deepseek2 file.

        Raises:
            ModelFileError: for a key that is missing, absurd, or changes the model in a way that is not known here.
        """
        read = Hyperparameters(model)
        read.absent("attention.temperature_scale", "attention temperature")
        mla = read.has("attention.key_length_mla")
        head = read.integer("attention.key_length_mla" if mla else "attention.key_length", _MAX_WIDTH)
        rope = _rope(read, read.integer("rope.dimension_count", _MAX_WIDTH), _yarn_multiplier(read))
        if rope.n_dims >= head:
            raise read.wrong("rope.dimension_count", f"fewer than the {head} values of a head")
        n_mtp = read.integer("nextn_predict_layers", 1, least=0, default=0)
        n_layers = read.integer("block_count", MAX_LAYERS, least=1 + n_mtp) - n_mtp
        vocabulary = read.vocabulary(_MAX_VOCABULARY)
        return cls(
            vocabulary=vocabulary,
            n_layers=n_layers,
            width=read.integer("embedding_length", _MAX_WIDTH),
            ffn=read.integer("feed_forward_length", _MAX_WIDTH),
            n_heads=read.integer("attention.head_count", _MAX_WIDTH),
            nope=head - rope.n_dims,
            v_head=read.integer("attention.value_length_mla" if mla else "attention.value_length", _MAX_WIDTH),
            kv_lora_rank=read.integer("attention.kv_lora_rank", _MAX_WIDTH),
            q_lora_rank=None if _is_lite(n_layers, vocabulary) else _q_lora_rank(read),
            rope=rope,
            moe=_moe(read, _usual_gating(n_layers, vocabulary)),
            n_dense=read.integer("leading_dense_block_count", MAX_LAYERS, least=0, default=0),
            n_mtp=n_mtp,
            norm_epsilon=read.number("attention.layer_norm_rms_epsilon", 1.0),
            context=read.integer("context_length", _MAX_CONTEXT),
            tied_output=not any(tensor.name == "output.weight" for tensor in model.tensors),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseConfig:
    """Llama and Qwen2: grouped-query attention and one feed-forward network a layer.

    ``pairing`` is the rope layout after llama.cpp's conversion: ``neighbours`` for llama, ``halves`` for qwen2.
    ``qkv_bias``, ``output_bias`` and ``rope_factors`` say which optional tensors the file has.
    """

    architecture: str
    vocabulary: int
    n_layers: int
    width: int
    ffn: int
    n_heads: int
    n_kv_heads: int
    head: int
    rope: RopeConfig
    pairing: Pairing
    norm_epsilon: float = 1e-5
    context: int = 4096
    tied_output: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    rope_factors: bool = False

    def __post_init__(self) -> None:
        _require(self.n_layers >= 1, f"n_layers is {self.n_layers}; expected 1 or more")
        _require(
            0 < self.n_kv_heads <= self.n_heads and self.n_heads % self.n_kv_heads == 0,
            f"{self.n_heads} heads cannot share {self.n_kv_heads} KV heads",
        )

    @property
    def score_scale(self) -> float:
        """What the product of a query and a key is multiplied by."""
        return 1 / math.sqrt(self.head)

    @classmethod
    def from_metadata(cls, model: ModelFile) -> DenseConfig:
        """The config of a llama or qwen2 file.

        Raises:
            ModelFileError: for a key that is missing, absurd, or changes the model in a way that is not known here.
        """
        read = Hyperparameters(model)
        if read.integer("expert_count", MAX_EXPERTS, least=0, default=0):
            raise read.wrong("expert_count", "0: the reference has no experts for this architecture")
        names = {tensor.name for tensor in model.tensors}
        width = read.integer("embedding_length", _MAX_WIDTH)
        n_heads = read.per_layer("attention.head_count", _MAX_WIDTH)
        n_kv_heads = read.per_layer("attention.head_count_kv", _MAX_WIDTH, default=n_heads)
        if n_heads % n_kv_heads:
            raise read.wrong("attention.head_count_kv", f"a divisor of the {n_heads} heads")
        head = read.integer("attention.key_length", _MAX_WIDTH, default=width // n_heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if read.integer(key, _MAX_WIDTH, default=head) != head:
                raise read.wrong(key, f"{head}, the length of a head")
        return cls(
            architecture=model.architecture,
            vocabulary=read.vocabulary(_MAX_VOCABULARY),
            n_layers=read.integer("block_count", MAX_LAYERS),
            width=width,
            ffn=read.per_layer("feed_forward_length", _MAX_WIDTH),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head=head,
            rope=_rope(read, head),
            pairing="neighbours" if model.architecture == "llama" else "halves",
            norm_epsilon=read.number("attention.layer_norm_rms_epsilon", 1.0),
            context=read.integer("context_length", _MAX_CONTEXT),
            tied_output="output.weight" not in names,
            qkv_bias=bool(names & {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"}),
            output_bias="blk.0.attn_output.bias" in names,
            rope_factors=model.architecture == "llama" and "rope_freqs.weight" in names,
        )


Config: TypeAlias = DeepSeekConfig | DenseConfig


def _is_lite(n_layers: int, vocabulary: int) -> bool:
    """Whether llama.cpp takes a deepseek2 file for V2-Lite, GigaChat3 or Kanana-2, whose queries are not compressed.

    It tells them by these numbers, and does not look at ``q_lora_rank`` then (``is_lite`` in ``deepseek2.cpp``).
    """
    return n_layers in (26, 27) or (n_layers == 48 and vocabulary == 128256)


def _q_lora_rank(read: Hyperparameters) -> int | None:
    return read.integer("attention.q_lora_rank", _MAX_WIDTH, least=0, default=0) or None


def _usual_gating(n_layers: int, vocabulary: int) -> int:
    """The gating of a deepseek2 file that does not say: GLM 4.7 Lite's by its size, else V2's."""
    return 2 if n_layers in (47, 48) and vocabulary == 154880 else 1


def _yarn_multiplier(read: Hyperparameters) -> float:
    """``yarn_log_multiplier``, or 0; of the models here llama.cpp reads it for deepseek2 alone."""
    multiplier = read.number("rope.scaling.yarn_log_multiplier", 100.0, default=0.0)
    if multiplier and read.word("rope.scaling.type", _SCALINGS, default="linear") != "yarn":
        raise read.wrong("rope.scaling.type", "'yarn', since there is a YaRN multiplier")
    return multiplier


def _rope(read: Hyperparameters, n_dims: int, multiplier: float = 0.0) -> RopeConfig:
    if n_dims % 2:
        raise read.wrong("rope.dimension_count", "an even number")
    kind = read.word("rope.scaling.type", _SCALINGS, default="linear")
    context = read.integer("context_length", _MAX_CONTEXT)
    old_name = read.number("rope.scale_linear", 1e6, default=0.0)
    factor = read.number("rope.scaling.factor", 1e6, default=old_name) or 1.0
    base = read.number("rope.freq_base", 1e12, default=10000.0)
    if base <= 1:
        raise read.wrong("rope.freq_base", "a number above 1")
    yarn = None
    if kind == "yarn":
        original = read.integer("rope.scaling.original_context_length", _MAX_CONTEXT, default=context)
        yarn = YarnConfig(original_context=original, log_multiplier=multiplier or None)
    return RopeConfig(
        n_dims=n_dims,
        base=base,
        factor=1.0 if kind == "none" else factor,
        attention_factor=read.number("rope.scaling.attn_factor", 100.0, default=1.0),
        yarn=yarn,
    )


def _moe(read: Hyperparameters, usual_gating: int) -> MoeConfig:
    n_experts = read.integer("expert_count", MAX_EXPERTS)
    n_used = read.integer("expert_used_count", n_experts)
    n_groups = read.integer("expert_group_count", n_experts, least=0, default=0) or 1
    n_groups_used = 1
    if n_groups > 1:
        n_groups_used = read.integer("expert_group_used_count", n_groups)
        if n_experts % n_groups or n_experts // n_groups < 2:
            raise read.wrong("expert_group_count", f"groups of two or more of the {n_experts} experts, all of one size")
        if n_used > n_groups_used * (n_experts // n_groups):
            raise read.wrong("expert_used_count", "no more experts than the chosen groups have")
    gating = read.integer("expert_gating_func", 1 << 31, least=0, default=0) or usual_gating
    if gating not in _GATINGS:
        raise read.wrong("expert_gating_func", "1 (softmax) or 2 (sigmoid)")
    return MoeConfig(
        n_experts=n_experts,
        n_experts_used=n_used,
        n_shared=read.integer("expert_shared_count", MAX_EXPERTS, least=0),
        expert_ffn=read.per_layer("expert_feed_forward_length", _MAX_WIDTH),
        gating=_GATINGS[gating],
        selection_bias=read.has_tensor("exp_probs_b.bias"),
        n_groups=n_groups,
        n_groups_used=n_groups_used,
        normalize=read.flag("expert_weights_norm", default=False),
        scale=read.number("expert_weights_scale", 1e6, default=0.0) or 1.0,
    )


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(reason)
