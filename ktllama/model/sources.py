"""Opens a model by what the user called it: a path, an address, or a repository of the Hugging Face Hub.

What talks to servers is imported where it is needed: that takes longer than to read a header.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ktllama.model import gguf
from ktllama.model.model_file import ModelFile

if TYPE_CHECKING:
    from ktllama.model.http_session import Access

_WEB = ("https://", "http://")
_HUB = "hf:"


def is_remote(source: str | os.PathLike[str]) -> bool:
    """Whether ``source`` is an address or a repository, not a path. Write ``./hf:x`` for a file of such a name."""
    text = os.fspath(source)
    return text.startswith(_HUB) or text.lower().startswith(_WEB)


def open_model(source: str | os.PathLike[str], access: Access | None = None) -> ModelFile:
    """Read the header of the model called ``source``; its tensor data may be missing.

    Raises:
        ModelFileError: when it cannot be read.
    """
    text = os.fspath(source)
    if not is_remote(text):
        return gguf.read(text, header_only=True)
    from ktllama.model import hugging_face, remote
    from ktllama.model.http_session import Access, Session

    if not text.startswith(_HUB):
        return remote.read_url(text, access)
    reference = hugging_face.parse(text)
    with Session(access or Access()) as session:
        return hugging_face.read(session, reference)


def open_config(source: str | os.PathLike[str], quantization: str, access: Access | None = None) -> ModelFile:
    """The model that a ``config.json`` describes, by its path, its folder, its address or ``hf:OWNER/REPO``.

    Raises:
        ModelFileError: when it cannot be read, or describes no model that is known.
    """
    from ktllama.model import hf_config

    text = os.fspath(source)
    if not is_remote(text):
        return hf_config.read(text, quantization)
    from ktllama.model import hugging_face
    from ktllama.model.http_session import Access, Session

    with Session(access or Access()) as session:
        address, title = hugging_face.config_address(session, text)
        content = session.body(address, hf_config.MAX_BYTES, shown=address.shown)
    return hf_config.parse(content, address.shown, title, quantization)
