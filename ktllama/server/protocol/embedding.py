"""The body of /v1/embeddings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ktllama.server.protocol.base import Body
from ktllama.server.protocol.completion import Prompts


class EmbeddingRequest(Body):
    """Texts or token ids to vectors of unit length."""

    input: Prompts
    model: str | None = Field(default=None, max_length=512)
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="base64: little-endian float32."
    )
    dimensions: int | None = Field(default=None, ge=1, description="Must be the model's: vectors are not shortened.")
    user: str | None = Field(default=None, description="Accepted; changes nothing.")
