"""The model that comes with ktllama: tiny-R1, a few million parameters that think before they answer.

``tiny-r1.md`` beside it says what it can do and how it was made.
"""

from __future__ import annotations

from pathlib import Path


def tiny_r1() -> Path:
    """Where the GGUF file of tiny-R1 is."""
    return Path(__file__).with_name("tiny-r1.gguf")
