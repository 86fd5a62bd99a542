"""Predicted decode speed beside measured, over random models of 0.1 to 8 GB and ways to place them.

    python -m bench.planner.speed DIRECTORY write                      writes the models (33 GB); no timing
    python -m bench.planner.speed DIRECTORY SECONDS [cpu|stand-ins]    goes on for so long, then prints the table so far

What was done is kept in DIRECTORY, so a second start goes on. First what ``ktllama tune`` measures of the machine, with
ggml's operations and models of next to no weights; the predictions follow from that and from headers alone. Then every
case: the model is loaded in a process of its own, and decode measured some times at its depth.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ktllama.benching.intervals import of_median
from ktllama.lower.settings import LlamaSettings
from ktllama.measuring import cache
from ktllama.measuring.machine import measured_machine
from ktllama.measuring.measure import CPU, Wanted, measure
from ktllama.measuring.sample_models import Shape, sample, write
from ktllama.measuring.speeds import STAND_IN, Speeds
from ktllama.model.model_file import ModelFile
from ktllama.planner import hardware
from ktllama.planner.prediction import decode_seconds
from ktllama.ruleset import loader
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.timing_session import TimingSession
from ktllama.translation import Translation, translate

_TOKENS, _REPETITIONS = 12, 5

MODELS: dict[str, Shape] = {
    "ds-0.1G": Shape(architecture="deepseek2", n_layers=8, n_embd=768, n_experts=24, expert_ffn=256, n_used=4),
    "ds-0.5G": Shape(architecture="deepseek2", n_layers=12, n_embd=1024, n_experts=48, expert_ffn=512, n_used=6),
    "ds-1G-Q8": Shape(architecture="deepseek2", n_layers=12, n_embd=1280, n_experts=32, expert_ffn=768, n_used=4,
                      expert_type="Q8_0"),
    "ds-2G-Q4_0": Shape(architecture="deepseek2", n_layers=14, n_embd=2048, n_experts=48, expert_ffn=1024, n_used=6,
                        matrix_type="Q4_0", expert_type="Q4_0"),
    "ds-4G-Q6": Shape(architecture="deepseek2", n_layers=16, n_embd=2048, n_experts=64, expert_ffn=1024, n_used=8,
                      expert_type="Q6_K", n_vocab=32768),
    "ds-8G": Shape(architecture="deepseek2", n_layers=22, n_embd=2048, n_experts=64, expert_ffn=1536, n_used=6,
                   matrix_type="Q4_K", n_vocab=49152),
    "qw-0.1G": Shape(architecture="qwen3moe", n_layers=8, n_embd=768, n_experts=24, expert_ffn=256, n_used=4, head=64),
    "qw-0.6G-Q8": Shape(architecture="qwen3moe", n_layers=12, n_embd=1024, n_experts=32, expert_ffn=512, n_used=8,
                        expert_type="Q8_0"),
    "qw-1.5G-Q5": Shape(architecture="qwen3moe", n_layers=16, n_embd=1536, n_experts=48, expert_ffn=768, n_used=8,
                        matrix_type="Q5_K", expert_type="Q5_K", n_vocab=32768),
    "qw-1.5G-F16": Shape(architecture="qwen3moe", n_layers=10, n_embd=1024, n_experts=48, expert_ffn=512, n_used=4,
                         matrix_type="F16", expert_type="F16", output_type="F16"),
    "qw-4G": Shape(architecture="qwen3moe", n_layers=24, n_embd=2048, n_heads=32, n_experts=64, expert_ffn=768,
                   n_used=8, matrix_type="Q4_K", n_vocab=49152),
    "qw-7G": Shape(architecture="qwen3moe", n_layers=28, n_embd=2048, n_heads=32, n_experts=128, expert_ffn=512,
                   n_used=8, matrix_type="Q4_K", expert_type="Q4_K", n_vocab=49152),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model in a placement. ``rules`` is where things go, ``plain`` keeps weights out of repacked buffers."""

    model: str
    rules: str = "cpu"
    n_threads: int = 2
    plain: bool = False
    kv_type: str = "f16"
    depth: int = 0

    @property
    def name(self) -> str:
        words = [self.rules, f"{self.n_threads} threads", *(["plain"] if self.plain else [])]
        words += [self.kv_type] if self.kv_type != "f16" else []
        return ", ".join([*words, f"depth {self.depth}"])


