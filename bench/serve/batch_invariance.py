"""Does a token get the same logits, to the bit, whatever is computed beside it?

    python -m bench.serve.batch_invariance [MODEL.gguf ...]

One sequence's next token is computed alone and in batches of 2, 4, 8 and 16 rows, of which the others belong to other
sequences that share its prompt; then with other prompts in the cache; then its prompt is computed in one piece and in
chunks. Without models: SmolLM2 and a small random deepseek2 in Q4_K. A seed gives the same text beside other requests
only where every line says "equal"; elsewhere `deterministic: true` runs a request unbatched.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.serve import random_deepseek
from ktllama.engine.executor import Row
from ktllama.runtime.executor import LlamaExecutor, open_executor
from tests.runtime import smollm2

SIZES = (2, 4, 8, 16)
_PROMPT_TOKENS = 96
_STEPS = 3


def _rows(sequence: int, tokens: Sequence[int], start: int = 0, *, outputs: int = 0) -> list[Row]:
    first = len(tokens) - outputs
    return [Row(sequence, token, start + index, index >= first) for index, token in enumerate(tokens)]


def _row_beside(executor: LlamaExecutor, prompt: Sequence[int], tokens: Sequence[int], size: int) -> Any:
    """The logits of sequence 0's next tokens, one a step, in batches of ``size`` rows."""
    end = len(prompt)
    executor.compute(_rows(0, prompt))
    for sequence in range(1, size):
        executor.copy(0, sequence, end)
    kept = []
    for step, token in enumerate(tokens):
        others = [Row(sequence, 100 + sequence, end + step, True) for sequence in range(1, size)]
        kept.append(executor.compute([Row(0, token, end + step, True), *others])[0].copy())
    for sequence in range(size):
        executor.remove(sequence, 0)
    return np.array(kept)


def _beside_other_prompts(executor: LlamaExecutor, prompt: Sequence[int], tokens: Sequence[int]) -> Any:
    """The same, alone in its batches, while four other prompts lie in the cache."""
    for sequence in range(1, 5):
        executor.compute(_rows(sequence, [token + sequence for token in prompt]))
    found = _row_beside(executor, prompt, tokens, 1)
    for sequence in range(1, 5):
        executor.remove(sequence, 0)
    return found


def _in_chunks(executor: LlamaExecutor, prompt: Sequence[int], chunk: int) -> Any:
    for start in range(0, len(prompt), chunk):
        piece = prompt[start : start + chunk]
        found = executor.compute(_rows(0, piece, start, outputs=1))
    kept = found[0].copy()
    executor.remove(0, 0)
    return kept


def measure(executor: LlamaExecutor) -> Iterator[tuple[str, Any, Any]]:
    """What was done, the logits alone, and the logits then."""
    random = np.random.default_rng(7)
    prompt = random.integers(100, executor.model.vocab_size - 200, _PROMPT_TOKENS).tolist()
    tokens = random.integers(100, executor.model.vocab_size - 200, _STEPS).tolist()
    alone = _row_beside(executor, prompt, tokens, 1)
    yield "again, alone", alone, _row_beside(executor, prompt, tokens, 1)
    for size in SIZES:
        yield f"in a batch of {size}", alone, _row_beside(executor, prompt, tokens, size)
    yield "beside other prompts", alone, _beside_other_prompts(executor, prompt, tokens)
    whole = _in_chunks(executor, prompt, len(prompt))
    for chunk in (48, 32, 16, 7):
        yield f"prompt in chunks of {chunk}", whole, _in_chunks(executor, prompt, chunk)


def report(path: Path, n_threads: int, flash_attn: str = "auto") -> None:
    """Print one model's lines."""
    options: dict[str, object] = {"model": str(path), "ctx": 1024, "ubatch": 256, "parallel": 16, "threads": n_threads}
    executor = open_executor({**options, "flash_attn": flash_attn}, lambda _fraction: None)
    print(f"{path.name}, {executor.model.architecture}, {n_threads} threads, flash attention {flash_attn}")
    for what, expected, found in measure(executor):
        worst = float(np.abs(expected - found).max())
        same_top = np.array_equal(expected.argmax(-1), found.argmax(-1))
        outcome = "equal" if np.array_equal(expected, found) else f"differs by up to {worst:.2g}"
        print(f"  {what:24} {outcome}{'' if same_top else ', another most likely token'}", flush=True)
    executor.shut()


def main(models: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(model) for model in models]
        if not paths:
            paths = [smollm2.path(), random_deepseek.write(Path(folder) / "random-deepseek2-q4_k.gguf", n_moe=1)]
        for path in paths:
            for n_threads, flash_attn in ((1, "auto"), (2, "auto"), (1, "off")):
                report(path, n_threads, flash_attn)


if __name__ == "__main__":
    main(sys.argv[1:])
