"""What JSON can spell and a prompt cannot hold: halves of surrogate pairs, and numbers of thousands of digits."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """The text with U+FFFD for each half, as decoders have it for what is no character."""
    return _HALF.sub("\ufffd", text)


def well_formed_json(text: str) -> Any:
    """What the JSON holds, with U+FFFD for each half: a model may write one, and the conversation must go on.

    Raises ValueError and RecursionError, as `json.loads` does.
    """
    value = json.loads(text, parse_int=_whole)
    if "\\u" not in text:
        return value
    return json.loads(well_formed(json.dumps(value, ensure_ascii=False)))


def _whole(digits: str) -> int | str:
    """A number; its digits where there are more than Python reads, for a model may write that too."""
    return int(digits) if len(digits) < sys.int_info.default_max_str_digits else digits