CASES = (
    Case(model="ds-0.1G"), Case(model="ds-0.1G", n_threads=1), Case(model="ds-0.1G", depth=2048),
    Case(model="ds-0.5G"), Case(model="ds-0.5G", plain=True), Case(model="ds-0.5G", rules="experts", n_threads=1),
    Case(model="ds-0.5G", rules="half", n_threads=1),
    Case(model="ds-1G-Q8"), Case(model="ds-1G-Q8", depth=1024, kv_type="q8_0"),
    Case(model="ds-2G-Q4_0"), Case(model="ds-2G-Q4_0", n_threads=1),
    Case(model="ds-4G-Q6"), Case(model="ds-8G"),
    Case(model="qw-0.1G"), Case(model="qw-0.1G", rules="all", n_threads=1), Case(model="qw-0.1G", depth=2048),
    Case(model="qw-0.6G-Q8"), Case(model="qw-0.6G-Q8", n_threads=1),
    Case(model="qw-0.6G-Q8", rules="experts", n_threads=1),
    Case(model="qw-0.6G-Q8", depth=2048), Case(model="qw-0.6G-Q8", depth=2048, kv_type="q8_0"),
    Case(model="qw-1.5G-Q5"), Case(model="qw-1.5G-F16"),
    Case(model="qw-4G"), Case(model="qw-4G", plain=True), Case(model="qw-7G"),
)  # fmt: skip

TYPES = ("F32", "Q8_0", "Q4_K", "Q6_K", "Q4_0", "Q5_K", "F16")

_RULES = {
    "cpu": (("", "cpu"),),
    "all": (("", "cuda:0"),),
    "half": ((r"^model\.layers\.[0-5]\.", "cuda:0"), ("", "cpu")),
    "experts": ((r"\.mlp\.experts(\.|$)", "cpu"), (r"^model\.layers\.", "cuda:0"), ("", "cpu")),
}


def write_models(folder: Path) -> None:
    for name, shape in MODELS.items():
        path = folder / f"{name}.gguf"
        if not path.exists():
            started = time.perf_counter()
            write(sample(shape, name), path.with_suffix(".part")).rename(path)
            print(f"{name}: {path.stat().st_size / 1e9:.2f} GB in {time.perf_counter() - started:.0f} s", flush=True)


class Bench:
    """The measurements in one directory."""

    def __init__(self, folder: Path, seconds: float, only: str) -> None:
        self.folder = folder
        self.on_host = {"cpu": (True,), "stand-ins": (False,), "": (True, False)}[only]
        self.ends = time.perf_counter() + seconds
        self.speeds_file = folder / "speeds.json"
        self.cases_file = folder / "cases.json"
        self.done: dict[str, dict[str, Any]] = (
            json.loads(self.cases_file.read_text()) if self.cases_file.exists() else {}
        )

    def go_on(self) -> None:
        """Measure until the time is over."""
        try:
            self._measure_machine()
            for case in CASES:
                if _key(case) not in self.done and (case.rules == "cpu") in self.on_host:
                    self._check_time()
                    self.done[_key(case)] = self._measured(case)
                    self.cases_file.write_text(json.dumps(self.done, indent=1))
                    print(f"{case.model}, {case.name}: {self.done[_key(case)]['tokens_per_second']}", flush=True)
        except TimeoutError:
            print("out of time; start again to go on")

    def _measure_machine(self) -> None:
        known = cache.read(self.speeds_file) or Speeds()
        about = cache.hardware()
        # both sides wait in loops: with as many threads as cores on each they take each other's cores
        kinds = {True: (CPU, (2, 1)), False: (STAND_IN, (1,))}

        def progress(name: str, number: int, n: int) -> None:
            self._check_time()
            print(f"{number + 1} of {n}: {name}", flush=True)

        for device, threads in (kinds[on_host] for on_host in self.on_host):
            wanted = Wanted(devices=(device,), threads=threads, types=TYPES, kv_types=("f16", "q8_0"))
            known = measure(wanted, known, lambda speeds: cache.write(self.speeds_file, about, speeds), progress)

    def _check_time(self) -> None:
        if time.perf_counter() > self.ends:
            raise TimeoutError

    def _measured(self, case: Case) -> dict[str, Any]:
        path = self.folder / f"{case.model}.gguf"
        translation = _translation(case, sample(MODELS[case.model], case.model))
        settings = translation.settings
        if case.plain:
            n = translation.model.n_layers + 1
            settings = LlamaSettings(n_gpu_layers=n, devices=("CPU",), tensor_split=(n,), load_mode="none")
        context = _context(case, case.depth + 256)
        with TimingSession(path, settings, context, stand_ins=True, cpu_bytes=0) as session:
            rates = []
            for _ in range(_REPETITIONS):
                timed = session.measure(case.depth, 0, _TOKENS)
                rates.append(timed.decode_tokens / timed.decode_seconds)
            return {"tokens_per_second": rates, "n_nodes": (session.loaded.graph_nodes or (0, 0))[1],
                    "buffers": dict(session.loaded.buffers)}  # fmt: skip


