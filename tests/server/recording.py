"""An engine client that writes down what it is asked and answers from a script, without a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import httpx

from ktllama.engine.answer_stream import Answer, AnswerStream
from ktllama.engine.client import EngineClient
from ktllama.engine.launch import Launch
from ktllama.engine.messages import (
    Accepted,
    Embedded,
    Emitted,
    Finished,
    Generate,
    Kind,
    ModelInfo,
    Segment,
    Tokenized,
    TokenLogprob,
    Usage,
)
from ktllama.server.app import create_app
from ktllama.server.state import EndpointSettings, ServerState

CONTROL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}{% endif %}"
    "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% endif %}"
    "{% if m.role == 'assistant' %}<｜Assistant｜>{{ m.content }}<｜end▁of▁sentence｜>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
MODEL = ModelInfo(
    name="recorded",
    architecture="deepseek2",
    n_ctx_train=4096,
    n_ctx=4096,
    n_ubatch=64,
    n_parallel=8,
    vocab_size=129280,
    bos=CONTROL[0],
    eos=CONTROL[1],
    add_bos=True,
    chat_template=TEMPLATE,
    metadata={"general.name": "DeepSeek R1"},
    can_embed=True,
    can_share_prefix=True,
    pooling="mean",
    devices=("CPU",),
    plan=("CPU: everything",),
    build="recorded",
    load_seconds=0.0,
    special_tokens=CONTROL,
)
Deltas = Sequence[tuple[Kind, str]]


class RecordingClient(EngineClient):
    """Answers every generation with `says`, one event a delta."""

    def __init__(self, says: Deltas = (("reasoning", "hm"), ("content", "yes")), **finished: Any) -> None:
        super().__init__(Launch(executor="none:none"))
        self.state = "ready"
        self.model = MODEL
        self.says = says
        self.finished = finished
        self.asked: list[Generate] = []
        self.calls: list[tuple[str, Any]] = []
        self.closed: list[str] = []
        self._pouring: dict[int, list[asyncio.Task[None]]] = {}

    def generate(self, *requests: Generate) -> AnswerStream:
        stream = AnswerStream(len(requests), self._close)
        pouring = [asyncio.create_task(self._pour(request, stream)) for request in requests]
        self._pouring[id(stream)] = pouring
        return stream

    def _close(self, stream: AnswerStream) -> None:
        for pouring in self._pouring.pop(id(stream)):
            pouring.cancel()

    async def _pour(self, request: Generate, stream: AnswerStream) -> None:
        async with aclosing(self.script(request)) as events:
            async for event in events:
                stream.put(event)

    async def script(self, request: Generate) -> AsyncGenerator[Answer, None]:
        """The events of one generation."""
        self.asked.append(request)
        try:
            yield Accepted(request_id=request.request_id, prompt_tokens=5)
            for place, (kind, text) in enumerate(self.says):
                await asyncio.sleep(0)
                yield Emitted(
                    request_id=request.request_id,
                    deltas=((kind, text),),
                    tokens=1,
                    logprobs=() if request.logprobs is None else (_logprob(text, request.logprobs, place),),
                    logprob_kinds=() if request.logprobs is None else (kind,),
                )
            usage = Usage(
                prompt_tokens=5,
                cached_tokens=2,
                completion_tokens=len(self.says) + 1,
                reasoning_tokens=sum(kind == "reasoning" for kind, _ in self.says),
            )
            made: dict[str, Any] = {"reason": "stop", "usage": usage, **self.finished}
            yield Finished(request_id=request.request_id, **made)
        finally:
            self.closed.append(request.request_id)

    async def tokenize(
        self, segments: Sequence[Segment], *, add_bos: bool = False, with_pieces: bool = False
    ) -> Tokenized:
        self.calls.append(("tokenize", (tuple(segments), add_bos, with_pieces)))
        return Tokenized(request_id="t", tokens=(1, 2), pieces=(b"a", b"\xff") if with_pieces else ())

    async def detokenize(self, tokens: Sequence[int], *, special: bool = True) -> bytes:
        self.calls.append(("detokenize", (tuple(tokens), special)))
        return b"de\xfftok"

    async def embed(self, prompts: Sequence[Sequence[int] | str]) -> Embedded:
        self.calls.append(("embed", tuple(prompts)))
        return Embedded(request_id="e", vectors=tuple((0.6, 0.8) for _ in prompts), prompt_tokens=3)


def _logprob(text: str, n_top: int, place: int) -> TokenLogprob:
    top = tuple((rank, bytes([97 + rank]), -1.0 - rank) for rank in range(n_top))
    return TokenLogprob(token=place, piece=text.encode(), logprob=-0.25, top=top)


def ask(
    body: Any,
    path: str = "/v1/chat/completions",
    *,
    client: RecordingClient | None = None,
    settings: EndpointSettings | None = None,
    content: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[httpx.Response, RecordingClient]:
    """One request to an application around `client`; the answer, and the client with what it was asked."""
    engine = client or RecordingClient()
    app = create_app(ServerState(client=engine, settings=settings or EndpointSettings(), started=1))

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            if content is not None:
                return await http.post(path, content=content, headers=headers)
            return await http.post(path, json=body, headers=headers)

    return asyncio.run(asked()), engine


def events(response: httpx.Response) -> list[str]:
    """The data of an event stream's events."""
    assert response.headers["content-type"].startswith("text/event-stream")
    return [block.removeprefix("data: ") for block in response.text.split("\n\n") if block.startswith("data: ")]
