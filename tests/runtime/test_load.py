"""Real loads: sizes by device are the plan's to llama.cpp's last decimal, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from ktllama.errors import DeviceError, LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.model import gguf
from ktllama.model.kv_cache import kv_bytes_per_token, n_cells
from ktllama.runtime import load as load_module
from ktllama.runtime.buffers import check_buffers
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.dry_run_log import SIZE_RESOLUTION_BYTES
from ktllama.runtime.load import chosen_load_mode, load
from ktllama.runtime.verify import Mismatch, Tally
from tests.runtime import smollm2
from tests.runtime.plans import plan, runs, with_tensor_on
from tests.runtime.tiny_models import TinyDeepSeek, TinyLlama

CONTEXT = ContextOptions(n_ctx=512, n_threads=1)


@pytest.mark.parametrize("load_mode", ["none", "mmap"])
def test_every_buffer_has_the_planned_size(load_mode: Literal["none", "mmap"]) -> None:
    path = smollm2.path()
    model = gguf.read(path)
    layers = ("CUDA0",) * 5 + ("CPU",) * 10 + ("CUDA0",) * 10 + ("CUDA1",) * 6
    overrides = {r"blk\.(2|20)\.ffn_": "CPU", r"blk\.26\.attn_": "CUDA0"}
    settings = runs(("CUDA0", 5), ("CPU", 10), ("CUDA0", 10), ("CUDA1", 6), overrides=overrides)
    settings = replace(settings, load_mode=load_mode)
    placement = plan(model, layers, overrides)
    with load(path, settings, CONTEXT, stand_ins=True) as loaded:
        found = check_buffers(loaded, placement)
    assert found.mismatches == ()
    assert found.tensors == Tally(checked=len(model.tensors), matched=len(model.tensors))
    assert set(found.found_bytes) == {"CPU", "CUDA0", "CUDA1"}
    assert found.not_compared == (("CPU",) if load_mode == "mmap" else ())
    assert found.planned_bytes["CUDA0"] > 10 * 1024 * 1024


def test_a_misplaced_tensor_is_found_by_name_and_by_size() -> None:
    path = smollm2.path()
    name = "blk.3.ffn_up.weight"
    placement = with_tensor_on(plan(gguf.read(path), ("CUDA0",) * 31), name, "cpu")
    with load(path, runs(("CUDA0", 31)), CONTEXT, stand_ins=True) as loaded:
        found = check_buffers(loaded, placement)
    assert found.mismatches[0] == Mismatch(what=f"tensor {name}", expected="CPU", found="CUDA0")
    assert {mismatch.what for mismatch in found.mismatches[1:]} == {"weights on CPU", "weights on CUDA0"}
    assert not found.ok


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (TinyDeepSeek(), ContextOptions(n_threads=1, n_ctx=4000)),
        (TinyDeepSeek(mtp=True), ContextOptions(n_threads=1, n_ctx=4096)),
        (TinyDeepSeek(legacy=True, v_head=32), ContextOptions(n_threads=1, n_ctx=4096, type_k="q8_0", type_v="q8_0")),
        (TinyDeepSeek(kv_lora_rank=64, rope=32), ContextOptions(n_threads=1, n_ctx=4096, type_k="q8_0", type_v="q8_0")),
        (TinyLlama(), ContextOptions(n_threads=1, n_ctx=4096, flash_attn="off")),
        (TinyLlama(n_embd=128), ContextOptions(n_threads=1, n_ctx=4096, type_k="q8_0", type_v="q5_1")),
        (TinyLlama(head_count_array=True), ContextOptions(n_threads=1, n_ctx=3000, n_seq_max=4, kv_unified=False)),
        (TinyLlama(), ContextOptions(n_threads=1, n_ctx=0)),
    ],
)
def test_kv_arithmetic_agrees_with_real_caches(
    model: TinyDeepSeek | TinyLlama, options: ContextOptions, tmp_path: Path
) -> None:
    path = model.write(tmp_path / "model.gguf")
    read = gguf.read(path)
    n_trunk = model.n_layers
    cells = n_cells(
        options.n_ctx,
        n_seq_max=options.n_seq_max,
        unified=options.kv_unified,
        n_ctx_train=read.integer("context_length"),
    )
    per_token = [kv_bytes_per_token(read, layer, options.type_k, options.type_v) for layer in range(n_trunk)]
    settings = runs(("CPU", 1), ("CUDA0", read.n_layers))
    with load(path, settings, options, stand_ins=True) as loaded:
        found = loaded.kv_bytes()
    assert set(found) == {"CPU", "CUDA0"}
    assert abs(found["CPU"] - per_token[0] * cells) <= SIZE_RESOLUTION_BYTES
    assert abs(found["CUDA0"] - sum(per_token[1:]) * cells) <= SIZE_RESOLUTION_BYTES


def test_closing_frees_everything_and_stops_the_stand_ins(deepseek: Path) -> None:
    loaded = load(deepseek, runs(("CUDA0", 5)), CONTEXT, stand_ins=True)
    process = Path(f"/proc/{loaded.stand_in_pid}")
    assert process.exists()
    loaded.close()
    loaded.close()
    assert not process.exists()
    assert (loaded.model, loaded.context, loaded.stand_in_pid) == (None, None, None)


def test_progress_is_reported_and_may_cancel(deepseek: Path) -> None:
    shares: list[float] = []
    with load(deepseek, LlamaSettings(n_gpu_layers=0), CONTEXT, progress=shares.append):
        pass
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    with pytest.raises(LlamaCppError, match="refused to load"):
        load(deepseek, LlamaSettings(n_gpu_layers=0), CONTEXT, progress=lambda share: share < 0.5)


def test_garbage_is_refused_and_a_model_still_loads_afterwards(deepseek: Path, tmp_path: Path) -> None:
    path = tmp_path / "garbage.gguf"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(LlamaCppError) as raised:
        load(path, runs(("CUDA0", 5)), CONTEXT, stand_ins=True)
    assert any("invalid magic characters" in line for line in raised.value.log)
    with load(deepseek, runs(("CUDA0", 5)), CONTEXT, stand_ins=True) as loaded:
        assert loaded.model_bytes()


def test_a_missing_gpu_is_an_error_without_stand_ins(deepseek: Path) -> None:
    with pytest.raises(DeviceError, match="no device CUDA9 here; it has CPU"):
        load(deepseek, runs(("CUDA9", 5)), CONTEXT)


@pytest.mark.parametrize(
    ("load_mode", "cpu_bytes", "chosen"),
    [("auto", 100, "none"), ("auto", 1_000_000, "auto"), ("auto", None, "none"), ("mlock", 1_000_000, "mlock")],
)
def test_weights_are_read_if_they_fit_and_mapped_if_not(
    deepseek: Path,
    monkeypatch: pytest.MonkeyPatch,
    load_mode: Literal["auto", "mlock"],
    cpu_bytes: int | None,
    chosen: str,
) -> None:
    monkeypatch.setattr(load_module, "free_memory_bytes", lambda: 1_000_000)
    assert chosen_load_mode(deepseek, LlamaSettings(n_gpu_layers=0, load_mode=load_mode), cpu_bytes) == chosen
