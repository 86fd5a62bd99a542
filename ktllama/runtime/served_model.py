"""A model loaded for serving: placed by its rules, checked against them, and described."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktllama import devices
from ktllama.devices import DeviceMap
from ktllama.engine.executor import LoadError
from ktllama.engine.messages import ModelInfo
from ktllama.lower.settings import LlamaSettings
from ktllama.model.sources import is_remote
from ktllama.placing.resolve import DEFAULT_DEVICE
from ktllama.runtime import library as llama_library
from ktllama.runtime.buffers import check_buffers
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.device_list import available
from ktllama.runtime.executor_options import ExecutorOptions
from ktllama.runtime.load import LoadedModel, load
from ktllama.runtime.vocabulary import Vocabulary
from ktllama.translation import Options, Translation, translate
from ktllama.units import format_bytes

_ALL_LAYERS = 1 << 20
_TEXT_BYTES = 4096
#: too long to be told, or told elsewhere
_LEFT_OUT = ("tokenizer.chat_template", "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.merges")
#: ``enum llama_pooling_type``, as GGUF's ``<architecture>.pooling_type`` gives it
_POOLING = {"0": "mean", "1": "mean", "2": "cls", "3": "last", "4": "rank"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A loaded model with its description."""

    loaded: LoadedModel
    vocabulary: Vocabulary
    info: ModelInfo


def open_model(options: ExecutorOptions, progress: Callable[[float], None]) -> Opened:
    """Load the model of ``options`` as its rules say and make its context.

    Raises:
        KtllamaError: as :func:`ktllama.translation.translate` and :func:`ktllama.runtime.load.load` do.
        LoadError: when the outcome is not as planned, or the model cannot generate text.
    """
    if is_remote(options.model):
        raise LoadError("the model must be a file on this machine: download it first")
    started = time.monotonic()
    translation = None if options.rules is None else _translate(options)
    settings = _plain_settings() if translation is None else translation.settings
    loaded = load(
        options.model,
        settings,
        _context(options),
        progress=progress,
        explicit_devices=tuple(options.device_map.values()),
        stand_ins=options.stand_ins,
        cpu_bytes=None if translation is None else translation.placement.bytes_by_device().get(devices.CPU, 0),
    )
    try:
        _check(loaded, translation)
        vocabulary = Vocabulary(loaded.library.api, loaded.vocab)
        info = _describe(loaded, vocabulary, options, time.monotonic() - started)
    except BaseException:
        loaded.close()
        raise
    return Opened(loaded=loaded, vocabulary=vocabulary, info=info)


def _translate(options: ExecutorOptions) -> Translation:
    assert options.rules is not None
    return translate(
        options.rules,
        options.model,
        options=Options(
            device_map=DeviceMap(chosen=dict(options.device_map)),
            default_device=options.default_device or DEFAULT_DEVICE,
            load_mode=options.load_mode,
            budgets=dict(options.budgets),
        ),
    )


def _plain_settings() -> LlamaSettings:
    """All layers on the GPUs that are here, split by llama.cpp, or on the CPU."""
    gpus = tuple(device.name for device in available(llama_library.load()) if device.kind == "gpu")
    return LlamaSettings(n_gpu_layers=_ALL_LAYERS if gpus else 0, devices=gpus, op_offload=bool(gpus))


def _context(options: ExecutorOptions) -> ContextOptions:
    return ContextOptions(
        n_ctx=options.ctx,
        n_batch=options.ubatch,
        n_ubatch=options.ubatch,
        n_seq_max=options.n_sequences,
        kv_unified=True,
        type_k=options.kv_type,
        type_v=options.kv_type,
        flash_attn=options.flash_attn,
        n_threads=options.threads,
        n_outputs_max=min(options.n_sequences, options.ubatch),
    )


