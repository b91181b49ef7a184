"""The main job on real input: the openai SDK and curl, talking to ``codexd --demo`` as a person starts it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import msgspec
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI
from pydantic import BaseModel

from support.daemon import PATIENCE, ROOT
from support.demo import base_url, curl_of
from support.demo import demo as demo_running

pytestmark = pytest.mark.loopback

MODELS = ("gpt-5.5", "gpt-6-sol")  # one of each shape
CHAT_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME_TOOL: Any = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}},
}
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": CHAT_TOOL["function"]["parameters"] | {"additionalProperties": False},
    "strict": True,
}


class Weather(BaseModel):
    city: str
    degrees: float


class Demo(NamedTuple):
    base: str
    curl: str
    client: OpenAI


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Demo]:
    home = tmp_path_factory.mktemp("demo")
    with demo_running(home, logs / "demo.log", CODEXD_LOGGING__LEVEL="debug") as said:
        base = base_url(said)
        with OpenAI(base_url=base, api_key="any", max_retries=0) as client:
            yield Demo(base, curl_of(said), client)


@pytest.mark.needs("curl")
def test_the_curl_line_works_when_pasted(demo: Demo) -> None:
    done = subprocess.run(["bash", "-c", demo.curl], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert '"content":" codexd!"' in done.stdout
    assert done.stdout.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("model", MODELS)
def test_chat_streamed_and_not(demo: Demo, model: str) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]
    whole = demo.client.chat.completions.create(model=model, messages=messages)
    said = whole.choices[0].message.content
    assert said is not None
    assert said.endswith("You wrote: Hello there")
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    stream = demo.client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == said
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []


@pytest.mark.parametrize("model", MODELS)
def test_chat_tools_go_round(demo: Demo, model: str) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = demo.client.chat.completions.create(model=model, messages=messages, tools=[CHAT_TOOL])
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls is not None
    call: Any = message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city":"Paris"}')
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    second = demo.client.chat.completions.create(model=model, messages=messages, tools=[CHAT_TOOL])
    assert second.choices[0].message.content == "The tool returned: sunny"


def test_chat_tools_in_parallel_and_by_name(demo: Demo) -> None:
    messages: Any = [{"role": "user", "content": "Weather and time, please"}]
    tools = [CHAT_TOOL, TIME_TOOL]
    with demo.client.chat.completions.stream(model="gpt-5.5", messages=messages, tools=tools) as stream:
        final = stream.get_final_completion()
    calls: Any = final.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather", "get_time"]
    named = demo.client.chat.completions.create(
        model="gpt-5.5",
        messages=[{"role": "user", "content": "Hi"}],
        tools=tools,
        tool_choice={"type": "function", "function": {"name": "get_time"}},
    )
    forced: Any = named.choices[0].message.tool_calls
    assert [call.function.name for call in forced] == ["get_time"]


@pytest.mark.parametrize("model", MODELS)
def test_structured_outputs(demo: Demo, model: str) -> None:
    chat = demo.client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": "Weather in Graz"}], response_format=Weather
    )
    assert chat.choices[0].message.parsed == Weather(city="Graz", degrees=1.5)
    response = demo.client.responses.parse(model=model, input="Weather in Graz", text_format=Weather)
    assert response.output_parsed == Weather(city="Graz", degrees=1.5)


@pytest.mark.parametrize("model", MODELS)
def test_responses_streamed_and_not(demo: Demo, model: str) -> None:
    whole = demo.client.responses.create(
        model=model, input="Hello there", instructions="Be brief.", metadata={"a": "b"}
    )
    assert whole.output_text.endswith("You wrote: Hello there")
    assert (whole.status, whole.instructions, whole.metadata) == ("completed", "Be brief.", {"a": "b"})
    with demo.client.responses.stream(model=model, input="Hello there") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output_text == whole.output_text


@pytest.mark.parametrize("model", MODELS)
def test_responses_tools_go_round(demo: Demo, model: str) -> None:
    history: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
    first = demo.client.responses.create(model=model, input=history, tools=[TOOL])
    call: Any = first.output[-1]
    assert (call.type, call.name, call.arguments) == ("function_call", "get_weather", '{"city":"Rome"}')
    assert getattr(call, "namespace", None) is None
    history += [item.model_dump() for item in first.output]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "rain"})
    second = demo.client.responses.create(model=model, input=history, tools=[TOOL])
    assert second.output_text == "The tool returned: rain"


def test_reasoning_and_images(demo: Demo) -> None:
    picture: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}
    answer = demo.client.chat.completions.create(
        model="gpt-6-sol-high",
        messages=[{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}],
    )
    message: Any = answer.choices[0].message
    assert message.reasoning_content == "**Reading** the request."
    assert message.content.endswith("I also got 1 image.")


def test_models_are_listed_and_found(demo: Demo) -> None:
    names = [model.id for model in demo.client.models.list()]
    assert {"gpt-5.1", "gpt-5.5", "gpt-6-sol"} <= set(names)
    assert "codex-auto-review" not in names
    assert demo.client.models.retrieve("gpt-6-sol-high").id == "gpt-6-sol-high"
    with pytest.raises(openai.NotFoundError) as caught:
        demo.client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model"),
        ({"model": ""}, openai.BadRequestError, "model"),
        ({"extra_body": {"previous_response_id": "resp_1"}}, openai.BadRequestError, "previous_response_id"),
        ({"n": 9}, openai.BadRequestError, "n"),
        ({"stop": list("abcde")}, openai.BadRequestError, "stop"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, openai.BadRequestError, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, openai.BadRequestError, "messages[0].role"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}, openai.BadRequestError, "messages[0]"),
    ],
)
def test_mistakes_are_openai_errors_that_name_the_place(
    demo: Demo, fields: Any, kind: type[openai.APIError], param: str
) -> None:
    with pytest.raises(kind) as caught:
        demo.client.chat.completions.create(
            **({"model": "gpt-5.5", "messages": [{"role": "user", "content": "x"}]} | fields)
        )
    assert caught.value.param == param
    body: Any = caught.value.body
    assert set(body) == {"message", "type", "param", "code"}


def curl(*arguments: str) -> tuple[str, str]:
    """(head, body) of a request with curl."""
    done = subprocess.run(
        ["curl", "-sS", "-i", *arguments], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    head, _, body = done.stdout.partition("\n\n")
    return head, body


@pytest.mark.needs("curl")
def test_curl_sees_plain_errors_and_the_paths_without_v1(demo: Demo) -> None:
    root = demo.base.removesuffix("/v1")
    head, body = curl(f"{root}/nope")
    assert " 404" in head
    assert msgspec.json.decode(body)["error"]["code"] == "unknown_url"
    head, body = curl(f"{root}/v1/chat/completions")
    assert " 405" in head
    assert "allow: POST" in head
    assert msgspec.json.decode(body)["error"]["code"] == "method_not_allowed"
    head, body = curl(f"{root}/chat/completions", "-d", "{not json")
    assert " 400" in head
    assert "not valid JSON" in msgspec.json.decode(body)["error"]["message"]
    head, body = curl(f"{root}/models", "-H", "x-request-id: mine-1")
    assert " 200" in head
    assert "x-request-id: mine-1" in head
    head, body = curl(f"{root}/health")
    health = msgspec.json.decode(body)
    assert (health["status"], health["signed_in"]) == ("ok", True)
    head, body = curl(f"{root}/v1/responses", "-H", "content-encoding: compress", "-d", "x")
    assert " 415" in head


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"tools": [{"type": "function", "function": {"name": "greet", "parameters": 5}}]},
    ],
)
def test_nothing_that_a_client_sends_ends_the_demo(demo: Demo, fields: Any) -> None:
    with pytest.raises(openai.APIStatusError):
        demo.client.chat.completions.create(
            model="gpt-5.5", messages=[{"role": "user", "content": "greet me"}], **fields
        )
    assert demo.client.models.list().data


def test_make_demo_is_the_same_program() -> None:
    assert "-m codexd --demo" in (ROOT / "Makefile").read_text()


def test_legacy_completions(demo: Demo) -> None:
    whole = demo.client.completions.create(model="gpt-5.5", prompt="Say hello", max_tokens=500)
    assert whole.choices[0].text
    assert whole.choices[0].finish_reason == "stop"
    parts = list(demo.client.completions.create(model="gpt-5.5", prompt="Say hello", stream=True))
    assert "".join(part.choices[0].text for part in parts)


def test_what_the_backend_does_not_take_is_done_here(demo: Demo) -> None:
    ask: Any = {"model": "gpt-6-sol", "messages": [{"role": "user", "content": "Say hello"}]}
    whole = demo.client.chat.completions.create(**ask)
    text = str(whole.choices[0].message.content)
    stop = text[3:6]
    stopped = demo.client.chat.completions.create(**ask, stop=stop)
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    short = demo.client.chat.completions.create(**ask, max_tokens=1)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == (text[:4], "length")
    several = demo.client.chat.completions.create(**ask, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    limited = demo.client.responses.create(model="gpt-6-sol", input="Say hello", max_output_tokens=16)
    assert limited.status == "incomplete" or limited.output_text == text


def test_names_of_any_length_and_older_functions(demo: Demo) -> None:
    name = "mcp__a.server.with/a long name__and_a_tool_with_an_even_longer_name_v2"
    for model in MODELS:
        tool: Any = {"type": "function", "function": CHAT_TOOL["function"] | {"name": name}}
        answer = demo.client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Weather in Paris?"}],
            tools=[tool],
            tool_choice="required",
        )
        calls = answer.choices[0].message.tool_calls or []
        assert [call.function.name for call in calls if call.type == "function"] == [name]
    legacy = demo.client.chat.completions.create(
        model="gpt-5.5", messages=[{"role": "user", "content": "Weather?"}], functions=[CHAT_TOOL["function"]],
        function_call={"name": "get_weather"},
    )  # fmt: skip
    assert legacy.choices[0].finish_reason == "function_call"
    assert legacy.choices[0].message.function_call is not None
    assert legacy.choices[0].message.function_call.name == "get_weather"


@pytest.mark.parametrize("model", MODELS)
def test_stored_responses(demo: Demo, model: str) -> None:
    first = demo.client.responses.create(model=model, input="Hello there")
    second = demo.client.responses.create(model=model, input="And again", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert demo.client.responses.retrieve(second.id).output_text == second.output_text
    items = demo.client.responses.input_items.list(second.id, order="asc")
    assert [item.type for item in items][:2] == ["message", "reasoning"]
    assert demo.client.responses.input_tokens.count(model=model, input="Hello there").input_tokens > 0
    compacted = demo.client.responses.compact(model=model, input="Hello there")
    assert [item.type for item in compacted.output][-1] == "compaction"
    demo.client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        demo.client.responses.retrieve(first.id)


@pytest.mark.parametrize("model", MODELS)
def test_responses_over_a_websocket(demo: Demo, model: str) -> None:
    with demo.client.responses.connect() as connection:
        answers: list[Any] = []
        for said in ("Hello there", "And again"):
            previous: Any = {"previous_response_id": answers[-1].id} if answers else {}
            connection.response.create(model=model, input=said, store=False, **previous)
            events: list[Any] = []
            for event in connection:
                events.append(event)
                if event.type in ("response.completed", "error"):
                    break
            assert events[0].type == "response.created"
            answers.append(events[-1].response)
        assert [answer.output_text.partition("You wrote: ")[2] for answer in answers] == ["Hello there", "And again"]
        connection.response.create(model="nope", input="x")
        wrong: Any = connection.recv()
        assert (wrong.type, wrong.status, wrong.error.code) == ("error", 404, "model_not_found")


CLAUDE_TOOL: Any = {"name": "get_weather", "description": "The weather", "input_schema": TOOL["parameters"]}


@pytest.fixture
def claude(demo: Demo) -> Iterator[Anthropic]:
    with Anthropic(base_url=demo.base.removesuffix("/v1"), api_key="any", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("model", MODELS)
def test_messages_streamed_and_not(claude: Anthropic, model: str) -> None:
    asked: Any = {"model": model, "max_tokens": 1000, "messages": [{"role": "user", "content": "Hello there"}]}
    whole: Any = claude.messages.create(**asked)
    assert whole.content[0].text.endswith("You wrote: Hello there")
    assert (whole.stop_reason, whole.usage.output_tokens > 0) == ("end_turn", True)
    with claude.messages.stream(**asked, thinking={"type": "enabled", "budget_tokens": 1024}) as stream:
        said = "".join(stream.text_stream)
        final: Any = stream.get_final_message()
    assert said == whole.content[0].text
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].signature
    assert claude.messages.count_tokens(model=model, messages=asked["messages"]).input_tokens > 0


@pytest.mark.parametrize("model", MODELS)
def test_messages_tools_go_round(claude: Anthropic, model: str) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked: Any = {"model": model, "max_tokens": 1000, "tools": [CLAUDE_TOOL], "thinking": {"type": "adaptive"}}
    with claude.messages.stream(**asked, messages=messages) as stream:
        first: Any = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second: Any = claude.messages.create(**asked, messages=messages)
    assert second.content[-1].text == "The tool returned: sunny"


def test_messages_errors_are_the_clients_own(claude: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="nope"):
        claude.messages.create(model="nope", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]"):
        claude.messages.create(model="gpt-5.5", max_tokens=1, messages=[{"role": "nobody", "content": "x"}])  # type: ignore[typeddict-item]
