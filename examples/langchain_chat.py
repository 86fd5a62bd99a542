"""LangChain's ``ChatLlamaCpp`` under a rule file: ``python langchain_chat.py MODEL.gguf RULES.yaml``.

Needs ``pip install '.[examples]'``.
"""

from __future__ import annotations

import sys

from langchain_community.chat_models import ChatLlamaCpp

import ktllama


def main(model_path: str, rules: str) -> None:
    with ktllama.placement(rules, model_path):
        chat = ChatLlamaCpp(model_path=model_path, n_ctx=512, max_tokens=16, verbose=False)
    print(chat.invoke("Name a colour.").content)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