def _check(loaded: LoadedModel, translation: Translation | None) -> None:
    api = loaded.library.api
    if not api.llama_model_has_decoder(loaded.model) or api.llama_model_has_encoder(loaded.model):
        raise LoadError("the model has an encoder; only models that continue text can be served")
    if not api.llama_get_memory(loaded.context):
        raise LoadError("the model keeps no context, so it cannot generate text")
    if translation is not None:
        checked = check_buffers(loaded, translation.placement, translation.options.device_map)
        if not checked.ok:
            raise LoadError("not as planned: " + "; ".join(str(mismatch) for mismatch in checked.mismatches[:3]))


def _describe(loaded: LoadedModel, vocabulary: Vocabulary, options: ExecutorOptions, seconds: float) -> ModelInfo:
    api, model = loaded.library.api, loaded.model
    metadata = _metadata(api, model)
    architecture = metadata.get("general.architecture", "")
    pooling = _POOLING.get(metadata.get(f"{architecture}.pooling_type", "0"), "")
    template: bytes | None = api.llama_model_chat_template(model, None)
    return ModelInfo(
        name=options.name or metadata.get("general.name") or Path(options.model).stem,
        architecture=architecture,
        n_ctx_train=api.llama_model_n_ctx_train(model),
        n_ctx=api.llama_n_ctx(loaded.context),
        n_ubatch=options.ubatch,
        n_parallel=options.parallel,
        vocab_size=vocabulary.size,
        bos=vocabulary.text(vocabulary.bos),
        eos=vocabulary.text(vocabulary.eos),
        add_bos=vocabulary.add_bos,
        chat_template=(template or b"").decode(errors="replace"),
        metadata=metadata,
        can_embed=pooling in ("mean", "cls", "last"),
        can_share_prefix=_can_share_prefix(api, model),
        pooling=pooling,
        devices=tuple(f"{device.name}: {device.description}" for device in available(loaded.library)),
        plan=_plan_lines(loaded),
        build=_build(loaded.library),
        load_seconds=seconds,
        special_tokens=vocabulary.special_texts,
        added_tokens=vocabulary.added_texts,
    )


def _can_share_prefix(api: Any, model: Any) -> bool:
    """Whether a sequence's beginning can be kept and its end dropped: not where the memory is a running state."""
    if api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model):
        return False
    return not api.llama_model_n_swa(model) or bool(api.llama_context_default_params().swa_full)


def _plan_lines(loaded: LoadedModel) -> tuple[str, ...]:
    """What lies on every device, as llama.cpp printed it."""
    weights, kv, compute = loaded.model_bytes(), loaded.kv_bytes(), loaded.compute_bytes()
    played = {device.name for device in loaded.bound if device.stand_in}
    lines = []
    for name in dict.fromkeys((*weights, *kv, *compute)):
        sizes = (
            f"{format_bytes(found[name])} of {what}"
            for found, what in ((weights, "weights"), (kv, "KV cache"), (compute, "compute buffers"))
            if found.get(name)
        )
        lines.append(f"{name}{' (a stand-in)' if name in played else ''}: {', '.join(sizes)}")
    return tuple(lines)


def _metadata(api: Any, model: Any) -> dict[str, str]:
    found = {}
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    for index in range(api.llama_model_meta_count(model)):
        n_key = api.llama_model_meta_key_by_index(model, index, buffer, _TEXT_BYTES)
        key = buffer.raw[: max(0, min(n_key, _TEXT_BYTES - 1))].decode(errors="replace")
        n_value = api.llama_model_meta_val_str_by_index(model, index, buffer, _TEXT_BYTES)
        if 0 <= n_value < _TEXT_BYTES and not key.startswith(_LEFT_OUT):
            found[key] = buffer.raw[:n_value].decode(errors="replace")
    return found


def _build(library: llama_library.Library) -> str:
    system: bytes = library.api.llama_print_system_info()
    return f"llama-cpp-python {llama_library.installed_version()}; {system.decode(errors='replace').strip(' |')}"
