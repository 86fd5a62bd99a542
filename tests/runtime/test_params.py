"""Settings that llama.cpp could not take are refused before it sees them, and the rest arrive as they are."""

from __future__ import annotations

import ctypes

import pytest

from ktllama.errors import LlamaCppError
from ktllama.lower.settings import LlamaSettings, TensorOverride
from ktllama.model.kv_cache import CACHE_TYPES
from ktllama.runtime import library as llama_library
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.device_list import handle_of
from ktllama.runtime.params import context_params, model_params
from tests.runtime.plans import runs


def test_an_empty_list_of_devices_begins_with_null() -> None:
    library = llama_library.load()
    value = model_params(library, LlamaSettings(n_gpu_layers=0), {}).value
    assert ctypes.c_void_p.from_address(value.devices).value is None
    assert (value.n_gpu_layers, value.split_mode, value.load_mode) == (0, 1, -1)
    assert (value.use_extra_bufts, value.no_host, value.no_alloc) == (True, True, False)


def test_runs_and_overrides_arrive_in_order_and_end_with_null() -> None:
    library = llama_library.load()
    cpu = handle_of(library, "CPU")
    settings = runs(("CUDA0", 2), ("CPU", 3), overrides={"a": "CPU", "b": "CPU"}, streams=True)
    params = model_params(library, settings, {"CPU": cpu, "CUDA0": cpu}, load_mode="none", no_alloc=True)
    value = params.value
    assert list((ctypes.c_void_p * 3).from_address(value.devices)) == [cpu, cpu, None]
    assert value.tensor_split[:16] == [2.0, 3.0] + [0.0] * 14
    patterns = (ctypes.c_char_p * 5).from_address(value.tensor_buft_overrides)
    assert [patterns[0], patterns[2], patterns[4]] == [b"a", b"b", None]
    assert (value.n_gpu_layers, value.load_mode, value.no_host, value.no_alloc) == (5, 0, False, True)


def test_context_options_arrive() -> None:
    library = llama_library.load()
    options = ContextOptions(
        n_ctx=1024, n_batch=64, n_ubatch=32, n_seq_max=2, type_k="q8_0", type_v="q8_0", flash_attn="on", n_threads=3
    )
    value = context_params(library, runs(("CUDA0", 1), streams=True), options)
    assert (value.n_ctx, value.n_batch, value.n_ubatch, value.n_seq_max) == (1024, 64, 32, 2)
    assert (value.type_k, value.type_v, value.flash_attn_type) == (8, 8, 1)
    assert (value.n_threads, value.n_threads_batch) == (3, 3)
    assert (value.op_offload, value.offload_kqv, value.kv_unified) == (True, True, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (runs(*[("CUDA0", 1)] * 17), "the plan needs 17 runs of layers; llama.cpp takes at most 16"),
        (
            LlamaSettings(n_gpu_layers=2, devices=("CUDA0", "CPU"), tensor_split=(1,)),
            "2 runs of layers, but 1 run lengths in tensor_split",
        ),
        (
            LlamaSettings(n_gpu_layers=0, tensor_overrides=(TensorOverride(pattern="x", device="CPU"),) * 4096),
            "4096 tensor overrides; llama.cpp takes at most 4095",
        ),
        (
            runs(("CUDA0", 1), overrides={"exps": "CUDA1"}),
            "the override 'exps' names CUDA1, which holds no layers: llama.cpp can only use a device that is in the "
            "list of devices (CUDA0)",
        ),
    ],
)
def test_what_llama_cpp_cannot_take_is_refused(settings: LlamaSettings, message: str) -> None:
    library = llama_library.load()
    with pytest.raises(LlamaCppError) as raised:
        model_params(library, settings, {"CUDA0": 1, "CUDA1": 1, "CPU": 1})
    assert str(raised.value) == message


def test_every_cache_type_that_is_offered_is_known() -> None:
    library = llama_library.load()
    settings = LlamaSettings(n_gpu_layers=0)
    found = {name: context_params(library, settings, ContextOptions(type_k=name)).type_k for name in CACHE_TYPES}
    assert found == {
        "f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2, "q4_1": 3, "iq4_nl": 20, "q5_0": 6, "q5_1": 7,
    }  # fmt: skip


def test_an_unknown_cache_type_is_refused() -> None:
    library = llama_library.load()
    with pytest.raises(LlamaCppError) as raised:
        context_params(library, LlamaSettings(n_gpu_layers=0), ContextOptions(type_k="q9_9"))
    assert str(raised.value) == "'q9_9' is no type that llama.cpp can keep a KV cache in"
