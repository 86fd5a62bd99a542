"""The code in docs/python.md runs as it is printed, and its models are placed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from ktllama.runtime import child_process
from tests.models import rule
from tests.runtime import smollm2

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_code_runs_and_places_its_models(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(smollm2.path())
    (tmp_path / "rules.yaml").write_text(rule(r"^model\.layers\.[0-9]\.", "cuda:0") + rule("", "cpu"))
    blocks = BLOCK.findall(PAGE.read_text())
    (tmp_path / "page.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("probe.py")), "report.json", "page.py"],
        cwd=tmp_path,
        env=child_process.environment(),
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr.decode()
    models = json.loads((tmp_path / "report.json").read_text())
    assert [list(model.values()).count("RPC0") for model in models] == [90, 90, 90]
    assert len(blocks) == 6
    assert b"n_gpu_layers 3 " in done.stdout
