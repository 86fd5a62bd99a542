"""Coverage-guided fuzzing of the GGUF header reader and of what is built from it.

Whatever the bytes are, the outcome is a model or a ``KtllamaError`` whose text is one printable line.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["ktllama"]):
    from ktllama.document import translation_document
    from ktllama.errors import KtllamaError, RulesetError
    from ktllama.model import gguf
    from ktllama.model.kv_cache import kv_bytes_per_token
    from ktllama.ruleset import loader
    from ktllama.translation import Options, analyse

RULES = loader.loads(
    "- match: {name: '^model\\.layers\\.[02468]\\.'}\n  replace: {class: default, kwargs: {generate_device: cpu}}\n"
    "- match: {name: 'experts\\.[0-2]\\.'}\n  replace: {class: default, kwargs: {generate_device: 'cuda:1'}}\n"
)
FOLDER = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
PATH = FOLDER / f"ktllama-fuzz-{os.getpid()}.gguf"


def one_input(data: bytes) -> None:
    PATH.write_bytes(data)
    try:
        model = gguf.read(PATH, header_only=True)
        done = analyse(RULES, model)
        analyse(RULES, model, options=Options(target="llama-server"))
        translation_document(done)
    except RulesetError as fault:
        told = "".join(found.message for found in fault.diagnostics)
        assert told.isprintable(), told
    except KtllamaError as fault:
        told = str(fault)
        assert told.isprintable(), told
    else:
        assert set(done.placement.tensors) == {tensor.name for tensor in model.tensors}
        assert all(found.message.isprintable() for found in done.diagnostics)
        with contextlib.suppress(KtllamaError):
            assert all(kv_bytes_per_token(model, layer) >= 0 for layer in done.placement.kv)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    try:
        atheris.Fuzz()
    finally:
        PATH.unlink(missing_ok=True)
