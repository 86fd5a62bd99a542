"""Self-contained HTML files: templates, styles and scripts put together, names in them made harmless, and written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from ktllama.errors import PathError

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
