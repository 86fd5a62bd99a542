"""Headers of any content, from the bytes to the settings."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.errors import KtllamaError
from ktllama.model import gguf
from ktllama.model.kv_cache import kv_bytes_per_token
from ktllama.ruleset import loader
from ktllama.translation import analyse
from tests.lower.test_lowering import check_exact
from tests.model import gguf_bytes as raw
from tests.models import deepseek, rule

RULES = loader.loads(
    rule(r"^model\.layers\.[02468]\.", "cpu") + rule(r"experts\.[0-2]\.", "cuda:1") + rule("odd|,", "cuda:2")
)
KEYS = (
    "expert_count",
    "nextn_predict_layers",
    "attention.head_count",
    "attention.kv_lora_rank",
    "leading_dense_block_count",
)

NAMES = [tensor.name for tensor in deepseek(3).tensors]
HOSTILE = [
    "blk.0.odd",
    "blk.x",
    "blk.y.ssm_a.weight",
    "blk.1.ssm_a.weight",
    "blk.0..odd",
    "blk.1.ffn_{}.weight",
    "a,b=CPU",
    "[bold].x",
    "blk.1.ffn_gate_up_exps.weight",
    "blk.0.(.weight",
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.gguf"


def read_and_plan(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        model = gguf.read(path, header_only=True)
        done = analyse(RULES, model)
    except KtllamaError as fault:
        told = str(fault)
        assert told.isprintable()
        return
    assert set(done.placement.tensors) == {tensor.name for tensor in model.tensors}
    if not done.has_errors:
        check_exact(done.placement, done.lowering)
    with contextlib.suppress(KtllamaError):
        assert all(kv_bytes_per_token(model, layer) >= 0 for layer in done.placement.kv)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Well-formed headers that mean something odd: names, layers and sizes that do not go together."""
    architecture = draw(
        st.sampled_from(["deepseek2", "deepseek2", "llama", "qwen2moe", "falcon", "mamba", "none such"])
    )
    keys = [
        raw.text("general.architecture", architecture),
        raw.u32(f"{architecture}.block_count", draw(st.integers(0, 5))),
    ]
    for name in KEYS:
        kind = draw(st.integers(0, 3))
        number = draw(st.one_of(st.integers(0, 8), st.sampled_from([2**31, 2**32 - 1])))
        if kind == 1:
            keys.append(raw.u32(f"{architecture}.{name}", number))
        elif kind == 2:
            keys.append(
                draw(
                    st.sampled_from(
                        [raw.text(f"{architecture}.{name}", "x"), raw.strings(f"{architecture}.{name}", "x")]
                    )
                )
            )
    names = draw(st.lists(st.sampled_from(NAMES + HOSTILE), unique=True, min_size=1, max_size=25))
    tensors = [raw.tensor(name, offset=128 * number) for number, name in enumerate(names)]
    return raw.header(tuple(keys), tuple(tensors))


@given(content=headers())
@settings(max_examples=200, deadline=None)
def test_odd_headers_are_refused_or_planned_exactly(scratch: Path, content: bytes) -> None:
    read_and_plan(scratch, content)


WHOLE = raw.header(
    (
        raw.text("general.architecture", "deepseek2"),
        raw.u32("deepseek2.block_count", 3),
        raw.u32("deepseek2.expert_count", 4),
    ),
    tuple(raw.tensor(name, offset=128 * number) for number, name in enumerate(NAMES)),
)


@given(
    edits=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, len(WHOLE)),
)
@settings(max_examples=200, deadline=None)
def test_mutated_headers_are_refused_or_planned_exactly(
    scratch: Path, edits: list[tuple[int, int]], cut: int | None
) -> None:
    content = bytearray(WHOLE)
    for at, byte in edits:
        content[at] = byte
    read_and_plan(scratch, bytes(content[:cut]))


def test_the_whole_header_is_planned(scratch: Path) -> None:
    scratch.write_bytes(WHOLE)
    assert len(analyse(RULES, gguf.read(scratch, header_only=True)).placement.tensors) == len(NAMES)


def test_a_layer_without_tensors_moves_no_other_layers_cache(scratch: Path) -> None:
    names = ["blk.1.attn_norm.weight", "blk.2.attn_q_a.weight"]
    keys = (raw.text("general.architecture", "deepseek2"), raw.u32("deepseek2.block_count", 3))
    tensors = tuple(raw.tensor(name, offset=128 * number) for number, name in enumerate(names))
    scratch.write_bytes(raw.header(keys, tensors))
    done = analyse(RULES, gguf.read(scratch, header_only=True))
    assert dict(done.placement.kv) == {1: "cuda:0", 2: "cpu"}
    check_exact(done.placement, done.lowering)
