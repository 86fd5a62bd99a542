"""The ``llm`` tool's GGUF plugin under a rule file: ``python llm_plugin.py MODEL.gguf RULES.yaml``.

Needs ``pip install '.[examples]'``. The plugin loads at the first prompt, so the block is around that.
"""

from __future__ import annotations

import sys

from llm_gguf import GgufChatModel

import ktllama


def main(model_path: str, rules: str) -> None:
    model = GgufChatModel("placed", model_path, n_ctx=512)
    with ktllama.placement(rules, model_path):
        for piece in model.prompt("Name a colour."):
            print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
