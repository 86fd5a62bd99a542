"""Verification: right settings pass whatever their shape, and every kind of wrong place is one line of the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ktllama.devices import DeviceMap
from ktllama.lower.settings import LlamaSettings
from ktllama.model import gguf
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.dry_run import DryRun, dry_run
from ktllama.runtime.verify import Mismatch, Tally, Verification, compare, verify
from tests.runtime.plans import plan, runs, with_tensor_on
from tests.runtime.tiny_models import TinyDeepSeek, TinyLlama

CONTEXT = ContextOptions(n_ctx=512)
EXPERTS = r"blk\.\d+\.ffn_(gate|up|down|gate_up)_exps\.weight"


def _tally(n: int) -> Tally:
    return Tally(checked=n, matched=n)


def _all_of(device: str, n_layers: int) -> tuple[str, ...]:
    return (device,) * (n_layers + 1)


@pytest.mark.parametrize(
    ("layers", "settings", "overrides"),
    [
        (_all_of("CPU", 4), LlamaSettings(n_gpu_layers=0), None),
        (_all_of("CUDA0", 4), runs(("CUDA0", 5)), {EXPERTS: "CPU"}),
        (("CPU", "CPU", "CUDA0", "CUDA0", "CUDA0"), runs(("CUDA0", 3)), None),
        (("CUDA0", "CUDA0", "CPU", "CUDA0", "CUDA1"), runs(("CUDA0", 2), ("CPU", 1), ("CUDA0", 1), ("CUDA1", 1)), None),
        (("CUDA0", "CUDA0", "CUDA0", "CPU", "CPU"), runs(("CUDA0", 3), ("CPU", 2)), {EXPERTS: "CPU"}),
        (("CUDA0", "CUDA0", "CUDA1", "CUDA1", "CUDA1"), runs(("CUDA0", 2), ("CUDA1", 3)), {r"blk\.0\.": "CUDA1"}),
    ],
)
def test_right_settings_pass(
    deepseek: Path, layers: tuple[str, ...], settings: LlamaSettings, overrides: Mapping[str, str] | None
) -> None:
    model = gguf.read(deepseek)
    placement = plan(model, layers, overrides)
    with_overrides = runs(
        *zip(settings.devices, settings.tensor_split, strict=True), overrides=overrides, streams=settings.op_offload
    )
    settings = replace(with_overrides, n_gpu_layers=settings.n_gpu_layers)
    found = verify(placement, settings, deepseek, CONTEXT)
    assert found.mismatches == ()
    assert (found.layers, found.kv, found.tensors) == (_tally(5), _tally(4), _tally(len(model.tensors)))
    n_overridden = len(found.dry_run.overridden)
    assert found.overrides == _tally(n_overridden)
    assert (n_overridden > 0) == bool(overrides)


@pytest.mark.parametrize(
    "model",
    [
        TinyDeepSeek(fused=True),
        TinyDeepSeek(tied=True),
        TinyDeepSeek(legacy=True),
        TinyDeepSeek(expert_type="Q4_0"),
        TinyDeepSeek(mtp=True),
        TinyDeepSeek(n_files=2),
        TinyLlama(n_layers=4),
        TinyLlama(n_layers=4, tied=False, rope_freqs=True),
        TinyLlama(n_layers=4, head_count_array=True),
    ],
    ids=lambda model: repr(model).partition("(")[0],
)
def test_every_kind_of_model_passes(model: TinyDeepSeek | TinyLlama, tmp_path: Path) -> None:
    path = model.write(tmp_path / "model.gguf")
    read = gguf.read(path)
    n_mtp = read.n_layers - 4
    layers = ("CUDA0", "CPU", "CUDA0", "CUDA1", *["CUDA1"] * n_mtp, "CUDA1")
    settings = runs(("CUDA0", 1), ("CPU", 1), ("CUDA0", 1), ("CUDA1", 2 + n_mtp), overrides={EXPERTS: "CPU"})
    found = verify(plan(read, layers, {EXPERTS: "CPU"}, n_mtp=n_mtp), settings, path, CONTEXT)
    assert found.mismatches == ()
    assert found.ok
    n_loaded = sum(not tensor.name.startswith("blk.4.") for tensor in read.tensors)
    assert (found.layers, found.kv, found.tensors) == (
        _tally(read.n_layers + 1),
        _tally(read.n_layers),
        _tally(n_loaded),
    )


def test_bytes_are_counted_by_device(deepseek: Path) -> None:
    model = gguf.read(deepseek)
    placement = plan(model, ("CUDA0", "CPU", "CUDA1", "CUDA1", "CUDA1"))
    found = verify(placement, runs(("CUDA0", 1), ("CPU", 1), ("CUDA1", 3)), deepseek, ContextOptions(n_ctx=300))
    # 48 values of two bytes a token and layer, 512 cells
    assert found.kv_bytes == {"CUDA0": 96 * 512, "CPU": 96 * 512, "CUDA1": 2 * 96 * 512}
    assert sum(found.weight_bytes.values()) == model.n_bytes
    assert {device: n > 0 for device, n in found.compute_bytes.items()} == {"CUDA0": True, "CPU": True, "CUDA1": True}


@pytest.fixture(scope="module")
def done(deepseek: Path) -> DryRun:
    """A dry run with two runs and layer 3's experts on the CPU."""
    return dry_run(deepseek, SETTINGS, CONTEXT)


