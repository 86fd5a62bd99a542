"""One writer at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktllama.measuring.locks import InUseError, held


def test_a_file_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "trials.json"
    with held(path):
        with pytest.raises(InUseError) as raised, held(path):
            pass
        assert str(raised.value) == f"{path}: another ktllama tune writes to it: wait until that one is done"
        with held(path.with_name("others.json")):  # another file is
            pass
    with held(path):  # free again
        pass
    assert list(path.parent.iterdir()) == []  # and nothing is left


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InUseError, match="cannot be written: File exists"), held(tmp_path / "file" / "trials.json"):
        pass
