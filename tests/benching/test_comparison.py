"""Placements measured in turn, on models of a few layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktllama.benching import comparison
from ktllama.benching.comparison import Contender, Workload, compare
from ktllama.errors import DeviceError, LlamaCppError, ModelFileError
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.timing_session import TimingSession
from tests.runtime.tiny_models import TinyDeepSeek

CPU = LlamaSettings(n_gpu_layers=0)
CONTEXT = ContextOptions(n_ctx=256, n_threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(TinyDeepSeek().write(tmp_path_factory.mktemp("bench") / "deepseek.gguf"))


def contender(model: str, name: str = "one", settings: LlamaSettings = CPU) -> Contender:
    return Contender(name=name, model_path=model, settings=settings, context=CONTEXT)


@pytest.mark.parametrize("stays_loaded", [True, False])
def test_every_placement_is_first_in_turn(model: str, stays_loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "fit_together", lambda contenders: stays_loaded)
    workload = Workload(depths=(0, 40), prefill_tokens=16, decode_tokens=2, repetitions=2)
    order: list[tuple[str, int, int]] = []
    found = compare(
        [contender(model, "one"), contender(model, "other")],
        workload,
        progress=lambda name, repetition, depth: order.append((name, repetition, depth)),
    )
    assert order == [
        ("one", 0, 0), ("one", 0, 40), ("other", 0, 0), ("other", 0, 40),
        ("other", 1, 0), ("other", 1, 40), ("one", 1, 0), ("one", 1, 40),
    ]  # fmt: skip
    assert [one.contender.name for one in found] == ["one", "other"]
    for one in found:
        assert {depth: len(samples) for depth, samples in one.samples.items()} == {0: 2, 40: 2}
        assert all(timed.prefill_seconds > 0 < timed.decode_seconds for timed in one.samples[40])
        assert [speeds.depth for speeds in one.speeds] == [0, 40]
        assert one.loaded.n_ctx == 256
    assert [speeds.decode_ratio for speeds in found[0].speeds] == [None, None]
    ratio = found[1].speeds[1].decode_ratio
    assert ratio is not None
    pairs = zip(found[1].samples[40], found[0].samples[40], strict=True)
    ratios = sorted(first.decode_seconds / other.decode_seconds for other, first in pairs)
    assert ratio.n == 2
    assert [ratio.low, ratio.high] == pytest.approx(ratios)


def test_the_context_holds_what_the_deepest_measurement_needs() -> None:
    assert Workload(depths=(0, 1000), prefill_tokens=24, decode_tokens=4).n_ctx == 1024
    assert Workload(depths=(1000,), prefill_tokens=25, decode_tokens=4).n_ctx == 1280
    assert Workload(depths=(0,), prefill_tokens=0, decode_tokens=1).n_ctx == 256


def test_what_llama_cpp_refuses_is_an_error_with_its_words(model: str) -> None:
    with pytest.raises(LlamaCppError, match="refused to load") as raised:
        contender(__file__).load(stand_ins=False)
    assert any("gguf" in line for line in raised.value.log)
    on_a_gpu = LlamaSettings(n_gpu_layers=5, devices=("CUDA0",), tensor_split=(5,))
    with pytest.raises(DeviceError, match="CUDA0"):
        contender(model, settings=on_a_gpu).load(stand_ins=False)


def test_an_abort_of_llama_cpp_is_an_error_too(model: str) -> None:
    # with the host itself 17 backends: one more than llama.cpp's scheduler takes (GGML_SCHED_MAX_BACKENDS)
    settings = LlamaSettings(n_gpu_layers=5, devices=("CPU",) * 16, tensor_split=(*(1,) * 5, *(0,) * 11))
    with pytest.raises(LlamaCppError, match="SIGABRT") as raised:
        contender(model, settings=settings).load(stand_ins=False)
    assert "GGML_ASSERT" in "".join(raised.value.log)


def test_a_file_over_which_llama_cpp_would_abort_is_refused_by_its_name(tmp_path: Path) -> None:
    model = TinyDeepSeek(n_groups=2, n_groups_used=2).write(tmp_path / "aborts.gguf")
    with pytest.raises(ModelFileError, match="expert_group_used_count"):
        contender(str(model)).load(stand_ins=False)


def test_a_measurement_leaves_the_depth_as_it_was(model: str) -> None:
    with contender(model).load(stand_ins=False) as session:
        assert isinstance(session, TimingSession)
        for depth in (200, 0, 100, 200):  # back, forth, and from what was kept
            assert session.measure(depth, 16, 2).depth == depth
        with pytest.raises(LlamaCppError, match="do not fit a context of 256"):
            session.measure(250, 16, 2)
