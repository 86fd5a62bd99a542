"""Pieces of HTML that pages share. What is put into them is text: it is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def text(words: str) -> str:
    """``words`` as text in HTML, or in an attribute."""
    return html.escape(words)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str, right: Iterable[int] = ()) -> str:
    """A table whose first column heads its rows; ``right`` numbers the columns to align right."""
    aligned = set(right)

    def cell(tag: str, column: int, words: str, scope: str = "") -> str:
        attributes = (f' scope="{scope}"' if scope else "") + (' class="right num"' if column in aligned else "")
        return f"<{tag}{attributes}>{text(words)}</{tag}>"

    head = "".join(cell("th", column, name, "col") for column, name in enumerate(headers))
    body = ""
    for row in rows:
        first, *rest = row
        cells = "".join(cell("td", column, words) for column, words in enumerate(rest, 1))
        body += f"<tr>{cell('th', 0, first, 'row')}{cells}</tr>"
    return f"<table><caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def entries(pairs: Iterable[tuple[str, str]]) -> str:
    """The entries of a list of names and values, each pair kept together."""
    return "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs)


def folded(summary: str, inside: str) -> str:
    """What is shown when one asks for it; wide content scrolls by itself."""
    return f'<details><summary>{text(summary)}</summary><div class="scroll">{inside}</div></details>'


def said(title: str, pairs: Sequence[tuple[str, str]]) -> str:
    """The attributes of something that shows a tooltip, and says the same to those who do not see it."""
    lines = "\n".join([title, *(f"{name}\t{value}" for name, value in pairs)])
    spoken = "; ".join([title, *(f"{name} {value}" if name else value for name, value in pairs)])
    return f'tabindex="0" role="img" aria-label="{text(spoken)}" data-tip="{text(lines)}"'
