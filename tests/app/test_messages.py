"""The Anthropic Messages API over the whole app."""

from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from codexd.config.model import Codex, Config, Server
from support.asgi import Answer, client
from support.backend import CALLED, REASONED, Backend
from support.upstream import ADDED, COMPLETED, CREATED, done, failed, text

TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {}}}
KEY = "a-client-key-of-somebody"


def ask(said: Any = "x", **fields: Any) -> dict[str, Any]:
    messages = said if isinstance(said, list) else [{"role": "user", "content": said}]
    return {"model": "gpt-5.5", "max_tokens": 100, "messages": messages, **fields}


def wrong(answer: Answer, status: int, kind: str, words: str) -> bool:
    assert set(answer.json) == {"type", "error"}
    assert (answer.status, answer.json["error"]["type"]) == (status, kind)
    assert words in answer.json["error"]["message"]
    return True


@pytest.mark.parametrize("path", ["/v1/messages", "/messages", "/v1/messages?beta=true"])
async def test_a_message_streamed_and_not(autojump_clock: MockClock, tmp_path: Path, path: str) -> None:
    async with client(tmp_path, Backend()) as app:
        whole = await app.request("POST", path, ask())
        assert whole.json["content"] == [{"type": "text", "text": "Hello", "citations": None}]
        assert whole.json["id"].startswith("msg_")
        streamed = await app.request("POST", path, ask(stream=True))
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert streamed.body.startswith(b"event: message_start\n")
    assert streamed.body.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert b"[DONE]" not in streamed.body


async def test_a_silence_is_filled_with_pings(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, 20.0, ADDED, text("Hel"), 40.0, done("Hello"), COMPLETED])
    async with client(tmp_path, backend) as app:
        answer = await app.request("POST", "/v1/messages", ask(stream=True))
    assert answer.body.count(b'event: ping\ndata: {"type":"ping"}\n\n') == 3


async def test_what_is_wrong_is_said_in_the_words_of_that_api(autojump_clock: MockClock, tmp_path: Path) -> None:
    pdf = {"type": "document", "source": {"type": "url", "url": "https://x"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {"type": "file"}}]}
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    cases: list[tuple[Any, int, str, str]] = [
        (b"{", 400, "invalid_request_error", "not valid JSON"),
        (ask(max_tokens=None), 400, "invalid_request_error", "max_tokens is required"),
        (ask(max_tokens=0), 400, "invalid_request_error", "max_tokens must be 1 or more"),
        (ask(model="nope"), 404, "not_found_error", '"nope"'),
        (ask(messages=[]), 400, "invalid_request_error", "messages"),
        (ask([{"role": "user", "content": [{"type": "nope"}]}]), 400, "invalid_request_error", "messages[0].content[0]"),
        (ask([{"role": "user", "content": [pdf]}]), 400, "invalid_request_error", "messages[0].content[0]: The source \"url\""),
        (ask([{"role": "user", "content": [use]}]), 400, "invalid_request_error", "messages[0].content[0]"),
        (ask([{"role": "assistant", "content": [result]}]), 400, "invalid_request_error", "messages[0].content[0]"),
        (ask([{"role": "user", "content": [result]}]), 400, "invalid_request_error", "messages[0].content[0].content[0]: "),
        (ask([{"role": "user", "content": [result | {"content": "1"}]}]), 400, "invalid_request_error", "messages[0].content[0]"),
        (ask(tools=[{"type": "bash_20250124", "name": "bash"}]), 400, "invalid_request_error", "tools[0]"),
        (ask(tools=[TOOL], tool_choice={"type": "tool", "name": "g"}), 400, "invalid_request_error", '"g"'),
        (ask(stop_sequences=["x"] * 65), 400, "invalid_request_error", "stop_sequences can have at most 64"),
        (ask(mcp_servers=[{}]), 400, "invalid_request_error", "mcp_servers"),
    ]  # fmt: skip
    async with client(tmp_path, Backend()) as app:
        for body, status, kind, words in cases:
            assert wrong(await app.request("POST", "/v1/messages", body), status, kind, words)
    async with client(tmp_path, Backend(), Config(server=Server(client_keys={"a": KEY}))) as app:
        assert wrong(await app.request("POST", "/v1/messages", ask()), 401, "authentication_error", "key")
        let_in = await app.request("POST", "/v1/messages", ask(), headers={"x-api-key": KEY})
        assert let_in.status == 200


