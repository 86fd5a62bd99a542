"""Bytes of the KV cache and of recurrent states, by arithmetic from a model's header.

Source: llama.cpp ``src/llama-kv-cache.cpp`` and ``src/llama-memory-recurrent.cpp`` (constructors) and
``src/llama-hparams.cpp`` (``n_embd_k_gqa``, ``is_mla``, ``n_embd_r``, ``n_embd_s``), as vendored by llama-cpp-python
0.3.36. Layers with a sliding window have a cache of their own, but with llama.cpp's default ``swa_full``, which ktllama
leaves alone, as many cells in it as the others (``src/llama-kv-cache-iswa.cpp``).
"""

from __future__ import annotations

from ktllama.errors import ModelFileError
from ktllama.model import architectures
from ktllama.model.architectures import generic
from ktllama.model.model_file import MetadataArray, ModelFile

#: Types that llama.cpp's command line offers for the cache: elements a block, bytes a block (ggml ``type_traits``).
CACHE_TYPES = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "iq4_nl": (32, 18),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
}

#: llama.cpp rounds the context up to whole multiples of this (``GGML_PAD(n_ctx, 256)`` in ``src/llama-context.cpp``).
CELL_PADDING = 256

_F32_BYTES = 4


def n_cells(n_ctx: int, *, n_seq_max: int = 1, unified: bool = True, n_ctx_train: int = 0) -> int:
    """Cells of the cache for a context of ``n_ctx`` tokens in all; 0 means the model's own ``n_ctx_train``.

    A cache that is not unified gives each of ``n_seq_max`` sequences an equal, padded share.
    """
    total = _padded(n_ctx or n_ctx_train)
    if unified:
        return total
    return _padded(total // n_seq_max) * n_seq_max


def kv_bytes_per_token(
    model: ModelFile, layer: int, type_k: str = "f16", type_v: str = "f16", *, flash_attention: bool = True
) -> int:
    """Bytes that one token takes in the KV cache of ``layer``.

    A model with multi-head latent attention keeps K only (``kv_lora_rank`` + rope values a token); older DeepSeek files
    without ``key_length_mla`` keep full heads of both. Without flash attention all layers' V is as wide as the widest.
    A layer with a recurrent state has no KV cache: 0.

    Raises:
        ModelFileError: when the header does not say how many heads there are.
    """
    if layer in recurrent_layers(model):
        return 0
    n_head_kv = _n_head_kv(model, layer)
    k_bytes = _row_bytes(_head_length(model, "key") * n_head_kv, type_k)
    if is_mla(model):
        return k_bytes
    if not flash_attention:
        n_head_kv = max(_n_head_kv(model, other) for other in range(model.n_layers))
    return k_bytes + _row_bytes(_head_length(model, "value") * n_head_kv, type_v)


def attention_operations(model: ModelFile, layer: int, n_tokens: float) -> float:
    """Multiplications and additions of one token's attention over ``n_tokens`` in the KV cache of ``layer``.

    Every query head is held against every key and weighs every value. With MLA keys and values are the latent ones
    (``kv_lora_rank`` + rope and ``kv_lora_rank`` values), the same for all heads. 0 for a recurrent layer.
    """
    if layer in recurrent_layers(model):
        return 0.0
    heads = _of_layer(model, "attention.head_count", layer) or 0
    return 2.0 * heads * (_head_length(model, "key") + _head_length(model, "value")) * n_tokens


def recurrent_layers(model: ModelFile) -> frozenset[int]:
    """The layers that keep a recurrent state in place of a KV cache."""
    known = architectures.find(model)
    return known.recurrent(model) if known else generic.recurrent(model)


def state_bytes(model: ModelFile, n_seq_max: int = 1) -> int | None:
    """Bytes of the recurrent state of one such layer: a convolution's and a scan's, in f32, for each sequence.

    None where the header has no state space: other recurrent models have states of other shapes.
    """
    inner, state = model.integer("ssm.inner_size"), model.integer("ssm.state_size")
    if not inner or not state:
        return None
    convolution = max(model.integer("ssm.conv_kernel") - 1, 0) * (inner + 2 * model.integer("ssm.group_count") * state)
    return (convolution + inner * state) * _F32_BYTES * max(n_seq_max, 1)


def is_mla(model: ModelFile) -> bool:
    """Whether llama.cpp treats the attention as multi-head latent attention with absorbed matrices."""
    return model.integer("attention.key_length_mla") > 0 and model.integer("attention.value_length_mla") > 0


def _padded(n: int) -> int:
    return -(-n // CELL_PADDING) * CELL_PADDING


def _row_bytes(n_values: int, cache_type: str) -> int:
    n_elements, n_bytes = CACHE_TYPES[cache_type]
    return n_values // n_elements * n_bytes


def _head_length(model: ModelFile, kind: str) -> int:
    given = model.integer(f"attention.{kind}_length")
    if given:
        return given
    n_head = _of_layer(model, "attention.head_count", 0)
    if not n_head:
        raise ModelFileError(model.name, f"{model.architecture}.attention.head_count is missing or 0")
    return model.integer("embedding_length") // n_head


def _n_head_kv(model: ModelFile, layer: int) -> int:
    n_head_kv = _of_layer(model, "attention.head_count_kv", layer)
    if n_head_kv is None:
        n_head_kv = _of_layer(model, "attention.head_count", layer)
    if n_head_kv is None:
        raise ModelFileError(model.name, f"{model.architecture}.attention.head_count is missing")
    return n_head_kv


def _of_layer(model: ModelFile, key: str, layer: int) -> int | None:
    """A number that the header gives once, or once a layer."""
    value = model.hyperparameter(key)
    if isinstance(value, MetadataArray):
        if value.values is None or layer >= len(value.values):
            return None
        value = value.values[layer]
    return value if isinstance(value, int) and not isinstance(value, bool) else None
