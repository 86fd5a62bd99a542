"""The body of /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, model_validator
from pydantic_core import PydanticCustomError

from ktllama.server.protocol.base import TOKEN_LIMIT, TokenId, branch, branch_name, items, refused
from ktllama.server.protocol.chat import StreamOptions
from ktllama.server.protocol.openai import OpenAIFields
from ktllama.server.protocol.sampling import SamplingFields


def _prompt_tag(value: Any) -> str:
    if not isinstance(value, list):
        return branch_name("text")
    first = value[0] if value else None
    if isinstance(first, list):
        return branch_name("many_ids")
    return branch_name("ids" if isinstance(first, int) else "texts")


# One text, many, the token ids of one, or of many: OpenAI's four forms.
Prompts = Annotated[
    Annotated[str, branch("text")]
    | Annotated[list[str], items(min_length=1), branch("texts")]
    | Annotated[list[TokenId], items(min_length=1), branch("ids")]
    | Annotated[list[Annotated[list[TokenId], items(min_length=1)]], items(min_length=1), branch("many_ids")],
    Discriminator(_prompt_tag),
]


def each_prompt(prompts: str | list[str] | list[int] | list[list[int]]) -> list[str | tuple[int, ...]]:
    """The prompts one by one: a text, or token ids."""
    if isinstance(prompts, str):
        return [prompts]
    ids = tuple(part for part in prompts if isinstance(part, int))
    if ids:
        return [ids]
    return [part if isinstance(part, str) else tuple(part) for part in prompts if isinstance(part, str | list)]


class CompletionRequest(OpenAIFields, SamplingFields):
    """The body of /v1/completions: raw text in, raw text out; control tokens in the prompt count."""

    prompt: Prompts
    suffix: Annotated[str | None, refused("the model was not trained to fill in a middle")] = None
    echo: bool | None = Field(default=None, description="Begin the answer with the prompt.")
    n: int | None = Field(default=None, ge=1)
    best_of: int | None = Field(default=None, ge=1, description="Must be n: nothing is ranked here.")
    logprobs: int | None = Field(default=None, ge=0, le=20)
    max_tokens: int | None = Field(default=None, ge=1, lt=TOKEN_LIMIT, description="16 if not set, as at OpenAI.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> CompletionRequest:
        def refuse(field: str, message: str) -> None:
            raise PydanticCustomError("disagreement", message, {"field": field})

        if self.stream_options is not None and not self.stream:
            refuse("stream_options", "needs stream: true")
        if self.best_of is not None and self.best_of != (self.n or 1):
            refuse("best_of", "must equal n: every choice is returned, none is ranked")
        if self.echo and self.logprobs is not None:
            refuse("logprobs", "cannot be combined with echo: a prompt's own probabilities are not computed")
        return self
