"""The trained model as a GGUF file, as llama.cpp's conversion makes one of DeepSeek-R1.

Matrices become Q8_0; norms, biases and the router stay in float32, and so do embedding and output, which are small.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from tokenizers import Tokenizer
from torch import Tensor

from ktllama.reference.config import DeepSeekConfig
from ktllama.reference.names import gguf_name, kept_in_float32
from ktllama.reference.tiny_r1.template import BEGIN, CHAT_TEMPLATE, CONTROL, END, PAD
from ktllama.reference.tiny_r1.tokenizer import PRE

NAME = "tiny-R1"

_BLOCK = 32  # values that Q8_0 keeps under one scale

_DESCRIPTION = (
    "A very small model of DeepSeek-R1's architecture that thinks before it answers: sums, differences, products and "
    "comparisons, letters, sorting. Trained from nothing with ktllama's own reference model."
)


def weights(folder: Path) -> dict[str, Tensor]:
    """The float32 weights, by parameter, that all processes of a training run left in ``folder``."""
    made: dict[str, Tensor] = {}
    for path in sorted(folder.glob("state-*.pt")):
        state = torch.load(path, weights_only=True)
        made |= {name: share["master"] for name, share in state["shares"].items()}
        made |= {name: bias.float() for name, bias in state["biases"].items()}
    return made


def write(
    path: Path,
    config: DeepSeekConfig,
    tokenizer: Tokenizer,
    parameters: Mapping[str, Tensor],
    *,
    quantization: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
) -> None:
    """Write the model to ``path``; ``parameters`` are those of ``DeepSeek(config)``."""
    writer = GGUFWriter(path, "deepseek2")
    _describe(writer, quantization)
    _write_config(writer, config)
    _write_vocabulary(writer, tokenizer)
    for name, parameter in sorted(parameters.items(), key=lambda entry: _order(gguf_name(entry[0]))):
        values = parameter.detach().float().contiguous().numpy()
        kind = GGMLQuantizationType.F32 if _small(name) or values.shape[-1] % _BLOCK else quantization
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _small(parameter: str) -> bool:
    return kept_in_float32(parameter) or parameter in ("token_embd.weight", "output.weight")


def _order(tensor: str) -> tuple[int, int, str]:
    """Embedding first, then layer by layer, then the output."""
    if tensor.startswith("blk."):
        return 1, int(tensor.split(".")[1]), tensor
    return (0 if tensor.startswith("token_embd") else 2), 0, tensor


def _describe(writer: GGUFWriter, quantization: GGMLQuantizationType) -> None:
    writer.add_type("model")
    writer.add_name(NAME)
    writer.add_basename(NAME)
    writer.add_size_label("7M")
    writer.add_description(_DESCRIPTION)
    writer.add_license("mit")
    writer.add_languages(["en"])
    is_q8 = quantization == GGMLQuantizationType.Q8_0
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if is_q8 else gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write_config(writer: GGUFWriter, config: DeepSeekConfig) -> None:
    assert config.q_lora_rank is not None
    assert config.rope.yarn is not None
    assert config.rope.yarn.log_multiplier is not None
    head = config.nope + config.rope.n_dims
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ffn)
    writer.add_vocab_size(config.vocabulary)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(1)  # after the latent is absorbed, all heads share one
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.kv_lora_rank + config.rope.n_dims)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(head)
    writer.add_value_length_mla(config.v_head)
    writer.add_leading_dense_block_count(config.n_dense)
    writer.add_expert_count(config.moe.n_experts)
    writer.add_expert_used_count(config.moe.n_experts_used)
    writer.add_expert_shared_count(config.moe.n_shared)
    writer.add_expert_feed_forward_length(config.moe.expert_ffn)
    writer.add_expert_group_count(config.moe.n_groups)
    writer.add_expert_group_used_count(config.moe.n_groups_used)
    writer.add_expert_weights_scale(config.moe.scale)
    writer.add_expert_weights_norm(config.moe.normalize)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_rope_dimension_count(config.rope.n_dims)
    writer.add_rope_freq_base(config.rope.base)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(config.rope.factor)
    writer.add_rope_scaling_orig_ctx_len(config.rope.yarn.original_context)
    writer.add_rope_scaling_yarn_log_mul(config.rope.yarn.log_multiplier)


def _write_vocabulary(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1])
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE)
    writer.add_token_list([text for text, _ in vocabulary])
    writer.add_token_types([_kind(text, added) for text, _ in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id(BEGIN))
    writer.add_eos_token_id(tokenizer.token_to_id(END))
    writer.add_pad_token_id(tokenizer.token_to_id(PAD))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _kind(text: str, added: set[str]) -> TokenType:
    if text in CONTROL:
        return TokenType.CONTROL
    return TokenType.USER_DEFINED if text in added else TokenType.NORMAL
