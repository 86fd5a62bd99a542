"""Coverage-guided fuzzing of the rule compiler: any bytes as a rule file, for a small model.

Nothing but ``KtllamaError`` may come out; nothing unprintable may stand in a finding; tensors must be placed, and
llama.cpp's arithmetic must give the placement back from the settings.
"""

from __future__ import annotations

import contextlib
import re
import sys
from bisect import bisect_right
from itertools import accumulate

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["ktllama"]):
    from ktllama.errors import KtllamaError
    from ktllama.model.model_file import ModelFile, Tensor
    from ktllama.model.modules import block_of
    from ktllama.placing import searching
    from ktllama.ruleset import loader
    from ktllama.translation import Translation, analyse

NAMES = {"CPU": "cpu", **{f"CUDA{n}": f"cuda:{n}" for n in range(10_000)}}
NAMES |= {f"SYCL{n}": f"xpu:{n}" for n in range(10_000)} | {f"CANN{n}": f"npu:{n}" for n in range(10_000)}
STEMS = [
    "attn_norm",
    "attn_q_a",
    "attn_q_a_norm",
    "attn_q_b",
    "attn_kv_a_mqa",
    "attn_kv_a_norm",
    "attn_k_b",
    "attn_v_b",
    "attn_output",
    "ffn_norm",
]
EXPERTS = [
    "ffn_gate_inp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_down_shexp",
]


def small_model() -> ModelFile:
    names = ["token_embd.weight", "output_norm.weight", "output.weight", "odd,=.name", "blk.1.odd"]
    for layer in range(3):
        stems = [*STEMS, *(EXPERTS if layer else ["ffn_gate", "ffn_up", "ffn_down"])]
        names += [f"blk.{layer}.{stem}.weight" for stem in stems]
    metadata = {
        "deepseek2.block_count": 3,
        "deepseek2.expert_count": 3,
        "deepseek2.attention.head_count": 4,
        "deepseek2.attention.kv_lora_rank": 64,
        "deepseek2.attention.key_length": 96,
        "deepseek2.attention.value_length": 64,
        "deepseek2.attention.head_count_kv": 1,
    }
    tensors = tuple(Tensor(name=name, shape=(32,), type="F32", n_bytes=128) for name in names)
    return ModelFile(name="small", architecture="deepseek2", metadata=metadata, tensors=tensors)


MODEL = small_model()


def check(done: Translation) -> None:
    for found in done.diagnostics:
        assert "".join([found.message, *found.excerpt]).isprintable(), found
    assert set(done.placement.tensors) == {tensor.name for tensor in MODEL.tensors}
    if done.has_errors:
        return
    said = done.settings
    start, count = MODEL.n_layers + 1 - said.n_gpu_layers, said.n_gpu_layers
    total = sum(said.tensor_split)
    splits = [share / total for share in accumulate(said.tensor_split)] if total else []
    base = [
        "CPU" if layer < start else said.devices[bisect_right(splits, (layer - start) / count)]
        for layer in range(MODEL.n_layers + 1)
    ]
    for name, tensor in done.placement.tensors.items():
        block = block_of(name)
        here = base[-1 if block is None else block] if name != "token_embd.weight" else "CPU"
        for override in said.tensor_overrides:
            assert "," not in override.pattern
            assert "=" not in override.pattern
            if re.search(override.pattern, name):
                here = override.device
                break
        assert NAMES[here] == tensor.device, (name, here, tensor)
    assert {layer: NAMES[base[layer]] for layer in done.placement.kv} == dict(done.placement.kv)


def one_input(data: bytes) -> None:
    text = data.decode("utf-8", errors="replace")
    ruleset = loader.loads(text)
    assert all("".join([found.message, *found.excerpt]).isprintable() for found in ruleset.diagnostics)
    if any(rule.name is not None and searching.may_run_away(rule.name) for rule in ruleset.rules):
        return  # they go to child processes, which are too slow for this
    with contextlib.suppress(KtllamaError):
        check(analyse(ruleset, MODEL))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
