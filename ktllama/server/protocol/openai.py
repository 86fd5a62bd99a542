"""The fields of OpenAI's API that change nothing here, and those that only null can be honoured for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ktllama.server.protocol.base import Body, only, refused

_HARMLESS = "Accepted; changes nothing."


class OpenAIFields(Body):
    """A client that was written for OpenAI sends these. None of them may change the answer silently."""

    model: str | None = Field(default=None, max_length=512, description="A name from /v1/models.")
    user: str | None = Field(default=None, description=_HARMLESS)
    metadata: dict[str, Any] | None = Field(default=None, description=_HARMLESS)
    safety_identifier: str | None = Field(default=None, description=_HARMLESS)
    prompt_cache_key: str | None = Field(default=None, description=_HARMLESS)
    prompt_cache_retention: str | None = Field(default=None, description=_HARMLESS)
    service_tier: Annotated[str | None, only("auto", "default", reason="there is one service tier")] = None
    store: Annotated[Any, only(False, reason="answers are not stored here")] = None


class OpenAIChatFields(OpenAIFields):
    """The same, of chat alone."""

    modalities: Annotated[Any, only(["text"], reason="this server writes text only")] = None
    verbosity: Annotated[Any, only("medium", reason="the model has no verbosity setting")] = None
    audio: Annotated[Any, refused("this server makes no audio")] = None
    prediction: Annotated[Any, refused("predicted outputs are not used here")] = None
    web_search_options: Annotated[Any, refused("this server does not search the web")] = None
    functions: Annotated[Any, refused("functions were replaced by tools; send tools")] = None
    function_call: Annotated[Any, refused("function_call was replaced by tool_choice; send tool_choice")] = None
