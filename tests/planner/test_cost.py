"""The model of decode against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ktllama.model.kv_cache import attention_operations
from ktllama.planner.cost import Assignment, beside_seconds, part_seconds, token_seconds
from ktllama.planner.machine import Machine, Processor
from ktllama.planner.parts import Layer, ModelParts, Part, with_nodes
from tests.models import deepseek, model

ASSUMED = Processor(name="cpu", memory_bytes=None, bandwidth=100.0, default_flops=1e12)
MEASURED = replace(
    ASSUMED,
    read_seconds={"Q8_0": 0.02},
    expert_seconds={"Q8_0": 0.03},
    attention_seconds=0.001,
    node_seconds=0.5,
)
LAYER = Layer(
    index=0,
    device=None,
    core=Part(tensors=(), n_bytes=100, reads=(("Q8_0", 100.0),)),
    kv_bytes=80,
    kv_read_bytes=40.0,
    matrices=(Part(tensors=(), n_bytes=800, reads=(("Q8_0", 200.0),), chosen=True),),
    attention_operations=1000.0,
)


def test_measured_seconds_replace_what_follows_from_bandwidth() -> None:
    core, experts = LAYER.core, LAYER.matrices[0]
    assert (part_seconds(core, ASSUMED), part_seconds(experts, ASSUMED)) == (1.0, 2.0)
    assert (part_seconds(core, MEASURED), part_seconds(experts, MEASURED)) == (2.0, 6.0)
    unknown = Part(tensors=(), n_bytes=50, reads=(("F32", 50.0),))
    assert part_seconds(unknown, MEASURED) == 0.5  # not measured: its bytes


def test_attention_costs_its_bytes_or_its_operations() -> None:
    assert beside_seconds(LAYER, ASSUMED) == pytest.approx(0.4)
    assert beside_seconds(LAYER, MEASURED) == pytest.approx(1.0)
    assert beside_seconds(replace(LAYER, kv_read_bytes=300.0), MEASURED) == pytest.approx(3.0)
    assert beside_seconds(replace(LAYER, n_nodes=10), MEASURED) == pytest.approx(6.0)


def test_a_token_adds_everything_up() -> None:
    output = Part(tensors=(), n_bytes=10, reads=(("Q8_0", 10.0),))
    parts = with_nodes(ModelParts(layers=(LAYER, LAYER), output=output), 8)
    gpu = replace(ASSUMED, name="cuda:0", bandwidth=1000.0)
    machine = Machine(cpu=MEASURED, gpus=(gpu,), crossing_seconds=0.25, token_seconds=7.0)
    assignment = Assignment(cores=("cuda:0", "cpu"), matrices=(("cpu",), ("cpu",)), output="cpu")
    # on the GPU 0.1 and 0.04; on the host 6, then 2 + 1 + four nodes of 0.5 + 6, and the output's 0.2; four crossings
    assert token_seconds(parts, assignment, machine) == pytest.approx(0.14 + 6 + 11 + 0.2 + 7 + 4 * 0.25)


def test_attention_is_of_all_heads_over_all_tokens() -> None:
    # MLA: 4 heads on keys of 96 and values of 64 values
    assert attention_operations(deepseek(), 0, 100) == 2 * 4 * (96 + 64) * 100
    grouped = model(["token_embd.weight"], n_layers=1, architecture="llama", **{"attention.value_length": 32})
    assert attention_operations(grouped, 0, 10) == 2 * 4 * (96 + 32) * 10
