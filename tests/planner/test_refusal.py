"""Refusals: what they propose fits, and a little less does not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ktllama.errors import KtllamaError
from ktllama.model import presets
from ktllama.model.model_file import ModelFile
from ktllama.model.tensor_types import TENSOR_TYPES
from ktllama.planner import hardware, sessions
from ktllama.planner.errors import PlanError
from ktllama.planner.planning import Planner, planner
from ktllama.planner.wishes import ContextWishes
from ktllama.runtime.dry_run_session import DryRunSession
from ktllama.translation import Options
from ktllama.units import parse_bytes
from tests.planner.machines import GIB

PRESET = "deepseek-v2-lite"
WISHES = ContextWishes(n_ctx=32768, ubatch=512, op_offload=False)
CARD = {"cuda:0": 8 * GIB}
SHORT = hardware.machine(CARD, 11 * GIB // 4)


@pytest.fixture(scope="module")
def session() -> Iterator[DryRunSession]:
    with sessions.start(SHORT, Options().device_map) as running:
        yield running


@pytest.fixture(scope="module")
def ready(session: DryRunSession) -> Iterator[Planner]:
    with planner(None, None, session, machine=SHORT, wishes=WISHES, preset=PRESET) as made:
        yield made


@pytest.fixture(scope="module")
def refusal(ready: Planner) -> PlanError:
    with pytest.raises(PlanError) as raised:
        ready.plan()
    return raised.value


def fits(ready: Planner, *, ram: int | None = None, wishes: ContextWishes = WISHES) -> bool:
    try:
        made = ready.trial(machine=hardware.machine(CARD, ram) if ram else SHORT, wishes=wishes).plan()
    except KtllamaError:
        return False
    assert all(one.fits for one in made.memory)
    return True


def proposed(refusal: PlanError, words: str) -> str:
    return next(change for change in refusal.changes if words in change)


def test_it_is_right_and_says_how_much_is_missing(refusal: PlanError) -> None:
    assert refusal.reason.startswith(
        "DeepSeek V2 Lite Chat Q4_K_M does not fit: 2.75 GiB of RAM and 8 GiB on cuda:0 are "
    )
    model = presets.load(PRESET)
    kv = 32768 * 27 * (512 + 64) * 2
    # a bound: all memory but the margins, and a card's buffer for logits, is less than weights and KV
    logits = 512 * model.integer("vocab_size") * 4
    beyond = model.n_bytes + kv + logits + 2 * WISHES.margin - (8 * GIB + 11 * GIB // 4)
    assert 0 < beyond <= refusal.missing_bytes < beyond + GIB // 2


def test_the_context_that_it_proposes_is_nearly_the_longest(ready: Planner, refusal: PlanError) -> None:
    n_ctx = int(proposed(refusal, "--ctx ").split()[1])
    assert fits(ready, wishes=replace(WISHES, n_ctx=n_ctx))
    assert not fits(ready, wishes=replace(WISHES, n_ctx=n_ctx + max(512, n_ctx // 20)))


def test_the_ram_that_it_proposes_is_nearly_the_least(ready: Planner, refusal: PlanError) -> None:
    ram = parse_bytes(proposed(refusal, " of RAM").removesuffix(" of RAM").replace(" ", ""))
    assert fits(ready, ram=ram)
    assert not fits(ready, ram=ram - ram // 40)


def test_the_cache_type_that_it_proposes_does(ready: Planner, refusal: PlanError) -> None:
    assert "--kv-type q8_0" in refusal.changes
    assert fits(ready, wishes=replace(WISHES, kv_type="q8_0"))


def test_weights_of_the_size_that_it_proposes_do(session: DryRunSession, refusal: PlanError) -> None:
    words = proposed(refusal, "a quantization of at most ")
    most = parse_bytes(words.removeprefix("a quantization of at most ").split(",")[0].replace(" ", ""))
    model = presets.load(PRESET)
    smaller = with_experts_in(model, "Q3_K")
    assert most * 0.8 < smaller.n_bytes <= most < model.n_bytes
    with planner(None, smaller, session, machine=SHORT, wishes=WISHES) as ready:
        assert all(one.fits for one in ready.plan().memory)


def test_a_card_too_small_for_anything_leaves_it_all_to_the_host() -> None:
    tiny = hardware.machine({"cuda:0": GIB // 2}, 2 * GIB)
    wishes = replace(WISHES, n_ctx=4096)
    with (
        sessions.start(tiny, Options().device_map) as session,
        planner(None, None, session, machine=tiny, wishes=wishes, preset=PRESET) as ready,
        pytest.raises(PlanError) as raised,
    ):
        ready.plan()
    # the host alone holds 8.9 GiB of weights
    assert raised.value.missing_bytes > 6.8 * GIB
    ram = parse_bytes(proposed(raised.value, " of RAM").removesuffix(" of RAM").replace(" ", ""))
    assert ram > presets.load(PRESET).n_bytes


def with_experts_in(model: ModelFile, tensor_type: str) -> ModelFile:
    """``model`` with its experts' tensors in another type."""
    known = TENSOR_TYPES[tensor_type]
    return replace(
        model,
        tensors=tuple(
            replace(one, type=tensor_type, n_bytes=math.prod(one.shape) // known.block_items * known.block_bytes)
            if "_exps" in one.name and one.shape[0] % known.block_items == 0
            else one
            for one in model.tensors
        ),
    )
