"""Answers that must follow a grammar: llama.cpp's grammar sampler, kept away from what would abort the process.

The C++ sampler aborts when it is shown a token that does not fit, so every token is checked before it is accepted.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

from ktllama.engine.executor import GrammarError
from ktllama.runtime.gbnf import check_gbnf
from ktllama.runtime.json_schema import schema_to_gbnf


def gbnf_of(grammar: str, json_schema: str) -> str:
    """The checked GBNF text of a grammar or of a JSON schema; empty for neither.

    Raises:
        GrammarError: for both, or for one that cannot be used.
    """
    if grammar and json_schema:
        raise GrammarError("a grammar and a JSON schema exclude each other")
    text = schema_to_gbnf(json_schema) if json_schema else grammar
    if text:
        check_gbnf(text)
    return text


class Constraint:
    """One sequence's place in a grammar. ``gbnf`` has passed :func:`gbnf_of`; ``sampler`` is the C sampler.

    Raises:
        GrammarError: when llama.cpp refuses the grammar, for a token name that is none.
    """

    def __init__(self, api: Any, vocab: Any, gbnf: str) -> None:
        self._api = api
        self.sampler: Any = api.llama_sampler_init_grammar(vocab, gbnf.encode(errors="replace"), b"root")
        if not self.sampler:
            raise GrammarError("llama.cpp does not accept the grammar; <name> must be one token of the model")
        self._data = (api.llama_token_data * 1)()
        self._array = api.llama_token_data_array(data=self._data, size=1, selected=-1, sorted=False)
        self._pointer = ctypes.byref(self._array)

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next."""
        candidate = self._data[0]
        candidate.id, candidate.logit = token, 1.0
        self._api.llama_sampler_apply(self.sampler, self._pointer)
        return bool(candidate.logit != -math.inf)

    def require(self, token: int) -> None:
        """Raise a GrammarError unless ``token`` may come next."""
        if not self.allows(token):
            raise GrammarError(f"token {token} does not fit the grammar at this place")

    def accept(self, token: int) -> None:
        """Move past ``token``, which must have been allowed."""
        self._api.llama_sampler_accept(self.sampler, token)

    def close(self) -> None:
        """Free the C sampler. Safe to call twice."""
        if self.sampler:
            self._api.llama_sampler_free(self.sampler)
            self.sampler = None
