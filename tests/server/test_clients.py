"""The clients that people use run unchanged: openai, DeepSeek's documented examples, LangChain, LiteLLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI, pydantic_function_tool
from pydantic import BaseModel

from tests.server.live import Live, live

CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"location": "Hangzhou"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
SAY = {
    "9.11 and 9.8": "9.8 is 9.80.\n</think>\n\n9.8 is greater.",
    "How many Rs": "s-t-r-a-w-b-e-r-r-y.\n</think>\n\nThree.",
    "weather": f"A tool.\n</think>\n\n{CALL}",
    "24℃": "So.\n</think>\n\nIt is 24℃ in Hangzhou.",
    "```python\n": "def quick_sort(a): ...\n```\nmore",
    "JSON": "JSON it is.\n</think>\n\n",
    "1+1": "Easy.\n</think>\n\n2",
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get weather of a location, the user should supply a location first.",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"}},
            "required": ["location"],
        },
    },
}


class Answer(BaseModel):
    """What `constrained` of the fake says."""

    answer: int


class GetWeather(BaseModel):
    """The arguments of get_weather."""

    location: str


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live({"say": SAY, "constrained": '{"answer": 42}', "n_ctx": 8192}) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as made:
        yield made


def test_openai_answers_and_streams(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "1+1"}])
    stream = client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "1+1"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)

    assert whole.choices[0].message.content == "2"
    assert whole.usage is not None
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "2"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_asynchronously(server: Live) -> None:
    async def asked() -> tuple[str | None, str]:
        async with AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as made:
            whole = await made.chat.completions.create(model="fake", messages=[{"role": "user", "content": "1+1"}])
            stream = await made.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "1+1"}], stream=True
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return whole.choices[0].message.content, text

    assert asyncio.run(asked()) == ("2", "2")


def test_openai_streams_tool_calls_that_its_own_accumulator_reads(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "weather?"}]
    with client.chat.completions.stream(model="fake", messages=messages, tools=[WEATHER]) as stream:  # type: ignore[list-item]
        completion = stream.get_final_completion()

    (call,) = completion.choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"location": "Hangzhou"})
    assert completion.choices[0].finish_reason == "tool_calls"


def test_openai_parses_a_json_schema(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model="fake", messages=[{"role": "user", "content": "JSON"}], response_format=Answer
    )

    assert parsed.choices[0].message.parsed == Answer(answer=42)


# The client warns of what it parsed itself, where it writes it down for the request.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_openais_own_answer_with_parsed_content_goes_on_with_the_conversation(client: OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": "JSON"}]
    parsed = client.chat.completions.parse(model="fake", messages=asked, response_format=Answer).choices[0].message

    asked += [parsed, {"role": "user", "content": "1+1"}]
    assert client.chat.completions.create(model="fake", messages=asked).choices[0].message.content == "2"


def test_openais_own_answer_with_parsed_calls_goes_on_with_the_conversation() -> None:
    tools = [pydantic_function_tool(GetWeather, name="get_weather")]
    asked: list[Any] = [{"role": "user", "content": "weather?"}]
    strict = {"say": {**SAY, "weather": "A tool.\n</think>\n\n"}, "constrained": CALL, "n_ctx": 8192}
    with live(strict) as server, OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
        whole = client.chat.completions.parse(model="fake", messages=asked, tools=tools)
        with client.chat.completions.stream(model="fake", messages=asked, tools=tools) as stream:
            streamed = stream.get_final_completion()
        for message in (whole.choices[0].message, streamed.choices[0].message):
            (call,) = message.tool_calls or []
            assert call.function.parsed_arguments == GetWeather(location="Hangzhou")
            result = {"role": "tool", "tool_call_id": call.id, "content": "24℃"}
            conversation: list[Any] = [*asked, message, result]
            answer = client.chat.completions.create(model="fake", messages=conversation)
            assert answer.choices[0].message.content == "It is 24℃ in Hangzhou."


def test_openai_completions_embeddings_and_errors(client: OpenAI) -> None:
    completion = client.completions.create(model="fake", prompt=["1+1", "1+1"], max_tokens=3, n=2, echo=True)
    vectors = client.embeddings.create(model="fake", input=["a", "b"])
    as_floats = client.embeddings.create(model="fake", input=["a", "b"], encoding_format="float")

    assert len(completion.choices) == 4
    assert all(choice.text.startswith("1+1") for choice in completion.choices)
    assert vectors.data[1].embedding == pytest.approx(as_floats.data[1].embedding)
    with pytest.raises(BadRequestError, match=r"max_tokens: must be at least 1, found 0") as refused:
        client.completions.create(model="fake", prompt="a", max_tokens=0)
    assert refused.value.param == "max_tokens"
    with pytest.raises(NotFoundError, match="there is no model 'gpt-9' here"):
        client.completions.create(model="gpt-9", prompt="a")


def test_deepseeks_multi_round_example(server: Live) -> None:
    client = OpenAI(api_key="<DeepSeek API Key>", base_url=server.url, max_retries=0)

    messages: Any = [{"role": "user", "content": "9.11 and 9.8, which is greater?"}]
    response: Any = client.chat.completions.create(model="deepseek-reasoner", messages=messages)
    reasoning_content = response.choices[0].message.reasoning_content
    content = response.choices[0].message.content
    assert (reasoning_content, content) == ("9.8 is 9.80.", "9.8 is greater.")

    messages.append({"role": "assistant", "content": content})
    messages.append({"role": "user", "content": "How many Rs are there in the word 'strawberry'?"})
    response = client.chat.completions.create(model="deepseek-reasoner", messages=messages)
    assert response.choices[0].message.content == "Three."
    client.close()


def test_deepseeks_streaming_example(server: Live) -> None:
    client = OpenAI(api_key="<DeepSeek API Key>", base_url=server.url, max_retries=0)

    messages: Any = [{"role": "user", "content": "9.11 and 9.8, which is greater?"}]
    response: Any = client.chat.completions.create(model="deepseek-reasoner", messages=messages, stream=True)
    reasoning_content = ""
    content = ""
    for chunk in response:
        if chunk.choices[0].delta.reasoning_content:
            reasoning_content += chunk.choices[0].delta.reasoning_content
        else:
            content += chunk.choices[0].delta.content
    assert (reasoning_content, content) == ("9.8 is 9.80.", "9.8 is greater.")
    client.close()


def test_deepseeks_prefix_completion_example(server: Live) -> None:
    client = OpenAI(api_key="<your api key>", base_url=server.url + "/beta", max_retries=0)

    messages: Any = [
        {"role": "user", "content": "Please write quick sort code"},
        {"role": "assistant", "content": "```python\n", "prefix": True},
    ]
    response = client.chat.completions.create(model="deepseek-chat", messages=messages, stop=["```"])
    assert response.choices[0].message.content == "def quick_sort(a): ...\n"
    assert response.choices[0].finish_reason == "stop"
    client.close()


def test_deepseeks_function_calling_example(server: Live) -> None:
    client = OpenAI(api_key="<your api key>", base_url=server.url, max_retries=0)
    tools: Any = [WEATHER]

    def send_messages(messages: Any) -> Any:
        response = client.chat.completions.create(model="deepseek-chat", messages=messages, tools=tools)
        return response.choices[0].message

    messages: Any = [{"role": "user", "content": "How's the weather in Hangzhou?"}]
    message = send_messages(messages)
    tool = message.tool_calls[0]
    assert tool.function.name == "get_weather"
    messages.append(message)
    messages.append({"role": "tool", "tool_call_id": tool.id, "content": "24℃"})
    assert send_messages(messages).content == "It is 24℃ in Hangzhou."
    client.close()


def test_deepseeks_json_output_example(server: Live) -> None:
    client = OpenAI(api_key="<your api key>", base_url=server.url, max_retries=0)

    messages: Any = [
        {"role": "system", "content": 'EXAMPLE JSON OUTPUT: {"answer": 1}'},
        {"role": "user", "content": "Answer in JSON"},
    ]
    response = client.chat.completions.create(
        model="deepseek-chat", messages=messages, response_format={"type": "json_object"}
    )
    assert json.loads(response.choices[0].message.content or "") == {"answer": 42}
    client.close()


def test_langchain_answers_streams_calls_tools_and_parses(server: Live) -> None:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    model = ChatOpenAI(model="fake", base_url=server.url + "/v1", api_key="any", max_retries=0)  # type: ignore[arg-type]
    answered = model.invoke("9.11 and 9.8")
    streamed = list(model.stream("9.11 and 9.8"))
    called = model.bind_tools([WEATHER]).invoke("weather?")
    parsed = model.with_structured_output(Answer, method="json_schema").invoke("JSON")
    embeddings = OpenAIEmbeddings(
        model="fake",
        base_url=server.url + "/v1",
        api_key="any",  # type: ignore[arg-type]
        check_embedding_ctx_length=False,
    )

    assert answered.content == "9.8 is greater."
    assert answered.usage_metadata is not None
    assert answered.usage_metadata["output_token_details"]["reasoning"] > 0
    assert "".join(str(chunk.content) for chunk in streamed) == "9.8 is greater."
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("get_weather", {"location": "Hangzhou"})]
    assert parsed == Answer(answer=42)
    assert len(embeddings.embed_query("a")) == 8


def litellm_asked(server: Live, provider: str, text: str, **fields: Any) -> Any:
    import litellm

    return litellm.completion(
        model=f"{provider}/{'fake' if provider == 'openai' else 'deepseek-reasoner'}",
        api_base=server.url + ("/v1" if provider == "openai" else "/beta"),
        api_key="any",
        messages=[{"role": "user", "content": text}],
        **fields,
    )


@pytest.mark.filterwarnings("ignore")  # LiteLLM's own, also from the threads that it streams in
@pytest.mark.parametrize("provider", ["openai", "deepseek"])
def test_litellm_reads_the_reasoning(server: Live, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would look for prices on the net
    whole = litellm_asked(server, provider, "9.11 and 9.8")
    stream = list(litellm_asked(server, provider, "9.11 and 9.8", stream=True))

    assert whole.choices[0].message.content == "9.8 is greater."
    assert whole.choices[0].message.reasoning_content == "9.8 is 9.80."
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "9.8 is greater."
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "9.8 is 9.80."


@pytest.mark.filterwarnings("ignore")
def test_litellm_calls_tools(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    called = litellm_asked(server, "deepseek", "weather?", tools=[WEATHER])

    assert called.choices[0].message.tool_calls[0].function.name == "get_weather"
