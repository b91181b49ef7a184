"""A key that has had its share of the account is refused until more is there."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from trio.testing import MockClock

from codexd.config.model import Config, KeyLimits, Server
from support.asgi import client
from support.backend import Backend
from support.upstream import ADDED, CREATED, done, text

KEY = "a-client-key-of-somebody"
USED = {
    "type": "response.completed",
    "response": {"id": "r", "usage": {"input_tokens": 90, "output_tokens": 10, "total_tokens": 100}},
}


class Filling(Backend):
    """Says after each answer how full the windows are."""

    def __init__(self, **windows: float) -> None:
        super().__init__([CREATED, ADDED, text("Hello"), done("Hello"), USED])
        self.windows = windows
        self.resets_at: float | None = 5e9

    def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = super().__call__(request)
        for name, minutes in (("primary", 300), ("secondary", 10080)):
            answer.headers[f"x-codex-{name}-used-percent"] = str(self.windows[name])
            answer.headers[f"x-codex-{name}-window-minutes"] = str(minutes)
            if self.resets_at is not None:
                answer.headers[f"x-codex-{name}-reset-at"] = str(int(self.resets_at))
        return answer


def limited(**limits: Any) -> Config:
    return Config(server=Server(client_keys={"a": KEY, "b": f"{KEY}-b"}, key_limits={"a": KeyLimits(**limits)}))


ASK = {"model": "gpt-5.5", "input": "x"}


async def test_a_share_of_the_windows(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Filling(primary=20, secondary=59.6)
    async with client(tmp_path, backend, limited(until_percent=60)) as app:

        async def ask(key: str = KEY) -> Any:
            return await app.request("POST", "/v1/responses", ASK, headers={"x-api-key": key})

        first = await ask()
        assert (first.status, first.headers["x-codexd-window"]) == (200, "5h=20%, week=60%")
        backend.windows["secondary"] = 60
        assert (await ask()).status == 200
        refused = await ask()
        error = refused.json["error"]
        assert (refused.status, error["code"]) == (429, "key_budget_spent")
        assert "until a window is 60 % used (until_percent). The weekly window is 60 % used" in error["message"]
        assert int(refused.headers["retry-after"]) > 1e9 and refused.headers["x-should-retry"] == "false"
        assert (await ask(f"{KEY}-b")).status == 200, "the other key has no such limit"
        assert (await app.request("GET", "/v1/models", headers={"x-api-key": KEY})).status == 200
        free = await app.request("POST", "/v1/responses/input_tokens", ASK, headers={"x-api-key": KEY})
        assert free.status == 200, "this costs nothing"
        backend.resets_at = 1
        await ask(f"{KEY}-b")
        assert (await ask()).status == 200, "the window has been reset since"
        backend.resets_at = None
        await ask(f"{KEY}-b")
        unknown = await ask()
        assert "Try again when it resets" in unknown.json["error"]["message"] and "retry-after" not in unknown.headers


async def test_tokens_of_a_day(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Filling(primary=1, secondary=1), limited(tokens_per_day=150)) as app:
        for expected in (200, 200, 429):
            answer = await app.request("POST", "/v1/responses", ASK, headers={"x-api-key": KEY})
            assert answer.status == expected
        assert "may use 150 tokens a day (tokens_per_day) and has used 200" in answer.json["error"]["message"]
        assert 0 < int(answer.headers["retry-after"]) <= 90_000
        other = await app.request("POST", "/v1/responses", ASK, headers={"x-api-key": f"{KEY}-b"})
        assert other.status == 200


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1, "1 min"), (61, "2 min"), (3600, "1 h"), (7800, "2 h 10 min"), (86400, "1 d"), (100_000, "1 d 3 h")],
)
def test_a_span_is_said_in_two_units(seconds: float, said: str) -> None:
    from codexd.errors import span

    assert span(seconds) == said
