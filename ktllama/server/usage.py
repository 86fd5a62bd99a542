"""Token counts as OpenAI and DeepSeek give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ktllama.engine.messages import Usage
from ktllama.server.notes import RequestNotes


def total(usages: Iterable[Usage]) -> Usage:
    """One usage of all choices of one prompt: the prompt counts once, and what one choice computed is no cache hit."""
    each = list(usages)
    return Usage(
        prompt_tokens=each[0].prompt_tokens,
        cached_tokens=min(usage.cached_tokens for usage in each),
        completion_tokens=sum(usage.completion_tokens for usage in each),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in each),
    )


def added(usages: Iterable[Usage]) -> Usage:
    """The sum over several prompts."""
    each = list(usages)
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in each),
        cached_tokens=sum(usage.cached_tokens for usage in each),
        completion_tokens=sum(usage.completion_tokens for usage in each),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in each),
    )


def as_json(usage: Usage) -> dict[str, Any]:
    """The `usage` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "prompt_cache_hit_tokens": usage.cached_tokens,
        "prompt_cache_miss_tokens": usage.prompt_tokens - usage.cached_tokens,
    }


def note(notes: RequestNotes, usage: Usage, finish_reasons: Iterable[str]) -> None:
    """Write the counts into the request's notes."""
    notes.prompt_tokens = usage.prompt_tokens
    notes.cached_tokens = usage.cached_tokens
    notes.completion_tokens = usage.completion_tokens
    notes.reasoning_tokens = usage.reasoning_tokens
    notes.finish_reasons = list(finish_reasons)
