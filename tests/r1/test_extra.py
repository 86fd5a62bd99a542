from __future__ import annotations

import subprocess
import sys

_WITHOUT = """
import sys
sys.modules["jinja2"] = None
sys.modules["llama_cpp"] = None
sys.modules["torch"] = None
import ktllama.r1
from ktllama.errors import MissingExtraError
parser = ktllama.r1.ThinkingParser(True)
assert parser.feed("a</think>b") == [ktllama.r1.Delta("reasoning", "a"), ktllama.r1.Delta("content", "b")]
try:
    ktllama.r1.ChatTemplate("x")
except MissingExtraError as error:
    print(error)
"""


def test_without_jinja2_all_but_templates_works_and_one_line_says_what_to_install() -> None:
    made = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, check=True)
    assert made.stdout == "this needs jinja2, which is not installed: pip install 'ktllama[serve]'\n"
    assert made.stderr == ""
