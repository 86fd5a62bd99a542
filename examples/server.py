"""llama-cpp-python's own server under a rule file: ``python server.py MODEL.gguf RULES.yaml [PORT]``.

Needs ``pip install '.[examples]'``. The block is around the whole server, because the server loads a second model
only when a request asks for it.
"""

from __future__ import annotations

import sys

import uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings

import ktllama


def main(model_path: str, rules: str, port: str = "8000") -> None:
    with ktllama.placement(rules, model_path):
        app = create_app(
            server_settings=ServerSettings(),
            model_settings=[ModelSettings(model=model_path, model_alias="placed", n_ctx=512, verbose=False)],
        )
        uvicorn.run(app, host="127.0.0.1", port=int(port))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
