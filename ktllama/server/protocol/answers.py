"""What the answers look like, for the API's description and for tests; the answers themselves are written by hand."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """The base: nothing comes that is not described."""

    model_config = ConfigDict(extra="forbid")


class ErrorBody(Answer):
    """What went wrong. `code` is stable, `param` the field to blame."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """OpenAI's envelope."""

    error: ErrorBody


class PromptTokensDetails(Answer):
    """Of the prompt's tokens."""

    cached_tokens: int


class CompletionTokensDetails(Answer):
    """Of the answer's tokens."""

    reasoning_tokens: int


class Usage(Answer):
    """Token counts. The prompt counts once for all choices; the tags around the thinking are in completion_tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int


class Alternative(Answer):
    """A token and its natural-log probability, before any sampler."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(Alternative):
    """The token that was chosen, and others."""

    top_logprobs: list[Alternative]


class Logprobs(Answer):
    """By token, the thinking's apart."""

    content: list[TokenLogprobs]
    reasoning_content: list[TokenLogprobs] | None = None


class FunctionCall(Answer):
    """`arguments` is JSON as the model wrote it."""

    name: str
    arguments: str


class AnsweredToolCall(Answer):
    """A call to make; answer it with a message of role tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(Answer):
    """The answer. `reasoning_content` is absent with reasoning_format none."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[AnsweredToolCall] | None = None


class Remarks(Answer):
    """What OpenAI's shape has no place for; a member is there only where it applies."""

    repetition: Literal[True] | None = Field(
        default=None, description="The answer repeated itself without end and was stopped."
    )
    thinking_forced_closed: Literal[True] | None = Field(default=None, description="The reasoning budget was spent.")
    stop: str | None = Field(default=None, description="The stop text that ended the answer.")


class ChatChoice(Answer):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    ktllama: Remarks | None = None


class ChatCompletion(Answer):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class CalledFunctionDelta(Answer):
    """The name comes first, then the arguments bit by bit."""

    name: str | None = None
    arguments: str


class ToolCallDelta(Answer):
    """More of a call."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionDelta


class MessageDelta(Answer):
    """What is new; content or thinking, never both but for reasoning_format deepseek-legacy."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Answer):
    """What one choice gained."""

    index: int
    delta: MessageDelta
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    ktllama: Remarks | None = None


class ChatCompletionChunk(Answer):
    """One event of a stream; the last is the text `[DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class LegacyLogprobs(Answer):
    """OpenAI's older shape."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Answer):
    """One text. In a stream: what is new of it, and a finish_reason at its end."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    ktllama: Remarks | None = None


class TextCompletion(Answer):
    """The answer to a raw prompt, and an event of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | None = None


class EmbeddingVector(Answer):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Answer):
    """Vectors in the order of the inputs."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingVector]
    usage: EmbeddingUsage


class TokenPiece(Answer):
    """A token and its text, or its bytes where they are no text by themselves."""

    id: int
    piece: str | list[int]


class Tokens(Answer):
    """Token ids, with pieces where they were asked for."""

    tokens: list[int] | list[TokenPiece]


class Text(Answer):
    """The tokens' text."""

    content: str


class RenderedPrompt(Answer):
    """What the model would be given. `begins_inside`: its first token is thinking."""

    prompt: str
    thinking: Literal["open", "possible", "closed"]
    begins_inside: bool


SCHEMAS: tuple[type[BaseModel], ...] = (
    ErrorAnswer,
    ChatCompletion,
    ChatCompletionChunk,
    TextCompletion,
    EmbeddingList,
    Tokens,
    Text,
    RenderedPrompt,
)


EXAMPLES: dict[str, dict[str, Any]] = {
    "ChatRequest": {
        "messages": [{"role": "user", "content": "What is 17 * 23?"}],
        "max_tokens": 2000,
        "reasoning_effort": "low",
    },
    "CompletionRequest": {"prompt": "The sky is blue because", "max_tokens": 32, "temperature": 0},
    "EmbeddingRequest": {"input": ["The sky is blue.", "Grass is green."]},
    "TokenizeRequest": {"content": "The sky is blue.", "with_pieces": True},
    "DetokenizeRequest": {"tokens": [84, 104, 101]},
}