async def test_a_failure_of_the_backend_is_told_with_its_kind(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, failed("rate_limit_exceeded", "Try again in 7s.")])
    async with client(tmp_path, backend) as app:
        answer = await app.request("POST", "/v1/messages", ask(stream=True))
        assert wrong(answer, 429, "rate_limit_error", "Try again")
        assert answer.headers["retry-after"] == "7"


async def test_thinking_goes_round_with_the_client(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Also without a memory of our own: the signature is the encrypted reasoning."""
    backend = Backend([CREATED, REASONED, CALLED, COMPLETED])
    async with client(tmp_path, backend, Config(codex=Codex(reasoning_memory_bytes=0))) as app:
        first = await app.request("POST", "/v1/messages", ask(thinking={"type": "adaptive"}, tools=[TOOL]))
        kinds = [block["type"] for block in first.json["content"]]
        assert kinds[-1] == "tool_use"
        assert kinds[0] in ("thinking", "redacted_thinking")
        result = {"type": "tool_result", "tool_use_id": first.json["content"][-1]["id"], "content": "1"}
        turns = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": first.json["content"]},
            {"role": "user", "content": [result]},
        ]
        second = await app.request("POST", "/v1/messages", ask(turns, tools=[TOOL]))
        assert "recalled" not in second.headers["x-codexd-adjusted"]
    sent = [item["type"] for item in backend.sent["input"]]
    assert sent == ["message", "reasoning", "function_call", "function_call_output"]
    assert backend.sent["input"][1]["encrypted_content"] == REASONED["item"]["encrypted_content"]


async def test_thinking_that_a_client_throws_away_is_remembered(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, REASONED, CALLED, COMPLETED])
    async with client(tmp_path, backend) as app:
        for streamed in (True, False):
            await app.request("POST", "/v1/messages", ask(tools=[TOOL], stream=streamed))
        turns = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "call_1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "1"}]},
        ]
        second = await app.request("POST", "/v1/messages", ask(turns, tools=[TOOL]))
        assert "reasoning=recalled" in second.headers["x-codexd-adjusted"]
    assert [item["type"] for item in backend.sent["input"]][1] == "reasoning"


async def test_the_request_id_has_anthropics_name_too(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend()) as app:
        answer = await app.request("POST", "/v1/messages", ask())
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


async def test_pictures_count_nothing_and_what_speaks_of_them_does(autojump_clock: MockClock, tmp_path: Path) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 4000}}
    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}

    async def count(*content: Any) -> int:
        result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": list(content)}]}
        answer = await app.request(
            "POST", "/v1/messages/count_tokens", ask([{"role": "user", "content": "x"}, use, result])
        )
        return int(answer.json["input_tokens"])

    async with client(tmp_path, Backend()) as app:
        words = {"type": "text", "text": 'src="data:image/png;base64,' + "x" * 4000 + '"'}
        assert await count(words) > 1000
        assert await count(words, picture) - await count(words) < 50


async def test_tokens_are_counted_by_estimate(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend()
    async with client(tmp_path, backend) as app:
        counts = []
        for size in (400, 800):
            asked = ask("x" * size)
            del asked["max_tokens"]
            answer = await app.request("POST", "/v1/messages/count_tokens", asked)
            assert set(answer.json) == {"input_tokens"}
            counts.append(answer.json["input_tokens"])
    assert counts[1] - counts[0] == 100
    assert backend.requests == []
