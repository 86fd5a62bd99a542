"""Time of ``ktllama verify`` on R1-671B, as a process, beside llama.cpp's own ``llama-fit-params`` where it is given.

    python -m bench.verify [RUNS] [PATH/TO/llama-fit-params]

Both read the same sparse file of full size, with R1's 129,280 tokens; ``llama-fit-params`` searches for settings,
``verify`` proves given ones, so this compares what a user waits for, not the same work. It gets one stand-in device
over RPC (its build needs ``-DGGML_RPC=ON``), as ``verify`` of one card starts for itself.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ktllama.model import presets, sparse
from ktllama.runtime.stand_ins import serving

PEER = "llama-fit-params"
RULES = Path(__file__).parents[1] / "rules" / "deepseek-r1"


def process_seconds(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - started
    if done.returncode != 0:
        said = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{said}")
    return taken


def measure(commands: dict[str, list[str]], runs: int) -> dict[str, list[float]]:
    """Seconds of every command, run in turn after one warm-up of each."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        process_seconds(command)
    for _ in range(runs):
        for name, command in commands.items():
            taken[name].append(process_seconds(command))
    return taken


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    peer = sys.argv[2] if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as folder, serving(1) as endpoint:
        model = str(Path(folder) / "r1.gguf")
        sparse.write(presets.load("deepseek-r1"), Path(model), vocabulary_size=129280)
        commands = {
            f"verify {rules}": [sys.executable, "-m", "ktllama", "verify", str(RULES / rules), "--model", model]
            for rules in ("cpu.yaml", "1x24gb.yaml", "2x24gb.yaml")
        }
        if peer:
            commands[PEER] = [peer, "-m", model, "-c", "4096", "--rpc", endpoint]
        taken = measure(commands, runs)
    print(f"R1-671B, sparse file of full size, whole processes in turn, median of {runs} runs (bar for verify: 1.5 s)")
    for name, seconds in taken.items():
        line = f"  {name:<24} {statistics.median(seconds):6.2f} s"
        if peer and name != PEER:
            pairs = [mine / theirs for mine, theirs in zip(seconds, taken[PEER], strict=True)]
            line += f"   {statistics.median(pairs):5.2f} x {PEER}"
        print(line)


if __name__ == "__main__":
    main()