SETTINGS = runs(("CUDA0", 2), ("CUDA1", 3), overrides={r"blk\.3\.ffn_.*_exps": "CPU"})
LAYERS = ("CUDA0", "CUDA0", "CUDA1", "CUDA1", "CUDA1")
MOVED = {r"blk\.3\.ffn_.*_exps": "CPU"}


def _compare(deepseek: Path, done: DryRun, layers: tuple[str, ...] = LAYERS) -> Verification:
    return compare(plan(gguf.read(deepseek), layers, MOVED), SETTINGS, CONTEXT, done, DeviceMap())


def test_the_fixture_is_right(deepseek: Path, done: DryRun) -> None:
    assert _compare(deepseek, done).mismatches == ()


def test_a_wrong_kv_cache_is_found(deepseek: Path, done: DryRun) -> None:
    placement = plan(gguf.read(deepseek), LAYERS, MOVED)
    placement = replace(placement, kv={**placement.kv, 1: "cpu"})
    found = compare(placement, SETTINGS, CONTEXT, done, DeviceMap())
    assert found.mismatches == (Mismatch(what="KV cache of layer 1", expected="CPU", found="CUDA0"),)
    assert found.kv == Tally(checked=4, matched=3)
    assert not found.ok


def test_a_kv_cache_without_a_plan_is_found(deepseek: Path, done: DryRun) -> None:
    placement = plan(gguf.read(deepseek), LAYERS, MOVED)
    placement = replace(placement, kv={0: "cuda:0", 1: "cuda:0", 2: "cuda:1"})
    found = compare(placement, SETTINGS, CONTEXT, done, DeviceMap())
    assert found.mismatches == (
        Mismatch(what="KV cache of layer 3", expected="nothing", found="CUDA1"),
        Mismatch(what="KV cache size", expected=f"{3 * 96 * 512} bytes", found="199229 bytes"),
    )


def test_a_wrong_tensor_is_found(deepseek: Path, done: DryRun) -> None:
    name = "blk.0.ffn_up.weight"
    placement = with_tensor_on(plan(gguf.read(deepseek), LAYERS, MOVED), name, "cuda:1")
    found = compare(placement, SETTINGS, CONTEXT, done, DeviceMap())
    assert found.mismatches == (Mismatch(what=f"tensor {name}", expected="CUDA1", found="CUDA0"),)


def test_a_wrong_override_is_found_once(deepseek: Path, done: DryRun) -> None:
    name = "blk.3.ffn_up_exps.weight"
    placement = with_tensor_on(plan(gguf.read(deepseek), LAYERS, MOVED), name, "cuda:1")
    found = compare(placement, SETTINGS, CONTEXT, done, DeviceMap())
    assert found.mismatches == (Mismatch(what=f"tensor {name}", expected="CUDA1", found="CPU"),)
    assert found.overrides == Tally(checked=3, matched=2)


def test_a_wrong_layer_is_found(deepseek: Path, done: DryRun) -> None:
    wrong = replace(done, layers={**done.layers, 4: "CUDA0"})
    found = _compare(deepseek, wrong)
    assert found.mismatches == (Mismatch(what="layer 4", expected="CUDA1", found="CUDA0"),)


def test_a_tensor_that_was_not_loaded_is_found(deepseek: Path, done: DryRun) -> None:
    assert done.tensors is not None
    wrong = replace(done, tensors={name: held for name, held in done.tensors.items() if name != "output.weight"})
    found = _compare(deepseek, wrong)
    assert found.mismatches == (Mismatch(what="tensor output.weight", expected="CUDA1", found="nothing"),)


def test_a_tensor_that_should_have_stayed_on_disk_is_found(deepseek: Path, done: DryRun) -> None:
    placement = plan(gguf.read(deepseek), LAYERS, MOVED)
    name = "output.weight"
    unloaded = replace(placement.tensors[name], loaded=False)
    placement = replace(placement, tensors={**placement.tensors, name: unloaded}, output_device=None)
    found = compare(placement, SETTINGS, CONTEXT, done, DeviceMap())
    assert found.mismatches == (Mismatch(what=f"tensor {name}", expected="nothing", found="CUDA1"),)


def test_a_tied_output_on_the_wrong_device_is_found(llama: Path) -> None:
    placement = replace(plan(gguf.read(llama), _all_of("CUDA0", 3)), output_device="cpu")
    found = verify(placement, runs(("CUDA0", 4)), llama, CONTEXT)
    assert found.mismatches == (Mismatch(what="tensor token_embd.weight", expected="CPU", found="CPU and CUDA0"),)


def test_the_log_alone_says_the_same(deepseek: Path, done: DryRun) -> None:
    by_log = replace(done, tensors=None)
    assert _compare(deepseek, by_log).mismatches == ()
    name = "blk.0.ffn_up.weight"
    placement = with_tensor_on(plan(gguf.read(deepseek), LAYERS, MOVED), name, "cpu")
    found = compare(placement, SETTINGS, CONTEXT, by_log, DeviceMap())
    assert found.mismatches == (Mismatch(what=f"tensor {name}", expected="CPU", found="CUDA0"),)


def test_other_names_for_the_devices_are_followed(deepseek: Path) -> None:
    chosen = DeviceMap(chosen={"cuda:0": "ROCm0"})
    placement = plan(gguf.read(deepseek), _all_of("CUDA0", 4))
    done = dry_run(deepseek, runs(("ROCm0", 5)), CONTEXT)
    found = compare(placement, runs(("ROCm0", 5)), CONTEXT, done, chosen)
    assert found.mismatches == ()
    assert set(found.weight_bytes) == {"CPU", "ROCm0"}
