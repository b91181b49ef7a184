"""Searches and images in answers, by the real daemon over the strict simulated ChatGPT: every dialect, both lanes."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from codexd.demo.script import PAGES, PIXEL
from codexd.protocol import sse
from support.codexctl import Make, Setup, in_thread

pytestmark = pytest.mark.loopback

MODELS = ["gpt-6-sol", "gpt-5.5"]
QUESTION = "Please search the web for 'weather'."
URL, TITLE = PAGES[0]


class Asking:
    """A client of a daemon that runs over a simulated ChatGPT."""

    def __init__(self, setup: Setup, http: httpx.AsyncClient) -> None:
        self.chatgpt = setup.chatgpt.chatgpt
        self.http = http

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, content=msgspec.json.encode(body))

    async def whole(self, path: str, **body: Any) -> Any:
        answer = await self.post(path, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def events(self, path: str, **body: Any) -> list[dict[str, Any]]:
        answer = await self.post(path, stream=True, **body)
        assert answer.status_code == 200, answer.text
        found = [each for each in sse.EventDecoder().feed(answer.content) if each != b"[DONE]"]
        return [msgspec.json.decode(each) for each in found]


@pytest.fixture(scope="module", params=["http", "websocket"])
def lane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp(f"hosted-{request.param}")
    with in_thread(folder, logs, backend={"transport": request.param}) as setup:
        yield setup


@pytest.fixture
async def ask(lane: Setup) -> AsyncIterator[Asking]:
    async with lane.client() as http:
        yield Asking(lane, http)


@pytest.mark.parametrize("model", MODELS)
async def test_responses_searches(ask: Asking, model: str) -> None:
    body = {"model": model, "input": QUESTION, "tools": [{"type": "web_search"}]}
    whole = await ask.whole("/v1/responses", **body)
    assert [item["type"] for item in whole["output"]] == ["reasoning", "web_search_call", *_RESTS[model]]
    call, message = whole["output"][1], whole["output"][-1]
    assert (call["status"], call["action"]["query"]) == ("completed", "weather")
    part = message["content"][0]
    cited = part["annotations"][0]
    assert (cited["type"], cited["url"], cited["title"]) == ("url_citation", URL, TITLE)
    assert URL in part["text"][cited["start_index"] : cited["end_index"]]
    assert whole["status"] == "completed" and whole["usage"]["total_tokens"] > 0

    events = await ask.events("/v1/responses", **body)
    kinds = [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == sorted({event["sequence_number"] for event in events})
    assert kinds.count("response.created") == kinds.count("response.completed") == 1
    assert {event["response"]["id"] for event in events if "response" in event} == {events[0]["response"]["id"]}
    for step in ("in_progress", "searching", "completed"):
        assert kinds.count(f"response.web_search_call.{step}") == 1
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == list(range(len(done)))
    assert [event["item"] for event in done] == events[-1]["response"]["output"]
    if model != "gpt-5.5":
        assert kinds.index("response.output_text.annotation.added") < kinds.index("response.output_text.done")


_RESTS = {"gpt-6-sol": ["reasoning", "message"], "gpt-5.5": ["message"]}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "wish",
    [
        {"web_search_options": {"search_context_size": "low"}},
        {"tools": [{"type": "web_search_preview"}]},
        {"plugins": [{"id": "web"}]},
    ],
)
async def test_chat_searches(ask: Asking, model: str, wish: dict[str, Any]) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], **wish}
    choice = (await ask.whole("/v1/chat/completions", **body))["choices"][0]
    assert choice["finish_reason"] == "stop"
    cited = choice["message"]["annotations"][0]["url_citation"]
    assert cited["url"] == URL and URL in choice["message"]["content"][cited["start_index"] : cited["end_index"]]
    chunks = await ask.events("/v1/chat/completions", **body)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == choice["message"]["content"]
    assert [each for delta in deltas for each in delta.get("annotations", [])] == choice["message"]["annotations"]


ANTHROPIC = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3, "allowed_domains": ["example.com"]}


@pytest.mark.parametrize("choice", [None, {"type": "tool", "name": "web_search"}])
@pytest.mark.parametrize("model", MODELS)
async def test_messages_search(ask: Asking, model: str, choice: dict[str, Any] | None) -> None:
    question = {"role": "user", "content": QUESTION}
    body = {"model": model, "max_tokens": 1000, "messages": [question], "tools": [ANTHROPIC]}
    body |= {"tool_choice": choice} if choice else {}
    whole = await ask.whole("/v1/messages", **body)
    use, result, text = whole["content"]
    assert (use["type"], use["name"], use["input"]) == ("server_tool_use", "web_search", {"query": "weather"})
    assert (result["type"], result["tool_use_id"]) == ("web_search_tool_result", use["id"])
    if model != "gpt-5.5":
        assert [page["url"] for page in result["content"]] == [url for url, _ in PAGES]
    assert text["citations"][0]["url"] == URL
    assert whole["stop_reason"] == "end_turn"
    assert whole["usage"]["server_tool_use"] == {"web_search_requests": 1, "web_fetch_requests": 0}

    events = await ask.events("/v1/messages", **body)
    begun = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in begun] == ["server_tool_use", "web_search_tool_result", "text"]
    assert events[-2]["usage"]["server_tool_use"] == {"web_search_requests": 1, "web_fetch_requests": 0}
    # The conversation goes on with what came, as the SDKs send it back.
    again = body | {
        "messages": [
            question,
            {"role": "assistant", "content": whole["content"]},
            {"role": "user", "content": "Thanks"},
        ]
    }
    again.pop("tool_choice", None)
    assert (await ask.whole("/v1/messages", **again))["content"][-1]["type"] == "text"


@pytest.mark.parametrize("model", MODELS)
async def test_images_are_drawn(ask: Asking, model: str) -> None:
    tools = [{"type": "image_generation", "quality": "low"}]
    body = {"model": model, "input": "Draw an image of a 'dot'.", "tools": tools}
    whole = await ask.whole("/v1/responses", **body)
    image = next(item for item in whole["output"] if item["type"] == "image_generation_call")
    assert (image["status"], image["result"]) == ("completed", PIXEL)
    # The answer goes back up, and the image can be changed.
    more = {"input": "Make the image 'blue'.", "previous_response_id": whole["id"], "tools": tools}
    again = await ask.whole("/v1/responses", model=model, **more)
    assert any(item["type"] == "image_generation_call" for item in again["output"])
    question = [{"role": "user", "content": "Draw an image of a 'dot'."}]
    chat = await ask.whole("/v1/chat/completions", model=model, messages=question, tools=tools)
    assert chat["choices"][0]["message"]["images"][0]["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"


FAILURES = [
    (429, {"error": {"type": "usage_limit_reached", "message": "The usage limit has been reached"}}, "too_many_requests"),
    (500, {"detail": "no"}, "unavailable"),
    (200, {"output": 7}, None),
    (200, {"output": ""}, None),
    (200, {"nothing": 1}, "unavailable"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "answer", "code"), FAILURES)
async def test_a_search_that_fails_does_not_end_the_answer(
    ask: Asking, status: int, answer: dict[str, Any], code: str | None
) -> None:
    ask.chatgpt.refusals["search"] = [(status, answer)] * 2
    body = {"model": "gpt-6-sol", "input": QUESTION, "tools": [{"type": "web_search"}]}
    whole = await ask.whole("/v1/responses", **body)
    call = next(item for item in whole["output"] if item["type"] == "web_search_call")
    assert call["status"] == ("completed" if code is None else "failed")
    assert ("The tool failed" in whole["output"][-1]["content"][0]["text"]) is (code is not None)
    asked = {"model": "gpt-6-sol", "max_tokens": 99, "messages": [{"role": "user", "content": QUESTION}]}
    blocks = (await ask.whole("/v1/messages", **asked, tools=[ANTHROPIC]))["content"]
    if code is not None:
        assert blocks[1]["content"] == {"type": "web_search_tool_result_error", "error_code": code}


async def test_the_mode_decides_who_searches(setup: Make) -> None:
    async with setup(codex={"web_search": "always"}) as it, it.client() as http:
        ask = Asking(it, http)
        question = [{"role": "user", "content": QUESTION}]
        for model in MODELS:
            chat = await ask.whole("/v1/chat/completions", model=model, messages=question)
            assert chat["choices"][0]["message"]["annotations"]
            message = await ask.whole("/v1/messages", model=model, messages=question, max_tokens=99)
            assert [block["type"] for block in message["content"]] == ["text"], "nobody asked for other blocks"


async def test_a_search_may_be_off(setup: Make) -> None:
    async with setup(codex={"web_search": "off"}) as it, it.client() as http:
        ask = Asking(it, http)
        for model in MODELS:
            answer = await ask.post("/v1/responses", model=model, input=QUESTION, tools=[{"type": "web_search"}])
            assert "web_search=dropped" in answer.headers["x-codexd-adjusted"]
            assert "web_search_call" not in answer.text


async def test_searches_are_bounded(ask: Asking) -> None:
    body = {"model": "gpt-6-sol", "input": QUESTION, "tools": [{"type": "web_search"}], "max_tool_calls": 0}
    answer = await ask.post("/v1/responses", **body)
    assert "web_search_call" not in answer.text and answer.status_code == 200


@pytest.mark.parametrize("kind", ["mcp", "code_interpreter", "file_search", "computer_use_preview"])
async def test_what_nobody_would_run_is_refused(ask: Asking, kind: str) -> None:
    refused = await ask.post("/v1/responses", model="gpt-6-sol", input="x", tools=[{"type": kind}])
    assert refused.status_code == 400
    assert f'Tool type "{kind}" is not supported for gpt-6-sol' in refused.json()["error"]["message"]
