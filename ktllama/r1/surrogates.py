"""Halves of surrogate pairs, which JSON's escapes can spell and no encoded text can hold."""

from __future__ import annotations

import json
import re
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """The text with U+FFFD for each half, as decoders have it for what is no character."""
    return _HALF.sub("\ufffd", text)


def well_formed_json(text: str) -> Any:
    """What the JSON holds, with U+FFFD for each half: a model may write one, and the conversation must go on.

    Raises ValueError and RecursionError, as `json.loads` does.
    """
    value = json.loads(text)
    if "\\u" not in text:
        return value
    return json.loads(well_formed(json.dumps(value, ensure_ascii=False)))
