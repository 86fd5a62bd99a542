"""LlamaIndex's ``LlamaCPP`` under a rule file: ``python llama_index_llm.py MODEL.gguf RULES.yaml``.

Needs ``pip install '.[examples]'``.
"""

from __future__ import annotations

import sys

from llama_index.llms.llama_cpp import LlamaCPP

import ktllama


def main(model_path: str, rules: str) -> None:
    with ktllama.placement(rules, model_path):
        llm = LlamaCPP(model_path=model_path, context_window=512, max_new_tokens=16, verbose=False)
    print(llm.complete("Name a colour:").text)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
