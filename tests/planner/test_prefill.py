"""The prefill model against numbers worked out by hand."""

from __future__ import annotations

import pytest

from ktllama.planner.cost import Assignment
from ktllama.planner.machine import Machine, Processor
from ktllama.planner.parts import Layer, ModelParts
from ktllama.planner.prefill import prefill_seconds, touched_bytes
from tests.planner.machines import part


@pytest.mark.parametrize(("ubatch", "rate"), [(512, 20), (1024, 39), (2048, 70), (4096, 120)])
def test_experts_streamed_over_a_link_as_measured(ubatch: int, rate: float) -> None:
    # 360 GB over 15 GB/s, and a GPU that does 400 tokens/s: 20, 39, 70, 120 tokens/s
    experts = part(360_000_000_000, 360e9 / 32)
    operations = 2 * 32 / 34 * experts.read_bytes  # Q8_0: 32 weights in 34 bytes
    model = ModelParts(
        layers=(Layer(index=0, device=None, core=part(0), kv_bytes=0, kv_read_bytes=0, matrices=(experts,)),),
        output=part(0),
    )
    machine = Machine(
        cpu=Processor(name="cpu", memory_bytes=None, bandwidth=1e11, default_flops=1e12),
        gpus=(Processor(name="cuda:0", memory_bytes=None, bandwidth=1e12, default_flops=400 * operations),),
        link_bandwidth=15e9,
    )
    assignment = Assignment(cores=("cuda:0",), matrices=(("cpu",),), output="cuda:0")
    seconds = prefill_seconds(model, assignment, machine, ubatch, stream_to="cuda:0")
    assert ubatch / seconds == pytest.approx(rate, rel=0.03)


def test_fewer_tokens_than_llama_cpp_offloads_stay_with_the_host() -> None:
    matrix = part(1000)
    model = ModelParts(
        layers=(Layer(index=0, device=None, core=part(0), kv_bytes=0, kv_read_bytes=0, matrices=(matrix,)),),
        output=part(500),
    )
    machine = Machine(
        cpu=Processor(name="cpu", memory_bytes=None, bandwidth=100.0, default_flops=1e9),
        gpus=(Processor(name="cuda:0", memory_bytes=None, bandwidth=1e6, default_flops=1e12),),
        link_bandwidth=1000.0,
    )
    assignment = Assignment(cores=("cuda:0",), matrices=(("cpu",),), output="cuda:0")
    # 1000 bytes read by the host at 100 a second; the output is not computed for a prompt
    assert prefill_seconds(model, assignment, machine, 31, stream_to="cuda:0") == pytest.approx(10.0)
    assert prefill_seconds(model, assignment, machine, 32, stream_to="cuda:0") == pytest.approx(1.0, rel=1e-3)
    assert prefill_seconds(model, assignment, machine, 32, stream_to=None) == pytest.approx(10.0)


def test_a_batch_touches_all_experts_but_those_that_nobody_chose() -> None:
    experts = part(256, 8)  # 8 of 256
    assert touched_bytes(experts, 1) == pytest.approx(8)
    assert touched_bytes(experts, 2) == pytest.approx(256 * (1 - (248 / 256) ** 2))
    assert touched_bytes(experts, 4096) == pytest.approx(256)
    assert touched_bytes(part(0), 5) == 0
