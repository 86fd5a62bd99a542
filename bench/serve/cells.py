"""What is asked of a server in one cell of the table, and the record that comes of it."""

from __future__ import annotations

import random
import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.serve.load_client import Load, at_once
from bench.serve.servers import Running

_WORDS = (
    "river", "stone", "cloud", "window", "music", "garden", "letter", "summer", "winter", "market", "silver",
    "yellow", "bridge", "forest", "paper", "mountain", "table", "coffee", "island", "engine", "candle", "pocket",
    "shadow", "mirror", "bottle", "circle", "corner", "doctor", "farmer", "finger",
)  # fmt: skip
_SHARING_CLIENTS = 16
_KEPT_CONNECTIONS = 8

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Lengths of prompts and answers. A word is about 1.1 tokens."""

    prompt_words: int
    prefix_words: int
    max_tokens: int
    kept_turns: int
    request_seconds: float


def text(seed: object, n_words: int) -> str:
    """Words that begin differently for every seed, so that no cache knows them."""
    chosen = random.Random(str(seed))
    return " ".join(chosen.choice(_WORDS) for _ in range(n_words))


def body(running: Running, content: str, max_tokens: int) -> Mapping[str, Any]:
    """A request whose answer has exactly ``max_tokens`` tokens where the server can ignore the end token.

    The raw text is asked for where it can be had: servers differ in the tags and blanks around the thinking that they
    show, and a first token that one of them hides would be waited for longer than it took.
    """
    asked = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0.6,
        "top_p": 0.95,
        "seed": 1,
        "stream_options": {"include_usage": True},
    }
    return asked if running.name == "llama_cpp.server" else {**asked, "ignore_eos": True, "reasoning_format": "none"}


async def warm(running: Running, sizes: Sizes) -> None:
    """Two requests that nobody counts: pages are touched, templates compiled."""
    for turn in range(2):
        await _load(running, sizes, [text(("warm", turn), 8)], 4)


async def _load(running: Running, sizes: Sizes, contents: list[str], max_tokens: int, *, turns: int = 1) -> Load:
    bodies = [body(running, content, max_tokens) for content in contents]
    return await at_once(running.port, bodies, turns=turns, request_seconds=sizes.request_seconds)


def _counts(*loads: Load) -> Record:
    failures = [failure for load in loads for failure in load.failures]
    return {"answers": sum(len(load.answers) for load in loads), "failures": failures}


async def _clients(running: Running, sizes: Sizes, run: object, n_clients: int) -> Record:
    contents = [text((run, n_clients, each), sizes.prompt_words) for each in range(n_clients)]
    load = await _load(running, sizes, contents, sizes.max_tokens)
    firsts = [each.first_token for each in load.answers]
    return {
        "decode": load.decode_tokens_per_second,
        "whole": load.tokens_per_second,
        "first_token": statistics.median(firsts) if firsts else None,
        "mean_first_token": statistics.fmean(firsts) if firsts else None,
        "last_first_token": max(firsts, default=None),
        **_counts(load),
    }


async def _shared_prefix(running: Running, sizes: Sizes, run: object) -> Record:
    prefix = text(("prefix", run), sizes.prefix_words)
    first = await _load(running, sizes, [f"{prefix} first"], 4)
    rest = await _load(running, sizes, [f"{prefix} {each}" for each in range(_SHARING_CLIENTS)], 4)
    ratio = None
    if first.answers and rest.answers:
        ratio = statistics.median(each.first_token for each in rest.answers) / first.answers[0].first_token
    return {"first": [each.first_token for each in first.answers], "shared_ratio": ratio, **_counts(first, rest)}


async def _kept_connections(running: Running, sizes: Sizes, run: object) -> Record:
    contents = [text(("kept", run, each), 4) for each in range(_KEPT_CONNECTIONS)]
    return _counts(await _load(running, sizes, contents, 2, turns=sizes.kept_turns))


def measurement(cell: str) -> Callable[[Running, Sizes, object], Awaitable[Record]]:
    """What measures a cell: a number of clients, ``shared`` or ``kept``."""
    if cell == "shared":
        return _shared_prefix
    if cell == "kept":
        return _kept_connections
    n_clients = int(cell)
    return lambda running, sizes, run: _clients(running, sizes, run, n_clients)
