"""How far llama.cpp and the reference are apart, by what differs, and what ``ktllama validate`` takes by layers.

    python -m bench.validate [figures|cost]

The random models are deepseek2 as V3 has it, with logits of unit size; real weights are SmolLM2-135M's, whose file is
Q4_1. The cost is measured in a process for each model: seconds, and the peak of its resident memory, in which
llama.cpp's copy of the whole model counts.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ktllama.reference.config import DeepSeekConfig, RopeConfig
from ktllama.runtime import library
from ktllama.runtime.context_options import ContextOptions
from ktllama.translation import Options
from ktllama.validating.report import Report, number
from ktllama.validating.rounding import ActivationsChoice
from ktllama.validating.spread import placed
from ktllama.validating.validation import Task, validate
from tests.reference.files import deepseek_config, random_tokens, write_random
from tests.runtime import smollm2

N_TOKENS = 256
_FTYPES = {"Q4_K": 14, "Q6_K": 18}  # enum llama_ftype: LLAMA_FTYPE_MOSTLY_Q4_K_S, _Q6_K

#: Weights, KV cache, flash attention.
CASES = (
    ("F32", "f32", "off"),
    ("F32", "f16", "off"),
    ("F32", "f16", "on"),
    ("F32", "q8_0", "on"),
    ("F16", "f32", "off"),
    ("BF16", "f32", "off"),
    ("Q8_0", "f32", "off"),
    ("Q8_0", "f16", "on"),
    ("Q6_K", "f32", "off"),
    ("Q4_K", "f32", "off"),
    ("Q4_K", "f16", "on"),
)
ACTIVATIONS: tuple[ActivationsChoice, ...] = ("exact", "llama.cpp")
LAYERS = (4, 8, 16, 32)


def config(**changes: Any) -> DeepSeekConfig:
    """Widths that K-quants take."""
    sizes = {"width": 256, "ffn": 512, "kv_lora_rank": 256, "q_lora_rank": 256, "nope": 32, "v_head": 64}
    return deepseek_config(
        **{**sizes, "n_heads": 4, "n_layers": 6, "expert_ffn": 256, "rope": RopeConfig(n_dims=32), **changes}
    )


def quantized(path: Path, target: Path, type_name: str) -> Path:
    """llama.cpp's own quantizer, all matrices alike."""
    api = library.load().api
    params = api.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = _FTYPES[type_name], True, 1
    status = api.llama_model_quantize(str(path).encode(), str(target).encode(), ctypes.byref(params))
    if status != 0:
        raise SystemExit(f"llama.cpp could not make {type_name}")
    return target


def run(path: Path, kv: str, flash: str, **changes: Any) -> Report:
    context = ContextOptions(n_ctx=512, type_k=kv, type_v=kv, flash_attn="on" if flash == "on" else "off", n_threads=2)
    task = Task(translation=placed(None, None, str(path), Options()), model_path=str(path), context=context)
    return validate(replace(task, **changes))


def line(name: str, kv: str, flash: str, found: Report) -> str:
    own = max(layer.median_own for layer in found.layers)
    errors = found.positions
    return (
        f"  {name:<14} {kv:<5} {flash:<5} {found.activations:<10} {number(own):>9} "
        f"{number(found.layers[-1].median):>9} "
        f"{number(float(errors.max_abs.max())):>9} {number(found.mean_kl):>9} {100 * float(errors.top1.mean()):>7.2f}% "
        f"{found.n_flips:>5} of {found.n_choices}"
    )


def figures() -> None:
    print(f"deepseek2, 6 layers, random, {N_TOKENS} tokens, then SmolLM2-135M on 200 of the default text")
    print("  weights        KV    flash reference   own part   at last   |Δ logit|   mean KL    top-1  flipped")
    with tempfile.TemporaryDirectory() as folder:
        exact = write_random(Path(folder) / "F32.gguf", config())
        tokens = tuple(random_tokens(N_TOKENS))
        files = {"F32": exact}
        for name, kv, flash in CASES:
            if name not in files:
                target = Path(folder) / f"{name}.gguf"
                direct = name not in _FTYPES
                files[name] = (
                    write_random(target, config(), matrix_type=name) if direct else quantized(exact, target, name)
                )
            for activations in ACTIVATIONS:
                found = run(files[name], kv, flash, tokens=tokens, activations=activations)
                print(line(name, kv, flash, found), flush=True)
    for kv, flash in (("f32", "off"), ("f16", "on")):
        for activations in ACTIVATIONS:
            found = run(smollm2.path(), kv, flash, max_tokens=200, activations=activations)
            print(line("SmolLM2 Q4_1", kv, flash, found), flush=True)


_CHILD = """
import json, re, sys, time
from pathlib import Path
from bench.validate import run, random_tokens
started = time.perf_counter()
run(Path(sys.argv[1]), "f16", "on", tokens=tuple(random_tokens(256)))
# not ru_maxrss, which a new process takes over from the one that started it
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps([time.perf_counter() - started, peak * 1024]))
"""


def cost() -> None:
    print(f"validate by layers: deepseek2 of width 512 in Q8_0, {N_TOKENS} tokens, two threads")
    print("  layers   file MiB   largest layer in float32 MiB   seconds   peak MiB")
    for n_layers in LAYERS:
        with tempfile.TemporaryDirectory() as folder:
            wide = config(n_layers=n_layers, width=512, ffn=1024, expert_ffn=512, n_experts=16)
            path = write_random(Path(folder) / "m.gguf", wide, matrix_type="Q8_0")
            done = subprocess.run([sys.executable, "-c", _CHILD, str(path)], capture_output=True, text=True, check=True)
            seconds, peak = json.loads(done.stdout.splitlines()[-1])
            layer = 17 * 3 * 512 * 512 * 4
            print(
                f"  {n_layers:>6} {path.stat().st_size / 2**20:>10.1f} {layer / 2**20:>30.1f} {seconds:>9.1f} "
                f"{peak / 2**20:>10.0f}",
                flush=True,
            )


def main() -> None:
    what: Literal["figures", "cost"] | str | None = sys.argv[1] if len(sys.argv) > 1 else None
    if what in (None, "figures"):
        figures()
    if what in (None, "cost"):
        cost()


if __name__ == "__main__":
    main()
