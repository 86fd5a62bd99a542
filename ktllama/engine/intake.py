"""From a message to what the engine works on: tokenized, checked, refused with its reason.

Called from the reader's thread, so that a long prompt does not keep the step loop waiting; of the executor it uses
only what may be called from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ktllama.engine.embedding import Embedding
from ktllama.engine.executor import Executor, GrammarError, SamplingError
from ktllama.engine.generation import Generation
from ktllama.engine.messages import (
    Detokenize,
    Detokenized,
    Embed,
    Failed,
    Generate,
    Segment,
    Tokenize,
    Tokenized,
)
from ktllama.r1.transcript import Transcript


class Refusal(Exception):  # noqa: N818 - a way out of the checks below, never seen outside this module
    """Carries the `Failed` that answers a request."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.code)
        self.failed = failed


class Intake:
    """Reads requests for one executor."""

    def __init__(self, executor: Executor, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._executor = executor
        self._clock = clock
        self._last: tuple[tuple[Segment, ...], bool, tuple[int, ...]] = ((), False, ())  # and what it was tokenized to

    @property
    def n_parallel(self) -> int:
        """Generations that run at once."""
        return self._executor.model.n_parallel

    def generation(self, request: Generate) -> Generation | Failed:
        """A generation for the queue, or why there is none."""
        received_at = self._clock()
        try:
            checked = self._check(request)
            tokens = self._prompt(request)
            transcript = self._transcript(request)
        except Refusal as refusal:
            return refusal.failed
        n_ctx = self._executor.model.n_ctx
        limit = n_ctx if request.max_tokens is None else min(n_ctx, len(tokens) + request.max_tokens)
        return Generation(request, tokens, transcript, limit, received_at, checked)

    def embedding(self, request: Embed) -> Embedding | Failed:
        """An embedding for the queue, or why there is none."""
        try:
            if not self._executor.model.can_embed:
                message = "this model makes no embeddings"
                raise Refusal(_failed(request.request_id, "not_supported", message, field="embeddings"))
            return Embedding(
                request_id=request.request_id,
                prompts=tuple(self._embedding_prompt(request.request_id, prompt) for prompt in request.prompts),
            )
        except Refusal as refusal:
            return refusal.failed

    def tokenize(self, request: Tokenize) -> Tokenized:
        """Text to ids."""
        tokens = self._executor.tokenize(request.segments, add_bos=request.add_bos)
        pieces = tuple(self._executor.piece(token) for token in tokens) if request.with_pieces else ()
        return Tokenized(request_id=request.request_id, tokens=tuple(tokens), pieces=pieces)

    def detokenize(self, request: Detokenize) -> Detokenized | Failed:
        """Ids to bytes."""
        try:
            self._check_tokens(request.request_id, request.tokens)
        except Refusal as refusal:
            return refusal.failed
        pieces = (self._executor.piece(token, special=request.special) for token in request.tokens)
        return Detokenized(request_id=request.request_id, text=b"".join(pieces))

    def _check(self, request: Generate) -> object:
        """What the executor made of it while it checked."""
        if request.grammar and request.json_schema:
            message = "a grammar and a JSON schema exclude each other"
            raise Refusal(_failed(request.request_id, "not_supported", message, field="grammar"))
        if request.max_tokens is not None and request.max_tokens < 0:
            message = f"max_tokens must not be negative, got {request.max_tokens}"
            raise Refusal(_failed(request.request_id, "not_supported", message, field="max_tokens"))
        if "" in request.stop:
            message = "an empty stop string would stop everywhere"
            raise Refusal(_failed(request.request_id, "not_supported", message, field="stop"))
        try:
            return self._executor.check(request.sampling, request.grammar, request.json_schema)
        except GrammarError as error:
            field = "grammar" if request.grammar else "json_schema"
            raise Refusal(_failed(request.request_id, f"invalid_{field}", str(error), field=field)) from error
        except SamplingError as error:
            raise Refusal(_failed(request.request_id, "invalid_sampling", str(error), field=error.field)) from error
        except ValueError as error:
            raise Refusal(_failed(request.request_id, "invalid_sampling", str(error), field="")) from error

    def _prompt(self, request: Generate) -> list[int]:
        if request.tokens:
            self._check_tokens(request.request_id, request.tokens)
            tokens = list(request.tokens)
        else:
            self._check_least(request.request_id, request.prompt, request.max_tokens, room_for=1)
            tokens = self._tokenized(request.prompt, request.add_bos)
        if not tokens:
            raise Refusal(_failed(request.request_id, "empty_prompt", "the prompt has no tokens"))
        self._check_length(request.request_id, len(tokens), request.max_tokens, room_for=1)
        return tokens

    def _tokenized(self, prompt: tuple[Segment, ...], add_bos: bool) -> list[int]:
        """Its tokens. The choices of one request come one behind the other, and have one prompt."""
        if self._last[:2] != (prompt, add_bos):
            self._last = (prompt, add_bos, tuple(self._executor.tokenize(prompt, add_bos=add_bos)))
        return list(self._last[2])

    def _embedding_prompt(self, request_id: str, prompt: tuple[int, ...] | str) -> tuple[int, ...]:
        if isinstance(prompt, str):
            segments = (Segment(prompt, False),)
            self._check_least(request_id, segments, None, room_for=0)
            prompt = tuple(self._executor.tokenize(segments, add_bos=self._executor.model.add_bos))
        self._check_tokens(request_id, prompt)
        if not prompt:
            raise Refusal(_failed(request_id, "empty_prompt", "a prompt has no tokens"))
        self._check_length(request_id, len(prompt), None, room_for=0)
        if len(prompt) > self._executor.max_embedding_tokens:
            longest = self._executor.max_embedding_tokens
            message = f"a prompt has {len(prompt)} tokens, and the model was trained to embed up to {longest}"
            fields = {"prompt_tokens": len(prompt), "longest": longest}
            raise Refusal(_failed(request_id, "context_length_exceeded", message, **fields))
        return prompt

    def _check_tokens(self, request_id: str, tokens: tuple[int, ...]) -> None:
        vocab_size = self._executor.model.vocab_size
        for token in tokens:
            if not 0 <= token < vocab_size:
                message = f"token {token} is not in the vocabulary, whose ids are 0 to {vocab_size - 1}"
                raise Refusal(_failed(request_id, "invalid_token", message, token=token))

    def _check_least(
        self, request_id: str, prompt: tuple[Segment, ...], max_tokens: int | None, *, room_for: int
    ) -> None:
        """Refuse a text that cannot fit, however it is tokenized, before the seconds that this may take."""
        if 4 * sum(len(segment.text) for segment in prompt) < self._executor.model.n_ctx:
            return  # no text has more tokens than bytes
        n_least = self._executor.least_tokens("".join(segment.text for segment in prompt))
        self._check_length(request_id, n_least, max_tokens, room_for=room_for, at_least=True)

    def _check_length(
        self, request_id: str, n_prompt: int, max_tokens: int | None, *, room_for: int, at_least: bool = False
    ) -> None:
        n_ctx = self._executor.model.n_ctx
        if n_prompt + room_for <= n_ctx:
            return
        message = f"the prompt has {'at least ' if at_least else ''}{n_prompt} tokens and the context {n_ctx}"
        message += ", of which one must be left for the answer" if room_for else ""
        fields = {"prompt_tokens": n_prompt, "max_tokens": max_tokens or 0, "n_ctx": n_ctx}
        if at_least:
            fields["at_least"] = 1
        raise Refusal(_failed(request_id, "context_length_exceeded", message, **fields))

    def _transcript(self, request: Generate) -> Transcript:
        executor, thinking = self._executor, request.thinking
        thinks = bool(thinking.start and thinking.end)
        closing: tuple[int, ...] = ()
        if thinking.budget is not None and thinks:
            if thinking.budget < 0 or thinking.end not in thinking.closing:
                message = "a reasoning budget needs a number of tokens, and closing words that end the thinking"
                raise Refusal(_failed(request.request_id, "not_supported", message, field="reasoning_budget"))
            # words of a user come before the tag: control tokens among them are text
            words, tag, rest = thinking.closing.rpartition(thinking.end)
            segments = [Segment(words, False)] if words else []
            closing = tuple(executor.tokenize((*segments, Segment(tag + rest, True)), add_bos=False))
        opening_id, closing_id = executor.token_id(thinking.start), executor.token_id(thinking.end)
        opener_ids = {text: executor.token_id(text) for text in thinking.tool_openings}
        return Transcript(
            thinking=("open" if thinking.begins_inside else "possible") if thinks else "closed",
            keep_blanks=thinking.keep_blanks,
            prompt_side=thinking.prompt_side,
            think_tags=(thinking.start, thinking.end) if thinks else ("<think>", "</think>"),
            think_ids=None if not thinks or opening_id is None or closing_id is None else (opening_id, closing_id),
            end_ids=frozenset() if request.ignore_eos else executor.end_tokens,
            stop=request.stop,
            reasoning_format="none" if request.raw else "deepseek-legacy" if request.legacy else "deepseek",
            unclosed="content" if request.keep_partial_thinking_as_content else "reasoning",
            tool_openers=tuple(text for text, token in opener_ids.items() if token is None),
            tool_opener_ids={token: text for text, token in opener_ids.items() if token is not None},
            reasoning_budget=thinking.budget if thinks else None,
            closing_tokens=closing,
            one_call=request.one_call,
        )


def _failed(request_id: str, code: str, message: str, **fields: int | float | str) -> Failed:
    return Failed(request_id=request_id, code=code, message=message, fields=fields)
