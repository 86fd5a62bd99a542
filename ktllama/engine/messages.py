"""What the API process and the engine process say to each other.

One struct a message, named for what it asks or tells; msgspec puts them on the pipe as tagged MessagePack.
`Request` goes to the engine, `Event` comes back. Every accepted `Generate` ends in exactly one `Finished` or `Failed`,
also when the engine dies: then the client makes the `Failed` itself.
"""

from typing import Literal

import msgspec

from ktllama.r1.tool_formats import ToolFormatName

Kind = Literal["reasoning", "content"]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The base of all: frozen, by keyword, tagged with its class name on the wire."""


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen; the defaults are neutral, a model's profile fills them in.

    Names and meanings are llama.cpp's (common/sampling.cpp); `temperature` 0 is greedy.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: dict[int, float] = {}
    seed: int | None = None


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine follows a sequence's thinking.

    `start` and `end` are the tags' texts; empty where the model does not think. Where the vocabulary has them as single
    tokens the ids decide, otherwise the text does (the engine looks them up). `tool_openings` close unclosed thinking.
    `budget` counts tokens of thinking; at the limit `closing` is forced (it must contain the end tag).
    """

    start: str = ""
    end: str = ""
    begins_inside: bool = False
    budget: int | None = None
    closing: str = ""
    tool_openings: tuple[str, ...] = ()
    keep_blanks: bool = False  # the answer goes on a text of the prompt, so its leading whitespace counts
    prompt_side: str = ""  # the opening tag that the prompt ends in, which a `raw` answer gives back first


class Segment(msgspec.Struct, frozen=True):
    """A piece of prompt text; control tokens count only where `special` is true, so users cannot forge them."""

    text: str
    special: bool


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token's natural-log probability after temperature 1 softmax, before any sampler."""

    token: int
    piece: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts; completion = reasoning + content + the tags (and forced closing) between them."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the API process needs to know of the loaded model."""

    name: str
    architecture: str
    n_ctx_train: int
    n_ctx: int  # cells of the context, shared by all sequences
    n_ubatch: int
    n_parallel: int
    vocab_size: int
    bos: str
    eos: str
    add_bos: bool
    chat_template: str
    metadata: dict[str, str]
    can_embed: bool
    can_share_prefix: bool
    pooling: str
    devices: tuple[str, ...]
    plan: tuple[str, ...]  # the placement by device, one readable line each
    build: str
    load_seconds: float
    special_tokens: tuple[str, ...] = ()  # texts of all tokens that are control, user-defined or unknown
    added_tokens: tuple[str, ...] = ()  # those of them that are user-defined


# ── to the engine ─────────────────────────────────────────────────────────────────────────────────────────────────


class Load(Message, frozen=True, kw_only=True):
    """The first message to an engine process: make the executor by calling `executor` ("module:function")."""

    executor: str
    options: dict[str, object] = {}
    queue_limit: int = 256
    text_interval: float = 0.0


class Generate(Message, frozen=True, kw_only=True):
    """Continue a prompt: the segments of `prompt`, to be tokenized, or else the ids of `tokens`, as they are.

    `grammar` is GBNF and `json_schema` a JSON schema's text (at most one of them); both begin after the thinking.
    `stop` strings do not fire inside thinking. `logprobs` is the number of alternatives (0: the chosen token only).
    `add_bos` puts the token of the beginning before the segments. `deterministic` computes it in batches of its own.
    `raw` gives all text as content, the tags included; `legacy` gives that, and the thinking as reasoning beside it.
    `one_call` ends the answer with its first tool call of that format.
    Choices of one request (n > 1) are Generates of their own with one prompt: the engine computes it once.
    """

    request_id: str
    prompt: tuple[Segment, ...] = ()
    tokens: tuple[int, ...] = ()
    add_bos: bool = False
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    thinking: Thinking = Thinking()
    stop: tuple[str, ...] = ()
    grammar: str = ""
    json_schema: str = ""
    logprobs: int | None = None
    ignore_eos: bool = False
    deterministic: bool = False
    raw: bool = False
    legacy: bool = False
    cache_prompt: bool = True
    keep_partial_thinking_as_content: bool = False
    one_call: ToolFormatName | None = None


class Cancel(Message, frozen=True, kw_only=True):
    """Leave at the next step; answered by Finished(reason="cancelled") if it was still running.

    A request that has not been read yet is dropped, and answered nothing: whoever cancels has forgotten it.
    """

    request_id: str


class Embed(Message, frozen=True, kw_only=True):
    """Pooled, unit-length embeddings, one a prompt."""

    request_id: str
    prompts: tuple[tuple[int, ...] | str, ...]


