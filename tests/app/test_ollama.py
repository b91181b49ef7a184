"""Ollama's API over the whole app."""

import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest
from trio.testing import MockClock

from codexd.config.model import Config, Server
from codexd.demo.script import PIXEL
from support.asgi import Answer, client
from support.backend import CALLED, Backend
from support.upstream import ADDED, COMPLETED, CREATED, done, failed, text

KEY = "a-client-key-of-somebody"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
HELLO = [{"role": "user", "content": "x"}]
SUMMED: dict[str, Any] = {
    "type": "response.reasoning_summary_text.delta",
    "output_index": 0,
    "summary_index": 0,
    "delta": "Hm.",
}


def lines(answer: Answer) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.body.endswith(b"\n")
    return [msgspec.json.decode(line) for line in answer.body.splitlines()]


async def test_a_chat_streamed_and_not(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend()) as app:
        said = lines(await app.request("POST", "/api/chat", {"model": "gpt-5.5:latest", "messages": HELLO}))
        whole = await app.request("POST", "/api/chat", {"model": "gpt-5.5", "messages": HELLO, "stream": False})
    assert "".join(each["message"]["content"] for each in said) == "Hello"
    assert [each["done"] for each in said] == [False] * (len(said) - 1) + [True]
    assert {each["model"] for each in said} == {"gpt-5.5:latest"}
    end = said[-1]
    assert end["done_reason"] == "stop" and end["total_duration"] >= end["prompt_eval_duration"] >= 0
    assert whole.headers["content-type"] == "application/json"
    assert whole.json["message"] == {"role": "assistant", "content": "Hello"}
    assert whole.json.keys() == end.keys()


async def test_a_prompt_streamed_and_not(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend()
    body = {"model": "gpt-5.5", "prompt": "x", "system": "Be brief.", "images": [PIXEL]}
    async with client(tmp_path, backend) as app:
        said = lines(await app.request("POST", "/api/generate", body))
        whole = await app.request("POST", "/api/generate", body | {"stream": False})
    assert "".join(each["response"] for each in said) == whole.json["response"] == "Hello"
    content = backend.sent["input"][-1]["content"]
    assert content[0]["text"] == "x" and content[1]["image_url"] == f"data:image/png;base64,{PIXEL}"
    assert "Be brief." in str(backend.sent)


async def test_calls_come_whole_and_go_back(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, CALLED, COMPLETED])
    body: dict[str, Any] = {"model": "gpt-5.5", "messages": HELLO, "tools": [TOOL]}
    async with client(tmp_path, backend) as app:
        *_, called, end = lines(await app.request("POST", "/api/chat", body))
        whole = await app.request("POST", "/api/chat", body | {"stream": False})
        assert called["message"]["tool_calls"] == [{"id": "call_1", "function": {"name": "f", "arguments": {}}}]
        assert called["done"] is False and "tool_calls" not in end["message"]
        assert whole.json["message"]["tool_calls"] == called["message"]["tool_calls"]
        backend.steps = Backend().steps
        arguments: list[Any] = [{"a": 1}, '{"a":1}', None]
        calls = [{"function": {"name": name, "arguments": arguments.pop(0)}} for name in ("f", "g", "f")]
        results = [
            {"role": "tool", "tool_name": "g", "content": "of g"},
            {"role": "tool", "content": "of the first f"},
            {"role": "tool", "tool_call_id": "call_3", "content": "of the last f"},
        ]
        turn = {"role": "assistant", "content": "", "tool_calls": calls}
        await app.request("POST", "/api/chat", body | {"messages": [*HELLO, turn, *results]})
        found = {item["call_id"]: item["output"] for item in backend.sent["input"] if "output" in item}
        sent = [item["arguments"] for item in backend.sent["input"] if "arguments" in item]
        assert sent == ['{"a":1}', '{"a":1}', "{}"]
        assert found == {"call_1": "of the first f", "call_2": "of g", "call_3": "of the last f"}
        odd = await app.request("POST", "/api/chat", body | {"messages": [*HELLO, results[1]]})
        assert odd.status == 400 and "was not called" in odd.json["error"]


async def test_a_system_message_and_odd_arguments(autojump_clock: MockClock, tmp_path: Path) -> None:
    odd = CALLED | {"item": CALLED["item"] | {"arguments": "{odd"}}
    backend = Backend([CREATED, odd, COMPLETED])
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    async with client(tmp_path, backend) as app:
        body = {"model": "gpt-5.5", "messages": messages, "tools": [TOOL], "stream": False}
        answer = await app.request("POST", "/api/chat", body)
    assert answer.json["message"]["tool_calls"][0]["function"]["arguments"] == {}
    assert "Be brief." in str(backend.sent)


async def test_thinking_is_shown_where_it_is_wanted(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, SUMMED, ADDED, text("Hello"), done("Hello"), COMPLETED])
    async with client(tmp_path, backend) as app:
        for think, effort, shown in (
            (True, "medium", True),
            ("high", "high", True),
            (False, "low", False),
            (None, "medium", False),
        ):
            body = {"model": "gpt-5.5", "messages": HELLO, "think": think}
            said = lines(await app.request("POST", "/api/chat", body))
            whole = await app.request("POST", "/api/chat", body | {"stream": False})
            thought = "".join(each["message"].get("thinking", "") for each in said)
            assert thought == whole.json["message"].get("thinking", "") == ("Hm." if shown else "")
            assert backend.sent["reasoning"]["effort"] == effort
        prompt = {"model": "gpt-5.5", "prompt": "x", "think": True}
        assert lines(await app.request("POST", "/api/generate", prompt))[0]["thinking"] == "Hm."
        refused = await app.request("POST", "/api/chat", {"model": "gpt-5.5", "messages": HELLO, "think": "hard"})
        assert refused.status == 400 and "think must be" in refused.json["error"]


