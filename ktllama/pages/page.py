"""Self-contained HTML files: templates, styles and scripts put together, names in them made harmless, and written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ktllama.errors import PathError
from ktllama.pages import markup

_MARKER = re.compile(r"\{\{([a-z]+)\}\}")
_SHARED = "ktllama.pages"


class PageError(PathError):
    """A page that cannot be written."""


def write(path: str, text: str, *, overwrite: bool = False) -> None:
    """Write ``text`` to ``path``, which must not exist unless it may be overwritten.

    Raises:
        PageError: when it exists or cannot be written.
    """
    try:
        with Path(path).open("w" if overwrite else "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise PageError(path, "already exists; --force overwrites it") from None
    except OSError as error:
        raise PageError(path, f"cannot be written: {error.strerror}") from error


def check(path: str, *, overwrite: bool, inputs: Sequence[str] = ()) -> None:
    """Refuse a path that :func:`write` would refuse, before the work is done; and one of the files that are read.

    Raises:
        PageError: saying why.
    """
    if os.path.lexists(path) and not overwrite:
        raise PageError(path, "already exists; --force overwrites it")
    if any(is_same_file(path, used) for used in inputs):
        raise PageError(path, "is one of the files to read; give another name")
    folder = Path(path).parent
    if not folder.is_dir():
        raise PageError(path, "cannot be written: there is no such folder")
    if Path(path).is_dir():
        raise PageError(path, "cannot be written: it is a folder")
    if not os.access(path if Path(path).exists() else folder, os.W_OK):
        raise PageError(path, "cannot be written: permission denied")


def is_same_file(path: str, other: str) -> bool:
    """Whether both are one file that exists."""
    try:
        return Path(path).samefile(other)
    except OSError:  # one of them does not exist
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Of what a page is made: ``page.html`` and ``page.css`` of a package, the latter after styles that pages share.

    One that draws something has shared scripts too, and a ``page.js`` of its own after them.
    """

    package: str
    styles: tuple[str, ...]
    scripts: tuple[str, ...] = ()


def document(sources: Sources, title: str, parts: Mapping[str, str], data: object = None) -> str:
    """A whole page. ``parts`` are HTML for its template, ``data`` is what its scripts draw, as :func:`inert_json`."""
    drawing = ""
    if sources.scripts:
        script = shared(*sources.scripts) + source(sources.package, "page.js")
        drawing = fill(source(_SHARED, "drawing.html"), {"data": inert_json(data), "script": script})
    whole = {
        "policy": "script-src 'unsafe-inline'; " if sources.scripts else "",
        "title": markup.text(title),
        "style": shared(*sources.styles) + source(sources.package, "page.css"),
        "body": fill(source(sources.package, "page.html"), parts),
        "drawing": drawing,
    }
    return fill(source(_SHARED, "frame.html"), whole)


def fill(template: str, parts: Mapping[str, str]) -> str:
    """``template`` with each ``{{name}}`` replaced by that part; what a part holds is not looked at again."""
    return _MARKER.sub(lambda found: parts[found.group(1)], template)


def shared(*names: str) -> str:
    """The named styles or scripts that pages share, one after another."""
    return "\n".join(source(_SHARED, name) for name in names)


def source(package: str, name: str) -> str:
    """A template, style or script that comes with ``package``."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def inert_json(value: object) -> str:
    """JSON that ends no ``script`` element and opens no comment, whatever strings it holds."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
