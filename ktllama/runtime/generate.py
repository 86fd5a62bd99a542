"""Text from a loaded model: one prompt in, pieces of text out.

This is the plain loop behind ``ktllama run``: one sequence, prefill in batches, then a token at a time.
"""

from __future__ import annotations

import codecs
import ctypes
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ktllama.errors import LlamaCppError
from ktllama.runtime.load import LoadedModel

FinishReason = Literal["stop", "length"]

_Tokens: TypeAlias = Generator[int, None, None]

_PIECE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen: the most likely one at temperature 0, else by ``top_p`` with ``seed``."""

    temperature: float = 0.0
    top_p: float = 0.95
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Timings:
    """Tokens and seconds of one generation. The first generated token comes out of the prefill."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens a second; 0 where nothing was measured."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Generated tokens a second, without the first; 0 where nothing was measured."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


class TokenStream(Iterator[int]):
    """The tokens that follow a prompt; ``timings`` and ``finish_reason`` fill while it is read."""

    def __init__(self, loaded: LoadedModel, prompt: Sequence[int], *, max_tokens: int, sampling: Sampling) -> None:
        self.timings = Timings(prefill_tokens=len(prompt))
        self.finish_reason: FinishReason | None = None
        self._tokens = self._run(loaded, list(prompt), max_tokens, sampling)

    def __next__(self) -> int:
        return next(self._tokens)

    def close(self) -> None:
        """Stop early and free the sampler."""
        self._tokens.close()

    def _run(self, loaded: LoadedModel, prompt: list[int], max_tokens: int, sampling: Sampling) -> _Tokens:
        api = loaded.library.api
        room = int(api.llama_n_ctx_seq(loaded.context)) - len(prompt)
        sampler = _sampler(api, sampling)
        try:
            started = time.perf_counter()
            _prefill(loaded, prompt)
            token = int(api.llama_sampler_sample(sampler, loaded.context, -1))
            self.timings.prefill_seconds = time.perf_counter() - started
            for n_generated in range(1, max_tokens + 1):
                if api.llama_vocab_is_eog(loaded.vocab, token):
                    self.finish_reason = "stop"
                    return
                yield token
                if n_generated > room or n_generated == max_tokens:
                    break
                started = time.perf_counter()
                _decode(loaded, [token])
                token = int(api.llama_sampler_sample(sampler, loaded.context, -1))
                self.timings.decode_seconds += time.perf_counter() - started
                self.timings.decode_tokens += 1
            self.finish_reason = "length"
        finally:
            api.llama_sampler_free(sampler)


class TextStream(Iterator[str]):
    """The text that follows a prompt, in pieces that are whole characters."""

    def __init__(self, loaded: LoadedModel, tokens: TokenStream) -> None:
        self.tokens = tokens
        self._pieces = self._run(loaded)

    @property
    def timings(self) -> Timings:
        """Tokens and seconds so far."""
        return self.tokens.timings

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended: the model said so, or ``max_tokens`` or the context was full. None while it runs."""
        return self.tokens.finish_reason

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop early and free the sampler."""
        self._pieces.close()
        self.tokens.close()

    def _run(self, loaded: LoadedModel) -> Generator[str, None, None]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in self.tokens:
            if text := decoder.decode(token_bytes(loaded, token)):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text


def generate(
    loaded: LoadedModel,
    prompt: str,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 0.95,
    seed: int = 0,
    chat: bool = True,
) -> TextStream:
    """Continue ``prompt``; with ``chat`` it is a user's message in the model's chat template, else raw text.

    Raises:
        LlamaCppError: when the prompt is empty or does not fit the context, or the model has no usable chat template.
    """
    text = chat_prompt(loaded, [("user", prompt)]) if chat else prompt
    tokens = tokenize(loaded, text, parse_special=chat)
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    return TextStream(loaded, generate_tokens(loaded, tokens, max_tokens=max_tokens, sampling=sampling))


def generate_tokens(
    loaded: LoadedModel, prompt: Sequence[int], *, max_tokens: int, sampling: Sampling | None = None
) -> TokenStream:
    """Continue a prompt of token ids.

    Raises:
        LlamaCppError: when the prompt is empty or does not fit the context.
    """
    n_ctx = int(loaded.library.api.llama_n_ctx_seq(loaded.context))
    if not prompt:
        raise LlamaCppError("the prompt is empty")
    if len(prompt) > n_ctx:
        raise LlamaCppError(
            f"the prompt has {len(prompt)} tokens and the context holds {n_ctx}: shorten it or enlarge the context"
        )
    return TokenStream(loaded, prompt, max_tokens=max_tokens, sampling=sampling or Sampling())


