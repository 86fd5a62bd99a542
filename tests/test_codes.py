"""The catalogue and the code agree, and every code is documented."""

from __future__ import annotations

import re
from pathlib import Path

from ktllama.codes import CATALOGUE

ROOT = Path(__file__).parents[1]


def test_every_code_in_the_source_is_in_the_catalogue() -> None:
    package = ROOT / "ktllama"
    written = {
        code
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0] not in ("engine", "server")  # the API's error codes are another matter
        for code in re.findall(r'code="([a-z0-9-]+)"', path.read_text())
    }
    assert written <= set(CATALOGUE)
    assert len(written) > 20


def test_every_code_is_documented() -> None:
    documented = re.findall(r"^### `([a-z0-9-]+)`$", (ROOT / "docs" / "diagnostics.md").read_text(), flags=re.M)
    assert sorted(documented) == sorted(CATALOGUE)
