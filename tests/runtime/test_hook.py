"""Placement for apps that call llama-cpp-python themselves: what is placed, what is not, and what is refused."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ktllama
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime import library as llama_library
from ktllama.runtime import tensor_map
from ktllama.runtime.device_list import buffer_device
from ktllama.runtime.hook import block_of_rules, placing
from tests.models import rule
from tests.runtime.own_process import in_own_process, process

CPU_RULES = rule("", "cpu")
GPU_RULES = rule("", "cuda:0")
HALF_RULES = rule(r"^model\.layers\.[01]\.", "cuda:0") + rule("", "cpu")
N_TENSORS, N_PER_LAYER, N_LAYERS = 29, 9, 3  # of the tiny llama model; its embedding is also its output


@pytest.fixture(scope="module")
def own_process() -> Iterator[ProcessPoolExecutor]:
    with process() as pool:
        yield pool


def _rules(folder: Path, text: str, name: str = "rules.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def _llama(path: Path, **keywords: Any) -> Any:
    import llama_cpp

    return llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, n_threads_batch=1, **keywords)


def _on(llm: Any) -> dict[str, int]:
    """How many tensors each device holds, as llama.cpp's own table has them."""
    library = llama_library.load()
    tensors = tensor_map.read(library, llm._model.model)
    assert tensors is not None
    return dict(Counter(buffer_device(library, tensor.buffer_type) for tensor in tensors))


def _hooks() -> tuple[object, object]:
    import llama_cpp

    return llama_cpp.llama_cpp.llama_model_load_from_file, llama_cpp.llama_cpp.llama_init_from_model


ALL_ON_GPU = {"CPU": 1, "RPC0": N_LAYERS * N_PER_LAYER + 2}  # the embedding twice: read on the CPU, output on the GPU
ALL_ON_CPU = {"CPU": N_LAYERS * N_PER_LAYER + 2}


@in_own_process
def test_a_model_is_placed_and_says_the_same(llama: Path, tmp_path: Path) -> None:
    plain = _llama(llama)
    wanted = plain("hello", max_tokens=8, temperature=0)["choices"]
    assert _on(plain) == ALL_ON_CPU
    with ktllama.placement(_rules(tmp_path, GPU_RULES), llama, stand_ins=True):
        llm = _llama(llama)
    assert _on(llm) == ALL_ON_GPU
    assert llm("hello", max_tokens=8, temperature=0)["choices"] == wanted
    assert _on(_llama(llama)) == ALL_ON_CPU


@in_own_process
def test_compiled_settings_are_applied(llama: Path, tmp_path: Path) -> None:
    settings = ktllama.translate(_rules(tmp_path, HALF_RULES), llama).settings
    with ktllama.applied(settings, llama, stand_ins=True):
        llm = _llama(llama)
    assert _on(llm) == {"CPU": N_PER_LAYER + 2, "RPC0": 2 * N_PER_LAYER}


@in_own_process
def test_the_hook_is_gone_after_the_block_and_after_an_exception(llama: Path, tmp_path: Path) -> None:
    rules, before = _rules(tmp_path, CPU_RULES), _hooks()
    with ktllama.placement(rules, llama):
        assert not any(function in before for function in _hooks())
        with ktllama.placement(rules, llama):
            inner = _hooks()
        assert _hooks() == inner
    assert _hooks() == before
    with pytest.raises(ZeroDivisionError), ktllama.placement(rules, llama):
        raise ZeroDivisionError
    assert _hooks() == before


@in_own_process
def test_rules_with_errors_never_install_it(llama: Path, tmp_path: Path) -> None:
    before = _hooks()
    with pytest.raises(ktllama.RulesetError), ktllama.placement(_rules(tmp_path, rule("", "gpu")), llama):
        pass
    with (
        pytest.raises(ktllama.DeviceError),
        ktllama.applied(LlamaSettings(n_gpu_layers=4, devices=("CUDA9",)), llama),
    ):
        pass
    assert _hooks() == before


@in_own_process
def test_a_function_that_somebody_put_on_top_stays(llama: Path, tmp_path: Path) -> None:
    import llama_cpp

    api, rules = llama_cpp.llama_cpp, _rules(tmp_path, GPU_RULES)
    before, paths = api.llama_model_load_from_file, []
    with ktllama.placement(rules, llama, stand_ins=True):
        ours = api.llama_model_load_from_file

        def on_top(path: bytes, params: Any) -> Any:
            paths.append(path)
            return ours(path, params)

        api.llama_model_load_from_file = on_top
    try:
        assert api.llama_model_load_from_file is on_top
        assert _on(_llama(llama)) == ALL_ON_CPU
        with ktllama.placement(rules, llama, stand_ins=True):
            assert _on(_llama(llama)) == ALL_ON_GPU
        assert len(paths) == 2
    finally:
        api.llama_model_load_from_file = before