def tokenize(loaded: LoadedModel, text: str, *, parse_special: bool = False) -> list[int]:
    """The token ids of ``text``, with the begin-of-sequence token where the model wants one.

    ``parse_special`` reads the text of special tokens as those tokens.

    Raises:
        LlamaCppError: when the model cannot tokenize, because its file has no vocabulary.
    """
    api = loaded.library.api
    if api.llama_vocab_type(loaded.vocab) == api.LLAMA_VOCAB_TYPE_NONE:
        raise LlamaCppError("the model file has no vocabulary, so text cannot be made into tokens")
    data = text.encode()
    buffer = (ctypes.c_int32 * (len(data) + 8))()
    n_tokens = api.llama_tokenize(loaded.vocab, data, len(data), buffer, len(buffer), True, parse_special)
    if n_tokens < 0:
        buffer = (ctypes.c_int32 * -n_tokens)()
        n_tokens = api.llama_tokenize(loaded.vocab, data, len(data), buffer, len(buffer), True, parse_special)
    return list(buffer[:n_tokens])


def token_bytes(loaded: LoadedModel, token: int) -> bytes:
    """The text of one token; it may end within a UTF-8 character. Special tokens give nothing."""
    api = loaded.library.api
    buffer = ctypes.create_string_buffer(_PIECE_BYTES)
    n_bytes = api.llama_token_to_piece(loaded.vocab, token, buffer, len(buffer), 0, False)
    if n_bytes < 0:
        buffer = ctypes.create_string_buffer(-n_bytes)
        n_bytes = api.llama_token_to_piece(loaded.vocab, token, buffer, len(buffer), 0, False)
    return buffer.raw[:n_bytes]


def chat_prompt(loaded: LoadedModel, messages: Sequence[tuple[str, str]]) -> str:
    """``messages`` (role, content) in the model's chat template, up to where the assistant begins.

    Raises:
        LlamaCppError: when the model has no template, or one that llama.cpp does not recognise.
    """
    api = loaded.library.api
    template: bytes | None = api.llama_model_chat_template(loaded.model, None)
    if template is None:
        raise LlamaCppError("the model file has no chat template; give it raw text instead")
    listed = (api.llama_chat_message * len(messages))(
        *[api.llama_chat_message(role=role.encode(), content=content.encode()) for role, content in messages]
    )
    size = api.llama_chat_apply_template(template, listed, len(messages), True, None, 0)
    if size < 0:
        raise LlamaCppError("llama.cpp does not know the model's chat template; give it raw text instead")
    buffer = ctypes.create_string_buffer(size + 1)
    api.llama_chat_apply_template(template, listed, len(messages), True, buffer, len(buffer))
    return buffer.raw[:size].decode()


def _sampler(api: Any, sampling: Sampling) -> Any:
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    if sampling.temperature <= 0:
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_greedy())
        return chain
    api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_p(sampling.top_p, 1))
    api.llama_sampler_chain_add(chain, api.llama_sampler_init_temp(sampling.temperature))
    api.llama_sampler_chain_add(chain, api.llama_sampler_init_dist(sampling.seed))
    return chain


def _prefill(loaded: LoadedModel, prompt: list[int]) -> None:
    api = loaded.library.api
    api.llama_memory_clear(api.llama_get_memory(loaded.context), True)
    n_batch = int(api.llama_n_batch(loaded.context))
    for start in range(0, len(prompt), n_batch):
        _decode(loaded, prompt[start : start + n_batch])


def _decode(loaded: LoadedModel, tokens: list[int]) -> None:
    api = loaded.library.api
    batch = (ctypes.c_int32 * len(tokens))(*tokens)
    status = api.llama_decode(loaded.context, api.llama_batch_get_one(batch, len(tokens)))
    if status != 0:
        said = tuple(line.text for line in loaded.recent)
        raise LlamaCppError(f"llama.cpp could not process {len(tokens)} tokens (status {status})", log=said)
