"""Whole plans: within every budget, proven by llama.cpp's dry run, and the same when their rule file is translated."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from ktllama import shipped_rules
from ktllama.devices import DeviceMap
from ktllama.errors import LlamaCppError, ModelFileError, RulesetError
from ktllama.model import gguf, presets, sparse
from ktllama.model.model_file import Tensor
from ktllama.planner import hardware
from ktllama.planner.assigning import Reserve, raised
from ktllama.planner.choosing import choose
from ktllama.planner.errors import BudgetError, FixedPartError
from ktllama.planner.fill import differences
from ktllama.planner.fixed_part import check_present
from ktllama.planner.memory import stored_bytes
from ktllama.planner.opening import open_rules, sparse_file
from ktllama.planner.plain_overrides import plain
from ktllama.planner.plan import Candidate, Plan
from ktllama.planner.planning import plan
from ktllama.planner.wishes import ContextWishes
from ktllama.ruleset import loader
from ktllama.ruleset.rules import Ruleset
from ktllama.runtime import preconditions
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.device_binding import BoundDevice
from ktllama.runtime.device_list import BackendDevice
from ktllama.runtime.dry_run import dry_run
from ktllama.runtime.dry_run_log import SIZE_RESOLUTION_BYTES
from ktllama.runtime.dry_run_session import DryRunSession
from ktllama.runtime.load import load
from ktllama.translation import Options, translate
from tests import corpus
from tests.models import rule
from tests.planner.machines import GIB
from tests.runtime.plans import runs
from tests.runtime.tiny_models import TinyDeepSeek

MIB = 1 << 20
QUICK = ContextWishes(ubatch=512, op_offload=False)


def gpus(*sizes: int) -> dict[str, int]:
    return {f"cuda:{number}": size * GIB for number, size in enumerate(sizes)}


def assert_within_budgets(made: Plan) -> None:
    assert [one for one in made.memory if not one.fits] == []


@pytest.mark.parametrize(
    ("preset", "vram", "ram", "wishes"),
    [
        ("deepseek-r1", (24,), 384, ContextWishes()),
        ("deepseek-v2-lite", (8,), None, ContextWishes(n_ctx=4096)),
        ("glm-4.5-air", (24, 12), 128, ContextWishes(n_seq_max=4)),
        ("gpt-oss-20b", (8, 4), 32, replace(QUICK, n_ctx=8192)),
        ("r1-distill-llama-70b", (), 64, QUICK),
    ],
)
def test_a_plan_fits_and_its_rules_give_the_same_placement(
    preset: str, vram: tuple[int, ...], ram: int | None, wishes: ContextWishes
) -> None:
    made = plan(preset=preset, machine=hardware.machine(gpus(*vram), ram and ram * GIB), wishes=wishes)
    assert_within_budgets(made)
    again = translate(loader.loads(made.rules, file="planned"), made.translation.model)
    assert again.settings == made.translation.settings
    assert differences(made.translation.placement, again.placement) == ()
    used = {one.device: one.used for one in made.memory}
    assert all(used[device] > 0 for device in gpus(*vram))  # idle memory would be wasted


def test_a_plan_for_r1_on_one_card_streams_its_experts_in_large_ubatches() -> None:
    made = plan(preset="deepseek-r1", machine=hardware.machine(gpus(24), 512 * GIB))
    assert made.context.n_ubatch == 4096
    assert made.translation.settings.op_offload
    assert {one.ubatch for one in made.candidates} == {512, 1024, 2048, 4096}
    card, host = made.memory
    # the largest streamed tensor, a down matrix in Q6_K: 2048 x 7168 x 256 weights
    assert card.streaming == 2048 * 7168 * 256 // 256 * 210
    assert set(card.weights) == {
        "attention",
        "dense FFN",
        "shared experts",
        "routed experts",
        "norms and router",
        "output",
    }
    assert host.kv == 0
    assert 5 < made.prediction.decode_tokens_per_second < 10


@pytest.mark.parametrize(
    ("name", "preset", "vram"),
    [("deepseek-r1/24+12gb", "deepseek-r1", (24, 12)), ("qwen3-30b/1x12gb", "qwen3-30b-a3b", (12,))],
)
def test_every_module_that_rules_fix_stays_where_it_is(name: str, preset: str, vram: tuple[int, ...]) -> None:
    assert_kept(open_experts(Path(shipped_rules.find(name))), preset, gpus(*vram))


@corpus.needs_corpus
@pytest.mark.parametrize(
    ("name", "preset", "vram"),
    [
        ("DeepSeek-V2-Lite-Chat.yaml", "deepseek-v2-lite", {"cuda:0": 6 * GIB}),
        ("Qwen2-57B-A14B-Instruct-multi-gpu.yaml", "qwen2-57b-a14b", gpus(10, 12)),
        ("xpu__DeepSeek-V3-Chat.yaml", "deepseek-v3", {"xpu:0": 24 * GIB}),
    ],
)
def test_what_ktransformers_own_rules_fix_stays_too(name: str, preset: str, vram: dict[str, int]) -> None:
    assert_kept(open_experts(corpus.rule_file(name)), preset, vram)


def assert_kept(opened: Ruleset, preset: str, vram: dict[str, int]) -> None:
    machine = hardware.machine(vram, 512 * GIB)
    made = plan(opened, preset=preset, machine=machine, wishes=QUICK)
    before = open_rules(opened, None, preset, None, Options(), machine).placement
    assert_within_budgets(made)
    after = made.translation.placement
    fixed = {one.name: one.device for one in before.tensors.values() if one.device != "auto"}
    assert {one: after.tensors[one].device for one in fixed} == fixed
    assert after.layers == before.layers
    assert len(fixed) < len(before.tensors)
    # where the fixed part leaves room, experts go there too
    moved = [after.tensors[name].device for name, one in before.tensors.items() if one.device == "auto"]
    assert set(moved) > {"cpu"}


def open_experts(path: Path) -> Ruleset:
    """A rule file with its experts ``auto``."""
    read = loader.load(path)
    opened = (
        replace(one, generate_device="auto", prefill_device=None) if "Experts" in one.replace_class else one
        for one in read.rules
    )
    return replace(read, rules=tuple(opened))


def test_rules_that_alone_are_over_a_budget_are_named_with_what_they_take() -> None:
    rules = loader.loads(
        rule(r"^model\.layers\..*\.mlp\.experts$", "auto", recursive=False) + rule("", "cuda:0"), file="r.yaml"
    )
    with pytest.raises(FixedPartError) as raised:
        plan(rules, preset="deepseek-r1", machine=hardware.machine(gpus(8), None), wishes=QUICK)
    fault = raised.value
    assert (fault.device, fault.budget_bytes) == ("cuda:0", 8 * GIB)
    assert fault.needed_bytes > 11 * GIB
    assert fault.costs[0].rule == "rule 1 (line 4)"
    assert "GiB more than its budget of 8 GiB; the rules that take most: rule 1 (line 4): " in str(fault)


def test_rules_for_a_device_without_a_budget_are_refused() -> None:
    rules = loader.loads(rule(r"\.mlp\.", "cuda:3") + rule("", "auto"), file="r.yaml")
    with pytest.raises(BudgetError) as raised:
        plan(rules, preset="deepseek-v2-lite", machine=hardware.machine(gpus(24), None))
    assert str(raised.value) == (
        r"the rules put rule 0 (line 1), \.mlp\. on cuda:3, for which there is no budget; --vram gives cuda:0"
    )


def test_other_errors_of_rules_are_theirs() -> None:
    rules = loader.loads(rule("(", "auto"), file="r.yaml")
    with pytest.raises(RulesetError) as raised:
        plan(rules, preset="deepseek-v2-lite", machine=hardware.machine(gpus(24), None))
    assert [found.code for found in raised.value.diagnostics] == ["bad-regex"]


def test_a_context_past_the_models_is_refused() -> None:
    with pytest.raises(BudgetError) as raised:
        plan(preset="qwen3-30b-a3b", machine=hardware.machine(gpus(24), None), wishes=ContextWishes(n_ctx=1 << 20))
    assert str(raised.value).startswith("--ctx 1048576: Qwen3 30B A3B Q4_K_M was trained with a context of ")


def test_a_context_that_nobody_asked_for_is_one_that_the_model_has() -> None:
    machine = hardware.machine(gpus(24), None)
    assert plan(preset="smallthinker-21b-a3b", machine=machine, wishes=QUICK).context.n_ctx == 16384
    assert plan(preset="deepseek-v2-lite", machine=machine, wishes=QUICK).context.n_ctx == 32768


def test_a_budget_larger_than_a_gpu_that_is_here_is_refused(tmp_path: Path) -> None:
    path = TinyDeepSeek().write(tmp_path / "tiny.gguf")
    done = dry_run(path, runs(("CUDA0", 5)), ContextOptions(n_ctx=512))
    machine = hardware.machine(gpus(24), None)
    check_present(machine, DeviceMap(), done)  # a stand-in is as large as one likes
    card = BackendDevice(
        name="CUDA0",
        description="",
        kind="gpu",
        backend="CUDA",
        memory_total=16 * GIB,
        memory_free=0,
        buffer_type="CUDA0",
    )
    real = replace(done, bound=(BoundDevice(name="CUDA0", backend_name="CUDA0"),), available=(card,))
    with pytest.raises(BudgetError) as raised:
        check_present(machine, DeviceMap(), real)
    assert str(raised.value) == "--vram cuda:0=24 GiB: CUDA0 here has 16 GiB; --vram detected takes what is free"


def test_a_child_that_dies_is_an_error_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as many groups as experts: llama.cpp asserts that there are fewer. Usually it is asked for first.
    monkeypatch.setattr(preconditions, "check", lambda _model: None)
    path = TinyDeepSeek(n_groups=8).write(tmp_path / "aborts.gguf")
    with pytest.raises(LlamaCppError) as raised:
        plan(model=path, machine=hardware.machine(gpus(1), None), wishes=replace(QUICK, n_ctx=512))
    assert raised.value.reason == "llama.cpp was killed by SIGABRT during the dry run"
    assert any("GGML_ASSERT(hparams.n_expert_groups < hparams.n_expert) failed" in line for line in raised.value.log)


def test_a_file_that_llama_cpp_would_abort_over_is_refused_by_its_own_name(tmp_path: Path) -> None:
    path = TinyDeepSeek(n_groups=8).write(tmp_path / "aborts.gguf")
    with pytest.raises(ModelFileError) as raised:
        plan(model=path, machine=hardware.machine(gpus(1), None), wishes=replace(QUICK, n_ctx=512))
    assert str(raised.value).startswith(f"{path}: metadata key 'deepseek2.expert_group_count' is 8, ")


def test_a_file_that_llama_cpp_refuses_is_named_as_the_user_knows_it(tmp_path: Path) -> None:
    model = gguf.read(TinyDeepSeek().write(tmp_path / "known.gguf"))
    path = tmp_path / "broken.gguf"
    sparse.write(replace(model, metadata={**model.metadata, "deepseek2.attention.head_count": 0}), path)
    with pytest.raises(LlamaCppError) as raised:
        plan(None, str(path), machine=hardware.machine({}, None), wishes=ContextWishes(n_ctx=256))
    assert raised.value.reason == f"llama.cpp refused to load {path}"
    assert not any("/model.gguf" in line for line in raised.value.log)


def test_the_planned_memory_is_what_a_real_load_reports(tmp_path: Path) -> None:
    path = TinyDeepSeek(n_embd=256, n_experts=16, ffn=512, expert_ffn=256).write(tmp_path / "tiny.gguf")
    wishes = replace(QUICK, n_ctx=512, margin=0, n_threads=1)
    # a host so slow that even a model of this size is worth a GPU
    slow = {"cpu": 1e6}
    first = plan(model=path, machine=hardware.machine(gpus(1), None, bandwidth=slow), wishes=wishes)
    # so small a card that experts stay with the host
    small = first.memory[0].used - 3 * MIB
    made = plan(
        model=path,
        machine=hardware.machine({"cuda:0": small}, None, bandwidth=slow),
        wishes=wishes,
        options=Options(load_mode="none"),
    )
    assert_within_budgets(made)
    card, host = made.memory
    assert card.weights["routed experts"] > 0 < host.weights["routed experts"]
    with load(path, made.translation.settings, made.context, stand_ins=True) as loaded:
        weights, log = loaded.model_bytes(), loaded.log()
        kv = {loaded.buffer_holder(name): n_bytes for name, n_bytes in log.kv_bytes.items()}
        compute: dict[str, int] = {}
        for name, n_bytes in log.compute_bytes.items():
            compute[loaded.buffer_holder(name)] = compute.get(loaded.buffer_holder(name), 0) + n_bytes
    resolution = 2 * SIZE_RESOLUTION_BYTES
    assert abs(weights["CPU"] - sum(host.weights.values())) <= resolution
    # the stand-in is a CPU, which pads tensors less than the GPU that the plan is for
    excess = sum(stored_bytes(one, "cuda:0") - stored_bytes(one, "cpu") for one in gguf.read(path).tensors)
    assert -resolution <= sum(card.weights.values()) - weights["CUDA0"] <= excess + resolution
    assert abs(kv["CUDA0"] - card.kv) <= resolution
    assert compute == {"CUDA0": card.compute, "CPU": host.compute}


def test_a_gpu_pads_tensors_and_the_last_quantized_row() -> None:
    def stored(shape: tuple[int, ...], tensor_type: str, n_bytes: int, device: str) -> int:
        return stored_bytes(Tensor(name="t", shape=shape, type=tensor_type, n_bytes=n_bytes), device)

    assert stored((7,), "F32", 28, "cpu") == 32
    assert stored((7,), "F32", 28, "cuda:0") == 128
    assert stored((1024, 2), "Q8_0", 2176, "cuda:0") == 2176
    # 1408 values: 128 short of 3 times 512, four blocks of 34 bytes more
    assert stored((1408, 2), "Q8_0", 2992, "cuda:0") == 3200  # 2992 + 136, in whole 128s
    assert stored((1408, 2), "Q8_0", 2992, "cpu") == 3008


def test_a_session_says_what_single_dry_runs_say_also_without_the_vocabulary(tmp_path: Path) -> None:
    path = TinyDeepSeek().write(tmp_path / "tiny.gguf")
    settings = runs(("CUDA0", 3), ("CUDA1", 2), overrides={"_exps": "CPU"})
    contexts = [ContextOptions(n_ctx=512, n_ubatch=ubatch) for ubatch in (64, 256)]
    single = [dry_run(path, settings, context) for context in contexts]
    with DryRunSession(["CUDA0", "CUDA1"]) as session, sparse_file(gguf.read(path)) as without_vocabulary:
        for file in (path, without_vocabulary):
            for one, made in zip(single, session.run_contexts(file, settings, contexts), strict=True):
                assert not isinstance(made, Exception)
                assert made.compute_bytes == one.compute_bytes
                assert (made.layers, made.kv, made.tensors) == (one.layers, one.kv, one.tensors)
        refused = session.run_contexts(path, settings, [replace(contexts[0], type_k="q8_0")])
        assert "refused to make a context" in str(refused[0])


def test_patterns_without_character_classes_find_the_same_tensors(tmp_path: Path) -> None:
    model = presets.load("deepseek-v2-lite")
    made = plan(model=model, machine=hardware.machine(gpus(6), None), wishes=replace(QUICK, n_ctx=4096))
    settings, spelled = made.translation.settings, plain(made.translation.settings, [one.name for one in model.tensors])
    assert settings != spelled
    assert not any("[" in override.pattern for override in spelled.tensor_overrides)
    with DryRunSession(["CUDA0"]) as session, sparse_file(model) as path:
        one, other = (session.run(path, form, made.context) for form in (settings, spelled))
    assert (one.tensors, one.compute_bytes, one.graph_splits) == (
        other.tensors,
        other.compute_bytes,
        other.graph_splits,
    )


def test_a_raised_reserve_excludes_what_was_too_much() -> None:
    machine = hardware.machine({"cuda:0": 1000, "cuda:1": 1000}, 1000)
    reserve = Reserve(by_device={"cuda:0": 100, "cuda:1": 100, "cpu": 50})
    said = Reserve(by_device={"cuda:0": 120, "cuda:1": 700, "cpu": 60})
    # cuda:0 had 200 left beside 700, but is over by 10 (padding and a streamed copy are no tensors); cuda:1's buffer grew
    found = raised(reserve, said, {"cuda:0": 700, "cuda:1": 900}, {"cuda:0": 10, "cuda:1": 600}, machine)
    assert found == Reserve(by_device={"cuda:0": 310, "cuda:1": 700, "cpu": 50})
    assert 1000 - found.of("cuda:0") < 700  # so the same does not come again


def test_of_ubatches_alike_the_smallest_is_chosen_and_decode_comes_first() -> None:
    def candidate(ubatch: int, decode: float, prefill: float, *, op_offload: bool = False) -> Candidate:
        return Candidate(
            ubatch=ubatch,
            op_offload=op_offload,
            decode_tokens_per_second=decode,
            prefill_tokens_per_second=prefill,
            compute_bytes={},
        )

    small, large = candidate(512, 10, 100), candidate(1024, 9.9, 101)
    assert choose([small, large]) is small
    fast = candidate(4096, 9.85, 300, op_offload=True)
    assert choose([small, large, fast]) is fast
    assert choose([small, large, candidate(4096, 9.7, 300)]) is small


def test_a_type_without_fast_kernels_on_the_host_is_said_where_another_of_its_size_has_them() -> None:
    model = presets.load("r1-distill-llama-8b")
    slow = replace(
        model,
        tensors=tuple(
            replace(one, type="Q4_1", n_bytes=math.prod(one.shape) // 32 * 20)
            if ".ffn_" in one.name and len(one.shape) > 1
            else one
            for one in model.tensors
        ),
    )
    machine = hardware.machine({}, 64 * GIB)
    assert plan(model=model, machine=machine, wishes=QUICK).notes == ()
    (note,) = plan(model=slow, machine=machine, wishes=QUICK).notes
    assert note.endswith(
        "on the host are Q4_1, for which llama.cpp has no repacked kernels on x86; Q4_0 (10% smaller) computes about 2.5 "
        "times as fast there"
    )
