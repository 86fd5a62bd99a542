"""Time of ``translate`` on R1-671B, as a call and as a process, and how it grows with tensors and with rules.

    python -m bench.translate [RUNS]

The growth is measured on models of 61, 122, 244 and 488 layers, and on rule files of 10 to 320 rules; a straight line
has a ratio of 2 from each to the next.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ktllama.model import presets, sparse
from ktllama.model.model_file import ModelFile
from ktllama.ruleset import loader
from ktllama.translation import analyse

RULES = Path(__file__).parents[1] / "rules" / "deepseek-r1" / "1x24gb.yaml"


def median_seconds(work: Callable[[], object], runs: int) -> float:
    work()
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def deeper(model: ModelFile, factor: int) -> ModelFile:
    """``model`` with ``factor`` times as many layers."""
    blocks = [tensor for tensor in model.tensors if tensor.name.startswith("blk.")]
    outside = [tensor for tensor in model.tensors if not tensor.name.startswith("blk.")]
    copies = []
    for copy in range(factor):
        for tensor in blocks:
            _, number, rest = tensor.name.split(".", 2)
            copies.append(dataclasses.replace(tensor, name=f"blk.{int(number) + copy * model.n_layers}.{rest}"))
    metadata = {**model.metadata, f"{model.architecture}.block_count": model.n_layers * factor}
    return dataclasses.replace(model, metadata=metadata, tensors=(*outside, *copies))


def many_rules(count: int) -> str:
    text = RULES.read_text()
    rule = (
        "- match: {{name: '^model\\.layers\\.{}\\.mlp\\.experts$'}}\n"
        "  replace: {{class: default, kwargs: {{generate_device: cpu}}}}\n"
    )
    return "".join(rule.format(number % 61) for number in range(count)) + text


def print_growth(title: str, labels: list[str], seconds: list[float]) -> None:
    print(title)
    for number, (label, taken) in enumerate(zip(labels, seconds, strict=True)):
        ratio = f"  x {taken / seconds[number - 1]:.2f}" if number else ""
        print(f"  {label:>12}  {taken * 1000:8.1f} ms{ratio}")


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    model = presets.load("deepseek-r1")
    rules = str(RULES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r1.gguf"
        sparse.write(model, path, vocabulary_size=129280)
        call = median_seconds(lambda: analyse(rules, path), runs)
        command = [sys.executable, "-m", "ktllama", "translate", rules, "--model", str(path), "--format", "json"]
        process = median_seconds(lambda: subprocess.run(command, check=True, capture_output=True), runs)
    print(f"translate, R1-671B (1,086 tensors, 129,280 tokens), median of {runs} runs")
    print(f"  as a call     {call * 1000:8.1f} ms   (bar: 150 ms)")
    print(f"  as a process  {process * 1000:8.1f} ms   (bar: 600 ms)")
    factors = [1, 2, 4, 8]
    grown = [deeper(model, factor) for factor in factors]
    ruleset = loader.load(rules)
    taken = [median_seconds(lambda grown=one: analyse(ruleset, grown), runs) for one in grown]  # type: ignore[misc]
    print_growth("by tensors", [f"{len(one.tensors)}" for one in grown], taken)
    counts = [40, 80, 160, 320]
    texts = [many_rules(count) for count in counts]
    taken = [median_seconds(lambda text=text: analyse(loader.loads(text), model), runs) for text in texts]  # type: ignore[misc]
    print_growth("by rules", [str(count) for count in counts], taken)


if __name__ == "__main__":
    main()
