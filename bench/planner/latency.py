"""How long a user waits for a plan of R1-671B on one and on six cards, beside llama.cpp's ``llama-fit-params``.

    python -m bench.planner.latency PATH/TO/llama-fit-params [RUNS]

Whole processes in turn, on the same sparse file of full size with R1's 129,280 tokens, cards of 24 GiB, 4096 tokens of
context, as much left free on each. The peer's stand-ins are already running; ``plan`` starts its own.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

from bench.planner.cases import GIB, MARGIN
from bench.planner.fit_params import FitParams
from bench.verify import measure
from ktllama.model import presets, sparse
from ktllama.planner.wishes import ContextWishes
from ktllama.runtime.stand_ins import serving

_CARDS = (1, 6)
_CONTEXT = 4096
_BAR = 0.25


def main() -> int:
    peer = sys.argv[1]
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # Python keeps its bytecode where people use it
    with tempfile.TemporaryDirectory() as folder, serving(max(_CARDS)) as endpoint:
        model = Path(folder) / "r1.gguf"
        sparse.write(presets.load("deepseek-r1"), model, vocabulary_size=129280)
        tool = FitParams(path=peer, endpoint=endpoint, model=model)
        context = ContextWishes(n_ctx=_CONTEXT).context(512)
        commands: dict[str, list[str]] = {}
        for count in _CARDS:
            commands[f"plan, {count}"] = [
                *(sys.executable, "-m", "ktllama", "plan", "--model", str(model)),
                *("--ctx", str(_CONTEXT), "--vram", ",".join(["24G"] * count)),
            ]
            commands[f"llama-fit-params, {count}"] = tool.command([24 * GIB] * count, MARGIN, context)
        taken = measure(commands, runs)
    print(f"R1-671B on cards of 24 GiB, whole processes in turn, median of {runs} runs (bar: {_BAR} on six cards)")
    for count in _CARDS:
        ours, theirs = taken[f"plan, {count}"], taken[f"llama-fit-params, {count}"]
        ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
        print(
            f"  {count} card{'s' if count > 1 else ' '}  plan {statistics.median(ours):5.2f} s   "
            f"llama-fit-params {statistics.median(theirs):5.2f} s   {ratio:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