class Tokenize(Message, frozen=True, kw_only=True):
    """Text to ids; `special` recognises control tokens."""

    request_id: str
    segments: tuple[Segment, ...]
    add_bos: bool = False
    with_pieces: bool = False


class Detokenize(Message, frozen=True, kw_only=True):
    """Ids to bytes; `special` renders control tokens."""

    request_id: str
    tokens: tuple[int, ...]
    special: bool = True


class Drain(Message, frozen=True, kw_only=True):
    """Take no new work, finish what runs, then exit."""


class Report(Message, frozen=True, kw_only=True):
    """Ask for a Stats event now."""

    request_id: str


class Ping(Message, frozen=True, kw_only=True):
    """Ask whether the process is alive; its receiver answers, whatever its other threads do."""


# ── from the engine ───────────────────────────────────────────────────────────────────────────────────────────────


class Loading(Message, frozen=True, kw_only=True):
    """Load progress in 0…1."""

    fraction: float


class Ready(Message, frozen=True, kw_only=True):
    """The model is loaded and takes requests."""

    model: ModelInfo


class LoadFailed(Message, frozen=True, kw_only=True):
    """The model cannot be loaded; restarting would not help."""

    message: str


class Accepted(Message, frozen=True, kw_only=True):
    """The request is in the queue; its prompt has been tokenized."""

    request_id: str
    prompt_tokens: int


class Emitted(Message, frozen=True, kw_only=True):
    """New text of a request, in order; several tokens may come together. Deltas never split a character."""

    request_id: str
    deltas: tuple[tuple[Kind, str], ...]
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    logprob_kinds: tuple[Kind, ...] = ()  # one a logprob: the side of the thinking that its token is on


class Finished(Message, frozen=True, kw_only=True):
    """A request's normal end. `stop` is the stop string that matched, `repetition` that the guard ended it."""

    request_id: str
    reason: Literal["stop", "length", "cancelled"]
    usage: Usage
    stop: str | None = None
    repetition: bool = False
    thinking_forced_closed: bool = False
    ttft_seconds: float = 0.0
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0


class Failed(Message, frozen=True, kw_only=True):
    """A request's other end. `code` is stable (see FAILURES), `fields` what its message is made of."""

    request_id: str
    code: str
    message: str
    fields: dict[str, int | float | str] = {}


class Tokenized(Message, frozen=True, kw_only=True):
    """Answer to Tokenize."""

    request_id: str
    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...] = ()


class Detokenized(Message, frozen=True, kw_only=True):
    """Answer to Detokenize."""

    request_id: str
    text: bytes


class Embedded(Message, frozen=True, kw_only=True):
    """Answer to Embed: (prompts, n_embd) and the tokens that were read."""

    request_id: str
    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int


class Stats(Message, frozen=True, kw_only=True):
    """Where the engine stands; sent with `request_id` when asked, without it about once a second while it works."""

    request_id: str | None
    queued: int
    running: int
    cells_total: int
    cells_running: int
    cells_cached: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    reasoning_tokens: int
    step_seconds: float
    scheduling_seconds: float
    prefilling: int = 0
    preempted: int = 0
    sequences_cached: int = 0
    evictions: int = 0
    preemptions: int = 0
    parked_bytes: int = 0  # of cached sequences that are in main memory instead of the context


class Pong(Message, frozen=True, kw_only=True):
    """Answer to Ping: how long the step that runs now, and the reading of a request, have taken so far; 0: none does.

    A step is one turn of the main thread: requests taken in, a batch, events sent.
    """

    step_seconds: float
    reading_seconds: float


Request = Load | Generate | Cancel | Embed | Tokenize | Detokenize | Drain | Report | Ping
Event = (
    Loading
    | Ready
    | LoadFailed
    | Accepted
    | Emitted
    | Finished
    | Failed
    | Tokenized
    | Detokenized
    | Embedded
    | Stats
    | Pong
)

# Every `Failed.code`, with the HTTP status that says it best.
FAILURES = {
    "context_length_exceeded": 400,  # fields: prompt_tokens, max_tokens, n_ctx; at_least; or longest
    "invalid_grammar": 400,  # fields: field
    "invalid_json_schema": 400,  # fields: field
    "invalid_token": 400,
    "invalid_sampling": 400,  # fields: field
    "not_supported": 400,  # fields: field
    "empty_prompt": 400,
    "queue_full": 429,  # fields: queued, retry_after
    "draining": 503,
    "loading": 503,  # fields: retry_after, fraction
    "engine_died": 503,  # fields: retry_after
    "engine_unresponsive": 503,  # fields: retry_after
    "engine_error": 500,
}
