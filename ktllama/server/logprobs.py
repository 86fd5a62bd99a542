"""Tokens' probabilities in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ktllama.engine.messages import TokenLogprob

# JSON has no minus infinity; OpenAI writes this for a token that cannot come.
_LEAST = -9999.0


def _text(piece: bytes) -> str:
    return piece.decode(errors="replace")


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """The entries of `logprobs.content` and `logprobs.reasoning_content`. `bytes` tell what `token` may not."""
    return [
        {
            **_entry(token.piece, token.logprob),
            "top_logprobs": [_entry(piece, logprob) for _, piece, logprob in token.top],
        }
        for token in tokens
    ]


def _entry(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(piece), "logprob": _finite(logprob), "bytes": list(piece)}


def legacy_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """The `logprobs` of /v1/completions; `offset` is where the first token's text begins, in characters."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(_text(token.piece))
    return {
        "tokens": [_text(token.piece) for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [
            {_text(piece): _finite(logprob) for _, piece, logprob in token.top} if token.top else None
            for token in tokens
        ],
        "text_offset": offsets,
    }
