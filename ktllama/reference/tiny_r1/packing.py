"""Conversations as rows of tokens, several to a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ktllama.reference.tiny_r1.mix import Sample
from ktllama.reference.tiny_r1.template import USER

#: After so many samples that fit nowhere, a batch counts as full.
_MISFITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One conversation. ``n_given`` of the tokens are given, the rest is to be learned."""

    tokens: list[int]
    positions: list[int]
    n_given: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of packed conversations, all (B, T). ``learned`` says which tokens are to be said; segment 0 is filling."""

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    learned: Tensor


def token_id(tokenizer: Tokenizer, text: str) -> int:
    """The id of a special token."""
    found = tokenizer.token_to_id(text)
    assert found is not None
    return found


def encode(tokenizer: Tokenizer, sample: Sample) -> Encoded:
    """The tokens of ``sample``, its last turn moved away by its gap."""
    given = tokenizer.encode(sample.given, add_special_tokens=False).ids
    said = tokenizer.encode(sample.said, add_special_tokens=False).ids
    tokens = given + said
    last_turn = len(given) - 1 - given[::-1].index(token_id(tokenizer, USER))
    positions = [place + (sample.gap if place >= last_turn else 0) for place in range(len(tokens))]
    return Encoded(tokens=tokens, positions=positions, n_given=len(given))


def pack(draw: Callable[[], Encoded], n_rows: int, length: int) -> Batch:
    """A batch of what ``draw`` gives, each in the first row that has room; longer ones than a row are left out."""
    rows: list[list[Encoded]] = [[] for _ in range(n_rows)]
    room = [length] * n_rows
    misfits = 0
    while misfits < _MISFITS:
        one = draw()
        place = next((row for row in range(n_rows) if len(one.tokens) <= room[row]), None)
        if place is None:
            misfits += 1
            continue
        rows[place].append(one)
        room[place] -= len(one.tokens)
    return batch(rows, length)


def batch(rows: Iterable[Iterable[Encoded]], length: int) -> Batch:
    """The rows, filled up to ``length``."""
    columns: tuple[list[list[int]], ...] = ([], [], [], [])
    for row in rows:
        tokens: list[int] = []
        positions: list[int] = []
        segments: list[int] = []
        learned: list[int] = []
        for number, one in enumerate(row, start=1):
            tokens += one.tokens
            positions += one.positions
            segments += [number] * len(one.tokens)
            learned += [0] * one.n_given + [1] * (len(one.tokens) - one.n_given)
        for column, values in zip(columns, (tokens, positions, segments, learned), strict=True):
            column.append(values + [0] * (length - len(values)))
    made = [torch.tensor(column) for column in columns]
    return Batch(tokens=made[0], positions=made[1], segments=made[2], learned=made[3].bool())
