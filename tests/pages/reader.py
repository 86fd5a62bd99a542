"""Read a page as a browser would: its elements, the text of those with an id, and the data in it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

_VOID = {"meta", "input", "link", "img", "br", "hr"}


class Reader(HTMLParser):
    """Elements as (tag, attributes), and the text of every element that has an id; unclosed elements are an error."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.open: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append((tag, dict(attrs).get("id") or tag))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            name = self.open[-1][1]
            self.texts[name] = self.texts.get(name, "") + data


def read(text: str) -> tuple[Reader, Any]:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader, json.loads(reader.texts["data"])
