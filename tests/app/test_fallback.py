"""Another model answers when the one that was asked for is at its limit."""

from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from trio.testing import MockClock

from codexd.config.model import Config, Models, Server
from support.asgi import client
from support.backend import WHOLE, Backend
from support.upstream import ADDED, CREATED, failed, text

LIMIT = {
    "error": {"type": "usage_limit_reached", "message": "The usage limit has been reached", "resets_in_seconds": 90}
}
KEY = "a-client-key-of-somebody"
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 2}),
    ("/v1/responses", {"input": "x"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}),
    ("/v1/completions", {"prompt": "x"}),
]


class Limited(Backend):
    """Refuses some models, ``status`` of 200 inside a stream."""

    def __init__(self, *models: str, status: int = 429) -> None:
        super().__init__()
        self.models = models
        self.status = status

    def __call__(self, request: httpx.Request) -> httpx.Response:
        model = msgspec.json.decode(request.content)["model"]
        self.steps = WHOLE
        if model in self.models and self.status == 429:
            self.requests.append(request)
            return httpx.Response(429, json=LIMIT)
        if model in self.models:
            self.steps = [CREATED, failed("usage_limit_reached", "The usage limit has been reached")]
        return super().__call__(request)

    @property
    def asked(self) -> list[str]:
        return [msgspec.json.decode(request.content)["model"] for request in self.requests]


def falls(*names: str, **server: Any) -> Config:
    return Config(models=Models(fallback=names), server=Server(**server))


@pytest.mark.parametrize("status", [429, 200])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_the_next_model_answers(
    autojump_clock: MockClock, tmp_path: Path, path: str, body: dict[str, Any], stream: bool, status: int
) -> None:
    backend = Limited("gpt-5.5", "gpt-6-sol", status=status)
    async with client(tmp_path, backend, falls("gpt-5.5", "gpt-6-sol", "gpt-nix", "gpt-6-luna", "gpt-6-astra")) as app:
        asked = body | {"model": "gpt-5.5", "stream": stream}
        answer = await app.request("POST", path, asked)
        metrics = (await app.request("GET", "/metrics")).body.decode()
    assert answer.status == 200, answer.body
    assert b"Hello" in answer.body or b"Hel" in answer.body
    assert answer.headers["x-codexd-fallback"] == "gpt-6-luna"
    assert "model=gpt-6-luna" in answer.headers["x-codexd-adjusted"]
    assert set(backend.asked) == {"gpt-5.5", "gpt-6-sol", "gpt-6-luna"}
    assert 'codexd_model_fallbacks_total{limited="gpt-5.5",model="gpt-6-luna"} 1' in metrics
    if path != "/v1/responses":  # its model is the backend's own word, which is fixed here
        assert b'"model":"gpt-6-luna"' in answer.body


async def test_a_fallback_may_be_at_its_limit_too(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Limited("gpt-5.5", "gpt-6-luna")
    for stream in (True, False):
        async with client(tmp_path, backend, falls("gpt-6-luna")) as app:
            answer = await app.request("POST", "/v1/responses", {"model": "gpt-5.5", "input": "x", "stream": stream})
        assert (answer.status, answer.json["error"]["code"]) == (429, "usage_limit_reached")


class Odd(Limited):
    """The fallback fails in its own way."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if msgspec.json.decode(request.content)["model"] == "gpt-6-luna":
            return httpx.Response(400, json={"detail": "odd"})
        return super().__call__(request)


async def test_another_failure_of_the_fallback_is_told(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Odd("gpt-5.5"), falls("gpt-6-luna")) as app:
        answer = await app.request("POST", "/v1/responses", {"model": "gpt-5.5", "input": "x"})
    assert (answer.status, answer.json["error"]["message"]) == (400, "odd")


async def test_nobody_falls_back_unasked(autojump_clock: MockClock, tmp_path: Path) -> None:
    body = {"model": "gpt-5.5", "input": "x"}
    for config, headers in (
        (Config(), {}),
        (falls("gpt-6-luna", client_keys={"a": KEY}, strict_keys=("a",)), {"x-api-key": KEY}),
        (falls("gpt-6-luna", client_keys={"a": KEY}, key_limits={"a": {"models": ["gpt-5*"]}}), {"x-api-key": KEY}),
    ):
        config = msgspec.convert(msgspec.to_builtins(config), Config)
        async with client(tmp_path, Limited("gpt-5.5"), config) as app:
            assert (await app.request("POST", "/v1/responses", body, headers=headers)).status == 429


async def test_the_effort_in_the_first_name_stays(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Limited("gpt-5.5")
    async with client(tmp_path, backend, falls("gpt-5.5-low", "gpt-6-luna")) as app:
        await app.request("POST", "/v1/responses", {"model": "gpt-5.5-high", "input": "x"})
    assert backend.asked == ["gpt-5.5", "gpt-6-luna"] and backend.sent["reasoning"]["effort"] == "high"


async def test_an_answer_that_has_begun_stays_the_models(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, ADDED, text("Hel"), failed("usage_limit_reached", "The usage limit")])
    async with client(tmp_path, backend, falls("gpt-6-luna")) as app:
        answer = await app.request("POST", "/v1/responses", {"model": "gpt-5.5", "input": "x", "stream": True})
    assert len(backend.requests) == 1
    assert b"usage_limit_reached" in answer.body and "x-codexd-fallback" not in answer.headers


async def test_the_reserve_has_its_own_header(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Limited("gpt-5.5")
    async with client(tmp_path, backend, falls("gpt-reserve")) as app:
        answer = await app.request("POST", "/v1/responses", {"model": "gpt-5.5", "input": "x"})
    assert answer.headers["x-codexd-fallback"] == "gpt-reserve"
    assert [request.headers.get("x-openai-codex-luna-reserve") for request in backend.requests] == [None, "1"]
