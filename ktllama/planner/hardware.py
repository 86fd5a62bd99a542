"""How fast devices are where nobody measured them: assumptions, each of which can be overridden.

What a plan puts where depends on the ratios only, and those differ little between machines: a GPU reads its memory ten
times as fast as a host does. The predicted tokens/s are as good as these figures.
"""

from __future__ import annotations

from collections.abc import Mapping

from ktllama import devices
from ktllama.planner.errors import BudgetError
from ktllama.planner.machine import Machine, Processor

#: Host memory: half of what twelve channels of DDR4-3200 or four of DDR5-6400 give in theory. A desktop with two
#: channels has about 60, a server with twelve of DDR5 400 and more.
HOST_BANDWIDTH = 100e9

#: PCIe 4.0 x16 is 31.5 GB/s in theory; pinned copies reach about 25.
LINK_BANDWIDTH = 25e9

#: A GPU that nothing is known of: the memory of a 24 GB card of 2020 (936 GB/s), read at 85%.
GPU_BANDWIDTH = 800e9

#: Multiplications with quantized weights in llama.cpp's prefill. R1 (37 billion weights used a token) runs at 400
#: tokens/s with it, which is what the cards that stream its experts reach.
GPU_FLOPS = 30e12

#: The host's operations a second with the fastest type.
HOST_FLOPS = 1e12

#: How fast a host multiplies with a type, as a share of ``HOST_FLOPS``. Measured: prefill of one model on one AVX512
#: machine was 755 t/s in Q4_0, 655 in Q4_K_M, 650 in Q8_0, 300 in Q4_1. Types with repacked kernels there
#: (``ggml_repack_get_optimal_repack_type`` in ``ggml/src/ggml-cpu/repack.cpp``) are taken for as fast as Q4_K, others
#: for as slow as Q4_1. Floats are not dequantized, but take more memory bandwidth.
HOST_SHARES: Mapping[str, float] = {
    "Q4_0": 1.0,
    "Q4_K": 0.87,
    "Q8_0": 0.86,
    "IQ4_NL": 0.87,
    "MXFP4": 0.87,
    "Q2_K": 0.87,
    "F32": 0.6,
    "F16": 0.6,
    "BF16": 0.6,
}
OTHER_HOST_SHARE = 0.4

#: Memory bandwidth by the maker's data sheet, for GPUs that say who they are: (text in the description, bytes/s).
_KNOWN_GPUS: tuple[tuple[str, float], ...] = (
    ("H200", 4800e9), ("H100 PCIe", 2000e9), ("H100", 3350e9), ("A100", 1555e9), ("L40S", 864e9), ("L40", 864e9),
    ("RTX A6000", 768e9), ("RTX 6000 Ada", 960e9), ("RTX 5090", 1792e9), ("RTX 4090", 1008e9), ("RTX 4080", 717e9),
    ("RTX 3090", 936e9), ("RTX 3080", 760e9), ("RTX 3060", 360e9), ("Tesla T4", 320e9), ("Tesla P40", 347e9),
    ("MI300X", 5300e9), ("7900 XTX", 960e9), ("Arc(TM) A770", 560e9),
)  # fmt: skip
_REACHED_SHARE = 0.85


def machine(
    vram: Mapping[str, int],
    ram: int | None,
    *,
    bandwidth: Mapping[str, float] | None = None,
    link_bandwidth: float | None = None,
    descriptions: Mapping[str, str] | None = None,
) -> Machine:
    """A machine with these memories in bytes (``ram`` None: as much as it takes), and speeds that are assumed.

    ``bandwidth`` (by device) and ``link_bandwidth``, in bytes a second, replace assumptions; ``descriptions`` are what
    GPUs call themselves.

    Raises:
        BudgetError: for the bandwidth of a device that is not there.
    """
    given = dict(bandwidth or {})
    if unknown := sorted(set(given) - set(vram) - {devices.CPU}):
        there = ", ".join((devices.CPU, *vram))
        raise BudgetError(f"--bandwidth {unknown[0]}: no such device here; there are {there}")
    return Machine(
        cpu=Processor(
            name=devices.CPU,
            memory_bytes=ram,
            bandwidth=given.get(devices.CPU, HOST_BANDWIDTH),
            default_flops=HOST_FLOPS * OTHER_HOST_SHARE,
            flops={name: HOST_FLOPS * share for name, share in HOST_SHARES.items()},
        ),
        gpus=tuple(
            Processor(
                name=name,
                memory_bytes=n_bytes,
                bandwidth=given.get(name) or _gpu_bandwidth((descriptions or {}).get(name, "")),
                default_flops=GPU_FLOPS,
            )
            for name, n_bytes in vram.items()
        ),
        link_bandwidth=link_bandwidth or LINK_BANDWIDTH,
    )


def _gpu_bandwidth(description: str) -> float:
    known = next((speed for name, speed in _KNOWN_GPUS if name in description), None)
    return GPU_BANDWIDTH if known is None else known * _REACHED_SHARE
