"""What all pages share: they are written with care, and what they hold stays text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ktllama.pages import page
from tests.pages.reader import Reader, read


def test_embedded_json_holds_no_markup() -> None:
    text = page.inert_json({"a": "</script>&<!--\u2028\x00é\ud800"})
    assert re.search(r"[<>&\u2028\x00]|[^\x00-\x7f]", text) is None
    assert json.loads(text) == {"a": "</script>&<!--\u2028\x00é\ud800"}


def test_only_a_page_that_draws_may_run_a_script() -> None:
    sources = page.Sources(package="ktllama.explaining", styles=("base.css",), scripts=("base.js",))
    drawn, data = read(page.document(sources, "<one>", {}, {"a": "</script>"}))
    still = Reader()
    still.feed(page.document(replace(sources, scripts=()), "<one>", {}))
    assert data == {"a": "</script>"}
    assert drawn.texts["title"] == still.texts["title"] == "<one>"
    assert [tag for tag, _ in still.elements if tag == "script"] == []
    assert (_policy(drawn), _policy(still)) == (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    )


def _policy(reader: Reader) -> str | None:
    named = [attributes for _, attributes in reader.elements if "http-equiv" in attributes]
    assert [attributes["http-equiv"] for attributes in named] == ["Content-Security-Policy"]
    return named[0]["content"]


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


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    there = tmp_path / "there.html"
    there.write_text("x")
    (tmp_path / "link.html").symlink_to("nowhere")
    page.check(str(tmp_path / "new.html"), overwrite=False)
    page.check(str(there), overwrite=True, inputs=[str(tmp_path / "other")])
    for path, overwrite, reason in (
        (there, False, "already exists; --force overwrites it"),
        (tmp_path / "link.html", False, "already exists; --force overwrites it"),
        (there, True, "is one of the files to read; give another name"),
        (tmp_path / "none" / "new.html", False, "cannot be written: there is no such folder"),
        (tmp_path, True, "cannot be written: it is a folder"),
    ):
        with pytest.raises(page.PageError) as caught:
            page.check(str(path), overwrite=overwrite, inputs=[str(there)] if overwrite else [])
        assert caught.value.reason == reason
