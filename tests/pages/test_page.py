"""What all pages share: they are written with care, and what they hold stays text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ktllama.pages import page


def test_embedded_json_holds_no_markup() -> None:
    text = page.inert_json({"a": "</script>&<!--\u2028\x00é\ud800"})
    assert re.search(r"[<>&\u2028\x00]|[^\x00-\x7f]", text) is None
    assert json.loads(text) == {"a": "</script>&<!--\u2028\x00é\ud800"}


def test_a_page_overwrites_nothing_unless_it_may(tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    page.write(str(path), "one")
    with pytest.raises(page.PageError) as caught:
        page.write(str(path), "two")
    assert str(caught.value) == f"{path}: already exists; --force overwrites it"
    assert path.read_text() == "one"
    page.write(str(path), "two", overwrite=True)
    assert path.read_text() == "two"


def test_a_page_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(page.PageError) as caught:
        page.write(str(tmp_path / "none" / "plan.html"), "one")
    assert caught.value.reason == "cannot be written: No such file or directory"
