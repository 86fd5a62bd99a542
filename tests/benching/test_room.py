"""Which placements stay loaded together, with GPUs that are not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktllama import assets
from ktllama.benching import room
from ktllama.benching.comparison import Contender
from ktllama.devices import DeviceMap
from ktllama.lower.settings import LlamaSettings
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.device_list import BackendDevice
from ktllama.translation import translate

GIB = 1 << 30


@pytest.fixture(autouse=True)
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    there = tuple(
        BackendDevice(name=name, description="", kind="gpu", backend="CUDA", memory_total=24 * GIB,
                      memory_free=free, buffer_type=name)
        for name, free in (("CUDA0", 24 * GIB), ("CUDA1", 0))
    )  # fmt: skip
    monkeypatch.setattr("ktllama.runtime.device_list.available", lambda: there)


def contender(devices: tuple[str, ...], gpu_bytes: dict[str, int] | None) -> Contender:
    return Contender(
        name="-".join(devices),
        model_path=str(assets.tiny_r1()),
        settings=LlamaSettings(n_gpu_layers=99, devices=devices, tensor_split=(99,) * len(devices)),
        context=ContextOptions(n_ctx=512),
        gpu_bytes=gpu_bytes,
    )


@pytest.mark.parametrize(
    ("contenders", "fit"),
    [
        ([contender(("CUDA0",), {"CUDA0": 20 * GIB})], True),  # one is alone whatever it needs
        ([contender(("CUDA0",), {"CUDA0": 20 * GIB})] * 2, False),
        ([contender(("CUDA0",), {"CUDA0": 5 * GIB})] * 2, True),
        ([contender(("CUDA0",), {"CUDA0": 5 * GIB})] * 3, False),
        ([contender(("CUDA0",), {"CUDA0": 20 * GIB}), contender(("CPU",), {})], True),
        ([contender(("CUDA0",), {"CUDA0": 20 * GIB}), contender(("CUDA2",), {"CUDA2": 20 * GIB})], True),
        ([contender(("CUDA0",), None), contender(("CUDA0",), {"CUDA0": 1})], False),  # not known
        ([contender(("CUDA1",), {"CUDA1": 1})] * 2, False),  # it does not say what is free
        ([contender(("CUDA2",), {"CUDA2": 20 * GIB})] * 2, True),  # not there: the host stands in
    ],
)
def test_placements_stay_loaded_where_every_gpu_has_room(contenders: list[Contender], fit: bool) -> None:
    assert room.fit_together(contenders) is fit


def test_placements_stay_loaded_where_the_host_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    size = Path(assets.tiny_r1()).stat().st_size
    two = [contender(("CPU",), {})] * 2
    for share, fit in ((2.6, True), (2.4, False)):
        monkeypatch.setattr(room, "free_memory_bytes", lambda share=share: int(share * size))
        assert room.fit_together(two) is fit


def test_weights_and_caches_of_a_gpu_are_counted() -> None:
    placement = translate("tiny-r1/1gpu", str(assets.tiny_r1())).placement
    small, large = (
        room.gpu_bytes(placement, ContextOptions(n_ctx=n_ctx), DeviceMap(chosen={"cuda:0": "Vulkan1"}))
        for n_ctx in (256, 512)
    )
    assert set(small) == {"Vulkan1"}
    # one latent and its rope values in f16, for each cell of each layer on the GPU
    n_layers = sum(device == "cuda:0" for device in placement.layers.values())
    width = placement.model.integer("attention.key_length")
    assert large["Vulkan1"] - small["Vulkan1"] == 256 * n_layers * width * 2 > 0
    assert small["Vulkan1"] >= placement.bytes_by_device()["cuda:0"] + 256 * n_layers * width * 2
