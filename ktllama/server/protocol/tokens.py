"""The bodies of /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ktllama.server.protocol.base import Body, TokenId, items


class TokenizeRequest(Body):
    """Text to token ids."""

    content: str
    add_special: bool | None = Field(default=None, description="Begin with the token that begins a text.")
    parse_special: bool | None = Field(default=None, description="false: control tokens in the text are plain text.")
    with_pieces: bool | None = Field(default=None, description="Each token with its piece of text.")


class DetokenizeRequest(Body):
    """Token ids to text."""

    tokens: Annotated[list[TokenId], items(max_length=1_000_000)]