@in_own_process
def test_other_models_in_the_block_are_left_alone(llama: Path, deepseek: Path, tmp_path: Path) -> None:
    with ktllama.placement(_rules(tmp_path, GPU_RULES), llama, stand_ins=True):
        other = _llama(deepseek)
        assert set(_on(other)) == {"CPU"}
        assert other.context_params.op_offload  # llama.cpp's default
        assert not _llama(llama).context_params.op_offload  # the rules': prefill on the device of the weights


@in_own_process
def test_a_model_is_known_by_any_of_its_names(llama: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(llama)
    with ktllama.placement(_rules(tmp_path, GPU_RULES), link, stand_ins=True):
        assert _on(_llama(llama)) == ALL_ON_GPU


@in_own_process
def test_nested_blocks_place_each_its_own(llama: Path, deepseek: Path, tmp_path: Path) -> None:
    cpu, gpu = _rules(tmp_path, CPU_RULES, "cpu.yaml"), _rules(tmp_path, GPU_RULES, "gpu.yaml")
    with ktllama.placement(cpu, deepseek), ktllama.placement(gpu, llama, stand_ins=True):
        assert _on(_llama(llama)) == ALL_ON_GPU
        assert set(_on(_llama(deepseek))) == {"CPU"}
        with ktllama.placement(gpu, llama, stand_ins=True):
            pass
        assert _on(_llama(llama)) == ALL_ON_GPU


@in_own_process
def test_a_worker_thread_of_the_app_loads_placed(llama: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # the thread is there before the block
        with ktllama.placement(_rules(tmp_path, GPU_RULES), llama, stand_ins=True):
            assert pool.submit(lambda: _on(_llama(llama))).result() == ALL_ON_GPU


@in_own_process
def test_two_threads_place_two_models_at_once(llama: Path, deepseek: Path, tmp_path: Path) -> None:
    gpu, cpu = _rules(tmp_path, GPU_RULES, "gpu.yaml"), _rules(tmp_path, CPU_RULES, "cpu.yaml")
    meet, before = threading.Barrier(2, timeout=60), _hooks()

    def place(rules: str, path: Path) -> dict[str, int]:
        with ktllama.placement(rules, path, stand_ins=True):
            meet.wait()
            found = _on(_llama(path))
            meet.wait()
        return found

    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            one, other = pool.submit(place, gpu, llama), pool.submit(place, cpu, deepseek)
        assert one.result() == ALL_ON_GPU
        assert set(other.result()) == {"CPU"}
    assert _hooks() == before


@in_own_process
def test_two_placements_of_one_file_are_refused_by_name(llama: Path, tmp_path: Path) -> None:
    cpu, gpu = _rules(tmp_path, CPU_RULES, "cpu.yaml"), _rules(tmp_path, GPU_RULES, "gpu.yaml")
    with ktllama.placement(gpu, llama, stand_ins=True):
        with pytest.raises(ktllama.PlacementConflictError) as raised, ktllama.placement(cpu, llama):
            pass
        assert _on(_llama(llama)) == ALL_ON_GPU
    assert str(raised.value) == (
        f"{llama} is being placed by {gpu} (n_gpu_layers=4) in a block that is still active, and {cpu} asks for "
        "n_gpu_layers=0: end one block before the other begins, or load with ktllama.Llama(..., rules=...), which "
        "minds only itself"
    )


@in_own_process
def test_a_constructors_own_placement_is_its_threads_alone(llama: Path, tmp_path: Path) -> None:
    own = block_of_rules(_rules(tmp_path, GPU_RULES), llama, options=None, stand_ins=True)
    with placing(own), ThreadPoolExecutor(1) as pool:
        assert _on(_llama(llama)) == ALL_ON_GPU
        assert pool.submit(lambda: _on(_llama(llama))).result() == ALL_ON_CPU


@pytest.mark.parametrize(
    ("rules", "keywords", "said"),
    [
        (CPU_RULES, {"n_gpu_layers": 3}, ("n_gpu_layers", 3, 0)),
        (CPU_RULES, {"n_gpu_layers": -1}, ("n_gpu_layers", -1, 0)),
        (GPU_RULES, {"n_gpu_layers": 2}, ("n_gpu_layers", 2, 4)),
        (GPU_RULES, {"split_mode": 2}, ("split_mode", 2, 1)),
        (GPU_RULES, {"main_gpu": 1}, ("main_gpu", 1, 0)),
        (GPU_RULES, {"tensor_split": [0.5, 0.5]}, ("tensor_split", [0.5, 0.5], [4])),
        (GPU_RULES, {"offload_kqv": False}, ("offload_kqv", False, True)),
        (rule("", "cuda:0", prefill_device="cuda:0"), {"op_offload": True}, None),
        (GPU_RULES, {"n_gpu_layers": 4}, None),
        (GPU_RULES, {"n_gpu_layers": -1}, None),
        (CPU_RULES, {"offload_kqv": False}, None),
    ],
)
@in_own_process
def test_what_the_caller_passes_is_held_against_the_rules(
    llama: Path, tmp_path: Path, rules: str, keywords: dict[str, Any], said: tuple[str, object, object] | None
) -> None:
    path = _rules(tmp_path, rules)
    with ktllama.placement(path, llama, stand_ins=True):
        if said is None:
            _llama(llama, **keywords)
            return
        with pytest.raises(ktllama.SettingsConflictError) as raised:
            _llama(llama, **keywords)
    option, given, wanted = said
    assert (raised.value.option, raised.value.given, raised.value.wanted) == said
    assert str(raised.value) == (
        f"{option}={given} was passed to llama-cpp-python for {llama}, but {path} asks for {option}={wanted}: leave it "
        "out, or change the rules"
    )


@in_own_process
def test_a_load_that_brings_its_own_devices_is_refused(llama: Path, tmp_path: Path) -> None:
    settings = LlamaSettings(n_gpu_layers=0)
    with (
        ktllama.placement(_rules(tmp_path, CPU_RULES), llama),
        pytest.raises(ktllama.SettingsConflictError, match="devices=a list of its own"),
    ):
        ktllama.load(llama, settings, ktllama.ContextOptions(n_ctx=64))


@in_own_process
def test_the_arrays_live_as_long_as_the_model_and_no_longer(llama: Path, tmp_path: Path) -> None:
    with ktllama.placement(_rules(tmp_path, HALF_RULES), llama, stand_ins=True):
        llm = _llama(llama)
        arrays = weakref.ref(llm.model_params.ktllama_kept_alive.params)
    gc.collect()
    assert arrays() is not None
    llm.close()
    del llm
    gc.collect()
    assert arrays() is None


@in_own_process
def test_models_that_come_and_go_in_one_block_are_all_placed(llama: Path, deepseek: Path, tmp_path: Path) -> None:
    with ktllama.placement(_rules(tmp_path, GPU_RULES), llama, stand_ins=True):
        for _ in range(4):  # freed handles come again, also for the other model
            placed = _llama(llama)
            assert (_on(placed), placed.context_params.op_offload) == (ALL_ON_GPU, False)
            placed.close()
            other = _llama(deepseek)
            assert (set(_on(other)), other.context_params.op_offload) == ({"CPU"}, True)
            other.close()


@in_own_process
def test_the_log_stays_the_apps(llama: Path, tmp_path: Path) -> None:
    import ctypes

    import llama_cpp

    callback, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    lines: list[bytes] = []
    own = llama_cpp.llama_log_callback(lambda _level, text, _user_data: lines.append(text))
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(user_data))
    llama_cpp.llama_log_set(own, ctypes.c_void_p(0))
    try:
        with ktllama.placement(_rules(tmp_path, CPU_RULES), llama):
            _llama(llama)
    finally:
        llama_cpp.llama_log_set(callback, user_data)
    assert any(b"n_ctx" in line for line in lines)


@in_own_process
def test_a_server_that_loads_at_a_request_is_placed(llama: Path, deepseek: Path, tmp_path: Path) -> None:
    pytest.importorskip("pydantic_settings", reason="llama_cpp.server needs it: pip install 'ktllama[examples]'")
    from llama_cpp.server.model import LlamaProxy
    from llama_cpp.server.settings import ModelSettings

    models = [ModelSettings(model=str(path), model_alias=path.stem, n_ctx=64) for path in (deepseek, llama)]
    with ktllama.placement(_rules(tmp_path, GPU_RULES), llama, stand_ins=True), ThreadPoolExecutor(1) as pool:
        proxy = LlamaProxy(models)
        assert set(_on(proxy("deepseek"))) == {"CPU"}
        assert pool.submit(lambda: _on(proxy("llama"))).result() == ALL_ON_GPU
        assert set(_on(proxy("deepseek"))) == {"CPU"}
        proxy.free()
