"""Every preset at full size in llama.cpp's dry run, against one rule file: ``python -m bench.verify_presets``.

Prints a line a preset and ends with status 1 if any layer, KV cache or tensor is not where it was planned.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from ktllama.model import presets, sparse
from ktllama.ruleset import loader
from ktllama.runtime.context_options import ContextOptions
from ktllama.runtime.verify import Verification, verify
from ktllama.translation import analyse

RULES = """
- match: {name: 'experts$'}
  replace: {class: default, kwargs: {generate_device: cpu, prefill_device: cpu}}
  recursive: false
- match: {name: '^model\\.layers\\.[0-9]\\.'}
  replace: {class: default, kwargs: {generate_device: 'cuda:0', prefill_device: 'cuda:0'}}
- match: {name: ''}
  replace: {class: default, kwargs: {generate_device: 'cuda:1', prefill_device: 'cuda:1'}}
"""


def verified(preset: str) -> Verification:
    """The dry run of one preset, from a sparse file of its full size."""
    translation = analyse(loader.loads(RULES), preset=preset)
    with tempfile.TemporaryDirectory(prefix="ktllama-") as folder:
        path = Path(folder) / "model.gguf"
        sparse.write(translation.model, path, vocabulary_size=translation.model.integer("vocab_size"))
        return verify(translation.placement, translation.settings, path, ContextOptions(n_ctx=8192, n_seq_max=2))


def main() -> int:
    """Verify all presets, or those named on the command line."""
    failed = 0
    for preset in sys.argv[1:] or presets.PRESETS:
        started = time.perf_counter()
        found = verified(preset)
        failed += not found.ok
        counts = ", ".join(
            f"{tally.matched}/{tally.checked} {noun}"
            for noun, tally in (("layers", found.layers), ("caches", found.kv), ("tensors", found.tensors))
        )
        print(f"{preset:24} {counts}  {time.perf_counter() - started:.1f} s")
        for mismatch in found.mismatches[:3]:
            print(f"    {mismatch}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
