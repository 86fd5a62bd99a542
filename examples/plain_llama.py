"""``llama_cpp.Llama`` under a rule file: ``python plain_llama.py MODEL.gguf RULES.yaml``."""

from __future__ import annotations

import sys

import llama_cpp

import ktllama


def main(model_path: str, rules: str) -> None:
    with ktllama.placement(rules, model_path):
        llm = llama_cpp.Llama(model_path, n_ctx=512, verbose=False)
    # the same without a block: llm = ktllama.Llama(model_path, rules=rules, n_ctx=512, verbose=False)
    answer = llm.create_chat_completion([{"role": "user", "content": "Name a colour."}], max_tokens=16)
    print(answer["choices"][0]["message"]["content"])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
