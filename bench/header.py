"""How long reading the header of a DeepSeek-R1-sized GGUF takes, next to the gguf package's reader.

Writes a sparse file with R1's 1,086 tensors, 129,280 tokens and 127,741 merges, then runs every reading in a process of
its own: medians of the time for the call (imports not counted), and the process's peak memory (imports counted).

    python -m bench.header [RUNS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from ktllama.model import presets, sparse
from ktllama.model.model_file import MetadataArray, MetadataValue, ModelFile

N_TOKENS = 129_280
N_MERGES = 127_741
STRING, INT32, FLOAT32 = 8, 5, 6  # enum gguf_type

OURS = "from ktllama.model.gguf import read; call = lambda: read(path)"
THEIRS = "from gguf import GGUFReader; call = lambda: GGUFReader(path)"
#: On stdout: seconds for the call, peak resident KiB of the process. The peak is VmHWM, which starts anew with the
#: program; getrusage's would begin with the peak of the process that started it.
MEASURE = """
import sys, time
path = sys.argv[1]
{reader}
start = time.perf_counter()
call()
seconds = time.perf_counter() - start
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, peak)
"""


def r1() -> ModelFile:
    """The preset's tensors, with a vocabulary of R1's size: 6 bytes a token on average, 13 a merge."""
    tokens = tuple(f"{index:0{4 + index % 5}x}" for index in range(N_TOKENS))
    merges = tuple(f"{index:06x} {index % 4096:0{4 + index % 5}x}" for index in range(N_MERGES))
    vocabulary: dict[str, MetadataValue] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": MetadataArray(item_type=STRING, n_items=N_TOKENS, values=tokens),
        "tokenizer.ggml.token_type": MetadataArray(item_type=INT32, n_items=N_TOKENS, values=(1,) * N_TOKENS),
        "tokenizer.ggml.scores": MetadataArray(item_type=FLOAT32, n_items=N_TOKENS, values=(0.0,) * N_TOKENS),
        "tokenizer.ggml.merges": MetadataArray(item_type=STRING, n_items=N_MERGES, values=merges),
    }
    model = presets.load("deepseek-r1")
    return replace(model, metadata={**model.metadata, **vocabulary})


def measured(reader: str, path: Path) -> tuple[float, float]:
    """Seconds of one reading, and the MB (10^6 bytes) that its process took at most."""
    command = [sys.executable, "-c", MEASURE.format(reader=reader), str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak_kib = found.stdout.split()
    return float(seconds), int(peak_kib) * 1024 / 1e6


def medians(reader: str, path: Path, runs: int) -> tuple[float, float]:
    seconds, peaks = zip(*(measured(reader, path) for _ in range(runs)), strict=True)
    return statistics.median(seconds), statistics.median(peaks)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r1.gguf"
        sparse.write(r1(), path)
        size = path.stat()
        ours, our_peak = medians(OURS, path, runs)
        theirs, their_peak = medians(THEIRS, path, runs)
    print(f"file       {size.st_size / 1024**3:.1f} GiB, {size.st_blocks * 512 / 1e6:.1f} MB of disk; {runs} runs each")
    print(f"ktllama    {ours * 1000:8.1f} ms   peak {our_peak:6.1f} MB")
    print(f"GGUFReader {theirs * 1000:8.1f} ms   peak {their_peak:6.1f} MB")
    print(f"ratio      {theirs / ours:8.1f}")


if __name__ == "__main__":
    main()
