"""torch is imported when it is needed, and missed in one line."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import ktllama
from ktllama.reference.config import DeepSeekConfig
try:
    ktllama.reference.load
except ktllama.KtllamaError as error:
    print(type(error).__name__, error.exit_status, error)
"""


def _printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_a_missing_torch_is_one_line() -> None:
    assert _printed(WITHOUT_TORCH) == (
        "MissingExtraError 2 this needs torch, which is not installed: pip install 'ktllama[reference]'\n"
    )


def test_importing_ktllama_and_its_reference_does_not_import_torch() -> None:
    assert _printed("import sys, ktllama; ktllama.reference; print('torch' in sys.modules)") == "False\n"
    assert _printed("import sys, ktllama; ktllama.reference.load; print('torch' in sys.modules)") == "True\n"
