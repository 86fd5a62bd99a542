"""Optional parts of ktllama that a command needs."""

from __future__ import annotations

import importlib.util

from ktllama.errors import MissingExtraError

#: What each extra must have brought, by the names that are imported.
_MODULES = {
    "serve": (
        "fastapi",
        "httptools",
        "jinja2",
        "msgspec",
        "prometheus_client",
        "pydantic_settings",
        "uvicorn",
        "uvloop",
    ),
}


def require(extra: str) -> None:
    """Make sure that an extra is installed, without importing it.

    Raises:
        MissingExtraError: when it is not.
    """
    missing = [name for name in _MODULES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(", ".join(missing), extra)
