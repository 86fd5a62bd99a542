"""How names and values from a model appear in messages: never more than a line, never a control character."""

from __future__ import annotations

from ktllama.model.model_file import MetadataArray, MetadataValue

_MAX_SHOWN = 80  # characters


def quoted(name: str) -> str:
    """``name`` in quotes, fit for a message: unprintable characters escaped, cut where it gets long."""
    shown = name if len(name) <= _MAX_SHOWN else name[:_MAX_SHOWN] + "…"
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown) + "'"


def shown(value: MetadataValue) -> str:
    """A metadata value, fit for a message."""
    if isinstance(value, MetadataArray):
        return f"an array of {value.n_items:,} items"
    return quoted(value) if isinstance(value, str) else str(value)
