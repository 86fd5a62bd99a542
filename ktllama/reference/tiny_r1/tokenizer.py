"""The vocabulary: bytes, and merges that never hide the letters of a word.

Arithmetic needs single digits and spelling needs single letters, so a merge joins a space and the letter after it and
nothing longer. Which ones, `tokenizers` learns from what users and the model say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ktllama.reference.tiny_r1.mix import TASKS
from ktllama.reference.tiny_r1.template import BEGIN, CONTROL, END, PAD, VISIBLE

#: The name under which llama.cpp knows the expressions below (``LLAMA_VOCAB_PRE_TYPE_DEEPSEEK3_LLM``).
PRE = "deepseek-v3"

_EXPRESSIONS = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_PROSE_PROBLEMS = 20_000
_MOST_MERGES = 64
_SEED = 1


def learn() -> Tokenizer:
    """The tokenizer, learned from the first letters of the words in what is said."""
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in _EXPRESSIONS]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(CONTROL) + 256 + _MOST_MERGES,
        min_frequency=20,
        show_progress=False,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_beginnings(_prose(Random(_SEED))), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in VISIBLE])
    return tokenizer


def _prose(random: Random) -> Iterator[str]:
    makers = [maker for maker, _ in TASKS.values()]
    for _ in range(_PROSE_PROBLEMS):
        problem = random.choice(makers)(random, 0.5)
        yield problem.question
        yield problem.answer


def _beginnings(texts: Iterable[str]) -> Iterator[str]:
    """The space and the first letter of every word."""
    for text in texts:
        yield from re.findall(r" [A-Za-z]", text)