def predicted(case: Case, n_nodes: int, speeds: Speeds) -> float:
    """Tokens a second, from the header, the number of nodes of its graph, and what was measured of the machine."""
    model = sample(MODELS[case.model], case.model)
    translation = _translation(case, model)
    machine = measured_machine(
        hardware.machine({"cuda:0": 1 << 40}, None), speeds, model, case.n_threads,
        llama_names={"cuda:0": STAND_IN}, kv_type=case.kv_type, repacks=not case.plain,
    )  # fmt: skip
    return 1 / decode_seconds(translation.placement, machine, _context(case, 256), case.depth + _TOKENS / 2, n_nodes)


def report(done: dict[str, dict[str, Any]], speeds: Speeds) -> Iterator[str]:
    """The table, how many are within 20%, and whether the placements of one model are ranked as measured."""
    yield f"{'model':12} {'placement':34} {'measured':>9} {'interval':>17} {'predicted':>9} {'off by':>7}"
    off: list[float] = []
    by_model: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for case in CASES:
        if (found := done.get(_key(case))) is None:
            continue
        interval = of_median(found["tokens_per_second"])
        said = predicted(case, found["n_nodes"], speeds)
        off.append(said / interval.median - 1)
        by_model[case.model].append((said, interval.median, interval.low, interval.high))
        spread = f"{interval.low:.2f} – {interval.high:.2f}"
        yield f"{case.model:12} {case.name:34} {interval.median:9.2f} {spread:>17} {said:9.2f} {off[-1]:+7.0%}"
    if not off:
        return
    within = sum(abs(one) <= 0.2 for one in off)
    yield f"{within} of {len(off)} within 20%; median of |off| {statistics.median(map(abs, off)):.0%}"
    pairs = [pair for listed in by_model.values() for pair in combinations(listed, 2)]
    apart = [(a, b) for a, b in pairs if a[2] > b[3] or b[2] > a[3]]  # their intervals do not meet
    right = sum((a[0] > b[0]) == (a[1] > b[1]) for a, b in apart)
    yield (
        f"{right} of {len(apart)} pairs of placements of one model ranked as measured "
        f"({len(pairs) - len(apart)} more are too close to tell)"
    )


def _translation(case: Case, model: ModelFile) -> Translation:
    lines = [
        f"- match: {{name: '{name}'}}\n  replace: {{class: default, kwargs: "
        f"{{generate_device: '{device}', prefill_device: '{device}'}}}}\n"
        for name, device in _RULES[case.rules]
    ]
    return translate(loader.loads("".join(lines), case.rules), model)


def _context(case: Case, n_ctx: int) -> ContextOptions:
    return ContextOptions(n_ctx=n_ctx, n_batch=512, type_k=case.kv_type, type_v=case.kv_type, n_threads=case.n_threads)


def _key(case: Case) -> str:
    return json.dumps(asdict(case), sort_keys=True)


def main() -> int:
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    if sys.argv[2:] == ["write"]:
        write_models(folder)
        return 0
    bench = Bench(folder, float(sys.argv[2]), sys.argv[3] if len(sys.argv) == 4 else "")
    bench.go_on()
    speeds = cache.read(bench.speeds_file)
    print("\n".join(report(bench.done, speeds or Speeds())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
