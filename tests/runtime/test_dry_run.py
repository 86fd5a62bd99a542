"""Dry runs: llama.cpp places a model in a child process; what it says there comes back, whatever happens to it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from ktllama.errors import DeviceError, LlamaCppError
from ktllama.lower.settings import LlamaSettings
from ktllama.model import presets, sparse
from ktllama.runtime import dry_run as dry_run_module
from ktllama.runtime import preconditions
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.dry_run import dry_run
from tests.runtime.plans import runs
from tests.runtime.tiny_models import TinyDeepSeek, cut_after_header

CONTEXT = ContextOptions(n_ctx=512)


def test_layers_caches_and_tensors_are_reported_under_the_settings_names(deepseek: Path) -> None:
    settings = runs(("CUDA0", 1), ("CPU", 1), ("CUDA1", 3), overrides={r"blk\.3\.ffn_.*_exps": "CPU"})
    done = dry_run(deepseek, settings, CONTEXT)
    assert done.layers == {0: "CUDA0", 1: "CPU", 2: "CUDA1", 3: "CUDA1", 4: "CUDA1"}
    assert done.kv == {0: "CUDA0", 1: "CPU", 2: "CUDA1", 3: "CUDA1"}
    assert done.overridden == {f"blk.3.ffn_{name}_exps.weight": ("CPU",) for name in ("down", "gate", "up")}
    assert done.tensors is not None
    assert done.tensors["token_embd.weight"] == ("CPU",)
    assert done.tensors["output.weight"] == ("CUDA1",)
    assert done.tensors["blk.0.attn_q_a.weight"] == ("CUDA0",)
    assert done.tensors["blk.3.ffn_up_exps.weight"] == ("CPU",)
    assert done.tensors["blk.3.ffn_up_shexp.weight"] == ("CUDA1",)
    assert set(done.tensors) == done.asked & {name for name, _, _ in TinyDeepSeek().tensors()}
    assert set(done.compute_bytes) == {"CPU", "CUDA0", "CUDA1"}
    assert done.stand_ins == ("CUDA0", "CUDA1")


def test_no_devices_means_that_everything_is_on_the_cpu(llama: Path) -> None:
    done = dry_run(llama, LlamaSettings(n_gpu_layers=0), CONTEXT)
    assert set(done.layers.values()) == set(done.kv.values()) == {"CPU"}
    assert done.bound == done.bound[:1]


def test_a_file_that_ends_after_its_header_is_enough(deepseek: Path, tmp_path: Path) -> None:
    header = cut_after_header(deepseek, tmp_path / "header.gguf")
    settings = runs(("CUDA0", 5))
    whole, cut = dry_run(deepseek, settings, CONTEXT), dry_run(header, settings, CONTEXT)
    assert (cut.layers, cut.kv, cut.tensors) == (whole.layers, whole.kv, whole.tensors)


def test_split_files_work_whole_and_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TinyDeepSeek(n_files=3).write(tmp_path / "model.gguf")
    settings = runs(("CUDA0", 5))
    whole = dry_run(first, settings, CONTEXT)
    (tmp_path / "cut").mkdir()
    (tmp_path / "temporary").mkdir()
    for part in tmp_path.glob("*.gguf"):
        cut_after_header(part, tmp_path / "cut" / part.name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    cut = dry_run(tmp_path / "cut" / first.name, settings, CONTEXT)
    assert (cut.layers, cut.kv, cut.tensors) == (whole.layers, whole.kv, whole.tensors)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_large_sparse_model_takes_no_memory_and_no_disk(tmp_path: Path) -> None:
    model = presets.load("deepseek-v2-lite")
    path = tmp_path / "model.gguf"
    sparse.write(model, path, vocabulary_size=1024 * 100)
    assert path.stat().st_blocks * 512 < 16 * 1024 * 1024 < path.stat().st_size
    done = dry_run(path, runs(("CUDA0", 28), overrides={"_exps": "CPU"}), ContextOptions(n_ctx=1024))
    assert done.tensors is not None
    assert set(done.tensors) == {tensor.name for tensor in model.tensors}


def test_garbage_is_refused_with_llama_cpps_words(tmp_path: Path) -> None:
    path = tmp_path / "garbage.gguf"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(LlamaCppError) as raised:
        dry_run(path, LlamaSettings(n_gpu_layers=0), CONTEXT)
    assert raised.value.reason == f"llama.cpp refused to load {path}"
    assert any("invalid magic characters" in line for line in raised.value.log)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LlamaCppError, match="no such file"):
        dry_run(tmp_path / "none.gguf", LlamaSettings(n_gpu_layers=0), CONTEXT)


def test_a_failed_assertion_of_llama_cpp_is_an_error_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as many groups as experts: llama_model_base::load_hparams asserts that there are fewer. Usually we ask first.
    monkeypatch.setattr(preconditions, "check_file", lambda _path: None)
    path = TinyDeepSeek(n_groups=8).write(tmp_path / "aborts.gguf")
    with pytest.raises(LlamaCppError) as raised:
        dry_run(path, runs(("CUDA0", 5)), CONTEXT)
    assert raised.value.reason == "llama.cpp was killed by SIGABRT during the dry run"
    assert any("GGML_ASSERT(hparams.n_expert_groups < hparams.n_expert) failed" in line for line in raised.value.log)


def test_a_context_that_llama_cpp_refuses_is_an_error(deepseek: Path) -> None:
    with pytest.raises(LlamaCppError) as raised:
        dry_run(deepseek, LlamaSettings(n_gpu_layers=0), ContextOptions(n_ctx=512, type_k="q8_0"))
    assert raised.value.reason == "llama.cpp refused to make a context of 512 tokens"
    assert any("does not support different K (q8_0) and V (f16)" in line for line in raised.value.log)


def test_settings_that_cannot_be_expressed_are_an_error(deepseek: Path) -> None:
    with pytest.raises(LlamaCppError, match="17 runs of layers"):
        dry_run(deepseek, runs(*[("CUDA0", 1)] * 17), CONTEXT)


def test_a_missing_device_that_must_be_real_is_an_error(deepseek: Path) -> None:
    settings = runs(("CUDA7", 5))
    with pytest.raises(DeviceError, match="no device CUDA7 here; it has CPU"):
        dry_run(deepseek, settings, CONTEXT, stand_ins=False)
    with pytest.raises(DeviceError, match="no device CUDA7 here; it has CPU"):
        dry_run(deepseek, settings, CONTEXT, explicit_devices=("CUDA7",))


def test_another_version_is_refused(deepseek: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise LlamaCppError("another version")

    monkeypatch.setattr(dry_run_module, "require_pinned_version", refuse)
    with pytest.raises(LlamaCppError, match="another version"):
        dry_run(deepseek, LlamaSettings(n_gpu_layers=0), CONTEXT)
