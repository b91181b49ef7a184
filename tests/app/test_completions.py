"""The legacy endpoint, and strict keys, over the whole app."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from trio.testing import MockClock

from codexd.config.model import Config, Server
from codexd.protocol import sse
from support.asgi import client
from support.backend import Backend
from support.daemon import hello
from support.upstream import ADDED, CREATED, Json, text

KEY = "0123456789abcdef"


def ask(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-5.5", "prompt": "Once upon", **fields}


async def test_a_text_goes_in_and_a_text_comes_out(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend()
    async with client(tmp_path, backend) as app:
        answer = await app.request("POST", "/v1/completions", ask(temperature=0, best_of=1, suffix=""))
    found = answer.json
    assert found["id"].startswith("cmpl-")
    assert (found["object"], found["model"]) == ("text_completion", "gpt-5.5")
    assert found["choices"] == [{"text": "Hello", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert found["usage"]["total_tokens"] == 10
    assert backend.sent["input"][-1]["content"] == [{"type": "input_text", "text": "Once upon"}]
    assert answer.headers["x-codexd-adjusted"] == "temperature=dropped"


async def test_a_completion_is_streamed(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend()) as app:
        wanted = ask(stream=True, echo=True, stream_options={"include_usage": True})
        answer = await app.request("POST", "/v1/completions", wanted)
    events = sse.EventDecoder().feed(answer.body)
    assert events.pop() == b"[DONE]"
    chunks = [msgspec.json.decode(data) for data in events]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "Once uponHello"
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "stop"
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 10)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


async def test_several_prompts_are_as_many_choices(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend()
    async with client(tmp_path, backend) as app:
        answer = await app.request("POST", "/v1/completions", ask(prompt=["a", "b"], n=2, echo=True))
        streamed = await app.request(
            "POST", "/v1/completions", ask(prompt=["a", "b"], stream=True, stream_options={"include_usage": True})
        )
    said = [(choice["index"], choice["text"]) for choice in answer.json["choices"]]
    assert said == [(0, "aHello"), (1, "aHello"), (2, "bHello"), (3, "bHello")]
    assert (answer.json["usage"]["prompt_tokens"], answer.json["usage"]["completion_tokens"]) == (14, 12)
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    last = msgspec.json.decode(sse.EventDecoder().feed(streamed.body)[-2])
    assert (last["object"], last["choices"], last["usage"]["prompt_tokens"]) == ("text_completion", [], 14)


async def test_a_completion_is_kept_alive_and_fails_in_its_own_frame(autojump_clock: MockClock, tmp_path: Path) -> None:
    broken: Sequence[Json | float] = [CREATED, ADDED, text("Hel"), 40.0]
    async with client(tmp_path, Backend(broken)) as app:
        answer = await app.request("POST", "/v1/completions", ask(stream=True))
    assert b": keepalive" in answer.body
    assert b'data: {"error"' in answer.body
    assert b"[DONE]" not in answer.body


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1]]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"] * 5, "n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"logprobs": 3}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
async def test_what_is_no_completion_is_refused(
    autojump_clock: MockClock, tmp_path: Path, fields: dict[str, Any], param: str
) -> None:
    async with client(tmp_path, Backend()) as app:
        answer = await app.request("POST", "/v1/completions", ask(**fields))
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


# --- strict keys


async def test_a_strict_key_hears_of_every_drop(autojump_clock: MockClock, tmp_path: Path) -> None:
    config = Config(server=Server(client_keys={"strict": KEY, "easy": KEY[::-1]}, strict_keys=("strict",)))
    dropping = (
        ("/v1/chat/completions", hello(temperature=1), "temperature"),
        ("/v1/chat/completions", hello(n=2, seed=1), "seed"),
        ("/v1/responses", {"model": "gpt-5.5", "input": "x", "truncation": "auto"}, "truncation"),
        (
            "/v1/responses",
            {"model": "gpt-5.5", "input": [{"role": "user", "content": "x"}, {"type": "reasoning", "id": "a"}]},
            "reasoning",
        ),
        ("/v1/completions", ask(suffix="x"), "suffix"),
    )
    backend = Backend()
    async with client(tmp_path, backend, config) as app:
        for path, body, param in dropping:
            refused = await app.request("POST", path, body, headers={"x-api-key": KEY})
            assert (refused.status, refused.json["error"]["param"]) == (400, param)
            assert refused.json["error"]["code"] == "unsupported_parameter"
            assert '"strict" is strict' in refused.json["error"]["message"]
        assert backend.requests == []
        for path, body, param in dropping:
            easy = await app.request("POST", path, body, headers={"x-api-key": KEY[::-1]})
            assert (easy.status, f"{param}=dropped" in easy.headers["x-codexd-adjusted"]) == (200, True)
        fine = await app.request("POST", "/v1/chat/completions", hello(stop="x", n=2), headers={"x-api-key": KEY})
        assert fine.status == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", hello(reasoning_effort="extreme"), "reasoning_effort"),
        ("/v1/chat/completions", hello(tools=[{"function": {"name": "f", "parameters": {"type": "string"}}}]), "tool_schemas"),
        ("/v1/chat/completions", hello(messages=[{"role": "user", "content": ["x"]}]), "messages"),
        ("/v1/responses", {"model": "gpt-5.5", "input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "input"),
        ("/v1/messages", {"model": "gpt-5.5", "max_tokens": 9, "messages": [
            {"role": "user", "content": [{"type": "odd"}, {"type": "text", "text": "x"}]}]}, "content_blocks"),
    ],
)  # fmt: skip
async def test_a_strict_key_refuses_what_would_be_changed(
    autojump_clock: MockClock, tmp_path: Path, path: str, body: Any, param: str
) -> None:
    config = Config(server=Server(client_keys={"strict": KEY}, strict_keys=("strict",)))
    async with client(tmp_path, Backend(), config) as app:
        refused = await app.request("POST", path, body, headers={"x-api-key": KEY})
        message = refused.json["error"]["message"]
        assert (refused.status, param in message, "is strict" in message) == (400, True, True)