async def test_options_are_honoured_or_told(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, ADDED, text("one two three four"), done("one two three four"), COMPLETED])
    async with client(tmp_path, backend) as app:
        body = {"model": "gpt-5.5", "messages": HELLO, "stream": False, "keep_alive": "1h"}
        options = {"num_predict": 2, "temperature": 0.5, "num_ctx": 4096, "名前": 1}
        cut = await app.request("POST", "/api/chat", body | {"options": options})
        assert (cut.json["done_reason"], cut.json["message"]["content"]) == ("length", "one two")
        for said in (
            "options.temperature=dropped",
            "options.num_ctx=ignored",
            "keep_alive=dropped",
            "options.unknown=ignored",
        ):
            assert said in cut.headers["x-codexd-adjusted"]
        stopped = await app.request("POST", "/api/chat", body | {"options": {"num_predict": -1, "stop": ["three"]}})
        assert stopped.json["message"]["content"] == "one two "
        for form, kind in (("json", "json_object"), ({"type": "object", "properties": {}}, "json_schema")):
            await app.request(
                "POST", "/api/chat", body | {"format": form, "messages": [{"role": "user", "content": "json"}]}
            )
            assert backend.sent["text"]["format"]["type"] == kind
        await app.request("POST", "/api/chat", body | {"format": ""})
        assert "format" not in backend.sent["text"]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/api/chat", {"model": "gpt-nix", "messages": HELLO}, 404, '"gpt-nix"'),
        ("/api/chat", {"model": "gpt-5.5", "messages": [{"role": "x"}]}, 400, "role"),
        ("/api/chat", {"model": "gpt-5.5", "messages": HELLO, "format": 7}, 400, "format must be"),
        (
            "/api/chat",
            {"model": "gpt-5.5", "messages": HELLO, "options": 7},
            400,
            "options: expected an object, got an integer",
        ),
        ("/api/chat", {"model": "gpt-5.5", "messages": [{"role": "user", "images": ["?"]}]}, 400, "images[0]"),
        ("/api/chat", {"model": "gpt-5.5", "messages": [{"role": "user", "images": ["A"]}]}, 400, "as base64"),
        ("/api/generate", {"model": "gpt-5.5", "images": [base64.b64encode(b"x").decode()]}, 400, "is not an image"),
        ("/api/show", {"model": "gpt-nix"}, 404, '"gpt-nix"'),
        ("/api/pull", {"name": "gpt-nix"}, 404, '"gpt-nix"'),
        ("/api/embed", {"model": "gpt-5.5", "input": "x"}, 404, "not offer embeddings"),
        ("/api/delete", {"model": "gpt-5.5"}, 404, "belong to ChatGPT"),
        ("/api/nothing", {}, 404, "There is no"),
    ],
)
async def test_errors_are_in_the_words_of_that_api(
    autojump_clock: MockClock, tmp_path: Path, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    async with client(tmp_path, Backend()) as app:
        answer = await app.request("POST", path, body)
    assert (answer.status, list(answer.json)) == (status, ["error"])
    assert said in answer.json["error"]


async def test_the_codex_clis_path_keeps_its_own_words(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend()) as app:
        answer = await app.request("POST", "/api/codex/usage", {})
    assert answer.status == 405 and "message" in answer.json["error"]


async def test_a_failure_on_the_way_is_a_line(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, ADDED, text("Hel"), 40.0, failed("server_error", "broken")])
    async with client(tmp_path, backend) as app:
        said = lines(await app.request("POST", "/api/chat", {"model": "gpt-5.5", "messages": HELLO}))
    assert said[-1] == {"error": "broken"}
    assert sum(each.get("message", {}).get("content") == "" for each in said) == 2, "one for each silence"


async def test_the_models(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend()) as app:
        tags = (await app.request("GET", "/api/tags")).json["models"]
        assert "gpt-6-sol:latest" in [each["name"] for each in tags]
        assert all(each["name"] == each["model"] and len(each["digest"]) == 64 for each in tags)
        shown = (await app.request("POST", "/api/show", {"model": "gpt-6-sol:latest"})).json
        assert shown["model_info"]["gpt.context_length"] == 272_000
        assert set(shown["capabilities"]) == {"completion", "tools", "thinking", "vision"}
        assert len((await app.request("GET", "/api/ps")).json["models"]) == len(tags)
        assert (await app.request("GET", "/api/version")).json["version"].count(".") == 2
        assert (await app.request("POST", "/api/pull", {"name": "gpt-6-sol"})).body == b'{"status":"success"}\n'
        whole = await app.request("POST", "/api/pull", {"model": "gpt-6-sol", "stream": False})
        assert whole.headers["content-type"] == "application/json"
        # A request without a prompt loads the model.
        for path in ("/api/chat", "/api/generate"):
            loaded = (await app.request("POST", path, {"model": "gpt-6-sol"})).json
            assert (loaded["done"], loaded["done_reason"]) == (True, "load")


async def test_a_key_is_asked_for_here_too(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend(), Config(server=Server(client_keys={"a": KEY}))) as app:
        refused = await app.request("GET", "/api/tags")
        assert (refused.status, list(refused.json)) == (401, ["error"])
        let_in = await app.request("GET", "/api/tags", headers={"authorization": f"Bearer {KEY}"})
        assert let_in.status == 200
