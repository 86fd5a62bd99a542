"""The executor on real weights: what it says, and that a constrained answer is what was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ktllama.engine.executor import Row
from ktllama.engine.messages import Sampling, Segment
from ktllama.runtime.executor import LlamaExecutor, open_executor
from tests.runtime import smollm2


@pytest.fixture(scope="module")
def executor() -> Iterator[LlamaExecutor]:
    options: dict[str, object] = {
        "model": str(smollm2.path()),
        "rules": "llama/cpu",
        "ctx": 256,
        "ubatch": 64,
        "threads": 1,
    }
    opened = open_executor(options, lambda _fraction: None)
    yield opened
    opened.shut()


def _answer(executor: LlamaExecutor, question: str, sampling: Sampling, limit: int, json_schema: str = "") -> str:
    segments = [
        Segment("<|im_start|>user\n", True),
        Segment(question, False),
        Segment("<|im_end|>\n<|im_start|>assistant\n", True),
    ]
    prompt = executor.tokenize(segments, add_bos=executor.model.add_bos)
    executor.open(0, sampling, prompt, None, False, executor.check(sampling, "", json_schema))
    if json_schema:
        executor.constrain(0)
    sampled = executor.run([Row(0, token, at, at == len(prompt) - 1) for at, token in enumerate(prompt)])[0]
    pieces: list[bytes] = []
    while sampled.token not in executor.end_tokens and len(pieces) < limit:
        pieces.append(sampled.piece)
        sampled = executor.run([Row(0, sampled.token, len(prompt) + len(pieces) - 1, True)])[0]
    executor.close(0)
    executor.remove(0, 0)
    return b"".join(pieces).decode()


def test_it_knows_the_capital_of_france(executor: LlamaExecutor) -> None:
    assert "Paris" in _answer(executor, "What is the capital of France?", Sampling(temperature=0), 10)
    assert executor.model.architecture == "llama"
    assert "<|im_start|>" in executor.model.chat_template


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_answer_follows_its_schema(executor: LlamaExecutor, temperature: float) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "millions": {"type": "integer", "maximum": 99}},
        "required": ["city", "millions"],
        "additionalProperties": False,
    }
    sampling = Sampling(temperature=temperature, top_p=0.95, seed=1)
    answer = json.loads(_answer(executor, "Name a city and its population.", sampling, 60, json.dumps(schema)))
    assert set(answer) == {"city", "millions"}
    assert len(answer["city"]) <= 12
    assert answer["millions"] <= 99
