"""The two lanes of the real daemon to the backend: which one a request takes, and when a websocket is closed."""

import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from codexd.auth import store
from support.asking import Client
from support.codexctl import Make
from support.daemon import PATIENCE, Daemon, connected, hello, post, running
from support.secrets import access_token, refresh_token
from support.upstream import (
    ADDED,
    COMPLETED,
    CREATED,
    Call,
    Script,
    Upstream,
    WebsocketCall,
    cut,
    done,
    failed,
    polite,
    refuse,
    stream_of,
    text,
    token_answer,
    welcome,
)

pytestmark = pytest.mark.loopback

SOCKET, HTTP = "websocket", "http"


class Lanes:
    """A daemon that prefers websockets, and a client of it."""

    def __init__(self, daemon: Daemon, http: httpx.AsyncClient) -> None:
        self.daemon = daemon
        self.http = http
        self.chat = Client(http, "chat", streamed=True)

    async def answers(self, **fields: Any) -> None:
        outcome = await self.chat.ask(**fields)
        assert (outcome.status, outcome.text, outcome.error) == (200, "Hello", None)

    async def refused(self, status: int) -> dict[str, Any]:
        """The error that a request gets."""
        outcome = await self.chat.ask()
        assert outcome.error is not None
        assert outcome.status == status
        return outcome.error

    def said(self, words: str) -> int:
        """How often the log says this."""
        return len(re.findall(words, self.daemon.log.read_text()))


@asynccontextmanager
async def lanes(
    folder: Path, logs: Path, upstream: Upstream, *, constants: dict[str, float] | None = None, **backend: Any
) -> AsyncIterator[Lanes]:
    """``constants`` are those of ``codexd.upstream``, named from there."""
    changed = {f"codexd.upstream.{name}": value for name, value in (constants or {}).items()}
    config = {"transport": "auto"} | backend
    async with (
        running(folder, logs, upstream, backend=config, constants=changed or None) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
    ):
        await daemon.logged("model catalogue refreshed")  # it changes what requests say of a model
        yield Lanes(daemon, http)
        log = daemon.log.read_text()
        assert "internal error" not in log
        assert "Traceback" not in log


async def until(upstream: Upstream, websockets: int) -> None:
    with trio.fail_after(PATIENCE):
        await upstream.until(lambda: upstream.websockets == websockets)


# --- which lane


async def test_answers_come_over_one_websocket(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with lanes(tmp_path, logs, upstream) as it:
        for _ in range(3):
            await it.answers()
        assert (upstream.lanes, len(upstream.asked), upstream.websockets) == ([SOCKET] * 3, 1, 1)
        assert [call.json["type"] for call in upstream.calls] == ["response.create"] * 3
        assert upstream.asked[0].header("openai-beta") == "responses_websockets=2026-02-06"


FIRST: dict[str, Script] = {
    "cut": cut,
    "cut after response.created": stream_of(CREATED),
    "500": refuse(500, b"oops"),
    "failed": stream_of(CREATED, failed("server_error")),
    "empty": stream_of(CREATED, COMPLETED),
    "not found": refuse(400, {"error": {"code": "previous_response_not_found", "message": "x"}}),
    "too old": refuse(400, {"error": {"code": "websocket_connection_limit_reached", "message": "x"}}),
}


@pytest.mark.parametrize("first", FIRST)
async def test_a_websocket_that_fails_is_followed_by_another_one(
    first: str, tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async def fails(call: Call) -> None:
        await FIRST[first](call)
        await cut(call)

    upstream.plays = [polite, fails, polite]
    async with lanes(tmp_path, logs, upstream) as it:
        await it.answers()
        await it.answers()
        assert (upstream.lanes, len(upstream.asked), upstream.websockets) == ([SOCKET] * 3, 2, 1)
        # The new one works, so the failure is forgotten.
        assert it.said("do not work") == 0


async def test_two_websockets_that_fail_are_followed_by_http(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.plays = [cut, cut, polite]
    async with lanes(tmp_path, logs, upstream) as it:
        await it.answers()
        assert upstream.lanes == [SOCKET, SOCKET, HTTP]
        await it.answers()
        assert upstream.lanes[3:] == [SOCKET]


async def test_three_requests_in_a_row_that_need_http_close_the_lane_for_a_while(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    broken = True

    async def play(call: Call) -> None:
        await (cut if broken and isinstance(call, WebsocketCall) else polite)(call)

    upstream.plays = [play]
    async with lanes(tmp_path, logs, upstream, constants={"lane.PAUSE": 3.0}) as it:
        for _ in range(3):
            await it.answers()
        assert upstream.lanes == [SOCKET, SOCKET, HTTP] * 3
        assert it.said("websockets to the backend do not work; using HTTP.*seconds=3") == 1
        await it.answers()
        assert upstream.lanes[9:] == [HTTP]
        broken = False
        with trio.fail_after(PATIENCE):
            while upstream.lanes[-1] == HTTP:
                await it.answers()
        assert it.said("websockets to the backend work again") == 1
        assert it.said("do not work") == 1


async def test_426_means_http_for_an_hour(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.handshakes = [refuse(426, {"detail": "Upgrade Required"})]
    async with lanes(tmp_path, logs, upstream) as it:
        for _ in range(3):
            await it.answers()
        assert (upstream.lanes, len(upstream.asked)) == ([HTTP] * 3, 1)
        assert it.said("websockets to the backend do not work; using HTTP.*seconds=3600") == 1


async def wrong_key(call: Call) -> None:
    await call.upgrade(token="d3Jvbmc=")


async def extension(call: Call) -> None:
    await call.upgrade("sec-websocket-extensions: permessage-deflate")


REFUSALS: dict[str, Script] = {
    "400": refuse(400, {"detail": "no"}),
    "404": refuse(404, b""),
    "429": refuse(429, b"{}"),
    "500": refuse(500, b"oops"),
    "503": refuse(503, {"error": {"code": "slow_down"}}, "retry-after: 7"),
    "200": refuse(200, b"{}"),
    "an HTML page": refuse(502, b"<html>", "content-type: text/html"),
    "cut": cut,
    "a wrong key": wrong_key,
    "an extension that was not asked for": extension,
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_handshake_that_fails_is_followed_by_http(
    refusal: str, tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async def refuses_once(call: Call) -> None:
        # A connection that was idle, and is cut without an answer, is replaced at once.
        await (welcome if upstream.calls else REFUSALS[refusal])(call)

    upstream.handshakes = [refuses_once]
    async with lanes(tmp_path, logs, upstream) as it:
        await it.answers()
        await it.answers()
        assert (upstream.lanes, it.said("do not work")) == ([HTTP, SOCKET], 0)


async def test_three_refused_handshakes_close_the_lane(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.handshakes = [refuse(500, b"oops")]
    async with lanes(tmp_path, logs, upstream) as it:
        for _ in range(5):
            await it.answers()
        assert (upstream.lanes, len(upstream.asked)) == ([HTTP] * 5, 3)
        assert it.said("websockets to the backend do not work; using HTTP.*seconds=600") == 1


async def test_a_handshake_without_an_answer_closes_the_lane(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async def silent(call: Call) -> None:
        await call.gone()

    upstream.handshakes = [silent]
    async with lanes(tmp_path, logs, upstream, constants={"client.HANDSHAKE_SECONDS": 0.3}) as it:
        for _ in range(3):
            await it.answers()
        assert (upstream.lanes, len(upstream.asked)) == ([HTTP] * 3, 1)
        assert it.said("websockets to the backend do not work; using HTTP.*no answer within 0.3 seconds") == 1


async def test_a_403_is_tried_once_more(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.handshakes = [refuse(403, b""), welcome]
    async with lanes(tmp_path, logs, upstream) as it:
        begun = time.monotonic()
        await it.answers()
        assert time.monotonic() - begun >= 1.0
        assert (upstream.lanes, len(upstream.asked)) == ([SOCKET], 2)


async def test_a_403_that_stays_is_followed_by_http(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.handshakes = [refuse(403, b"")]
    async with lanes(tmp_path, logs, upstream, constants={"client.REFUSED_PAUSE": 0.0}) as it:
        await it.answers()
        assert (upstream.lanes, len(upstream.asked)) == ([HTTP], 2)


async def test_a_401_is_healed_by_a_refresh(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    fresh = access_token(time.time() + 864000, number=2)
    upstream.handshakes = [refuse(401, {"error": {"code": "token_expired", "message": "expired"}}), welcome]
    upstream.token_plays = [token_answer(fresh, refresh_token(2))]
    async with lanes(tmp_path, logs, upstream) as it:
        await it.answers()
        await it.answers()
        assert (upstream.lanes, len(upstream.asked), len(upstream.token_calls)) == ([SOCKET] * 2, 2, 1)
        assert upstream.asked[1].header("authorization") == f"Bearer {fresh}"


async def test_a_401_is_healed_by_another_process(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    other = access_token(time.time() + 864000, number=3)

    async def refuses(call: Call) -> None:
        path = it.daemon.state / "tokens.json"
        document = msgspec.json.decode(path.read_bytes()) | {"access_token": other}
        path.write_bytes(msgspec.json.encode(document))
        await call.answer(401, {"error": {"code": "token_expired", "message": "expired"}})

    upstream.handshakes = [refuses, welcome]
    async with lanes(tmp_path, logs, upstream) as it:
        await it.answers()
        assert (upstream.lanes, len(upstream.token_calls)) == ([SOCKET], 0)
        assert upstream.asked[1].header("authorization") == f"Bearer {other}"


async def test_a_401_that_stays_is_told_and_refreshes_once(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.handshakes = [refuse(401, {"detail": "Unauthorized"})]
    upstream.plays = [refuse(401, {"detail": "Unauthorized"})]
    upstream.token_plays = [token_answer(access_token(time.time() + 864000, number=2), refresh_token(2))]
    async with lanes(tmp_path, logs, upstream) as it:
        for _ in range(2):
            assert "codexctl login" in (await it.refused(401))["message"]
        assert len(upstream.token_calls) == 1


async def test_a_401_on_an_open_websocket_is_healed(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.plays = [polite, refuse(401, {"error": {"code": "token_revoked", "message": "revoked"}}), polite]
    upstream.handshakes = [welcome, refuse(401, {"error": {"code": "token_revoked", "message": "revoked"}}), welcome]
    upstream.token_plays = [token_answer(access_token(time.time() + 864000, number=2), refresh_token(2))]
    async with lanes(tmp_path, logs, upstream) as it:
        await it.answers()
        await it.answers()
        assert (upstream.lanes, len(upstream.asked), len(upstream.token_calls)) == ([SOCKET] * 3, 3, 1)


async def test_a_large_request_goes_by_http_at_once(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with lanes(tmp_path, logs, upstream) as it:
        small, large = ("x" * size for size in (15_000_000, 15_600_000))
        await it.answers(messages=[{"role": "user", "content": small}])
        await it.answers(messages=[{"role": "user", "content": large}])
        assert (upstream.lanes, len(upstream.asked)) == ([SOCKET, HTTP], 1)
        assert len(upstream.calls[0].json["input"][-1]["content"][0]["text"]) == len(small)


async def test_http_only_opens_no_websocket(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with lanes(tmp_path, logs, upstream, transport="http") as it:
        await it.answers()
        assert (upstream.lanes, upstream.asked) == ([HTTP], [])


ALONE = {"400": 400, "429": 429, "503": 503}
"""Of the refusals, those that clients get as they are: with HTTP they would be the same."""


@pytest.mark.parametrize("refusal", ["426", *REFUSALS])
async def test_websocket_only_says_why_it_was_refused(
    refusal: str, tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    upstream.handshakes = [refuse(426, b"") if refusal == "426" else REFUSALS[refusal]]
    async with lanes(tmp_path, logs, upstream, transport="websocket") as it:
        outcome = await it.chat.ask()
        assert outcome.error is not None
        assert outcome.status == ALONE.get(refusal, 502)
        if refusal not in ALONE:
            assert "could not be reached by websocket" in outcome.error["message"]
            assert "Set backend.transport" in outcome.error["message"]
        assert upstream.calls == []
        upstream.handshakes = [welcome]
        await it.answers()


async def test_websocket_only_tries_three_times(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.plays = [cut]
    async with lanes(tmp_path, logs, upstream, transport="websocket") as it:
        assert (await it.refused(502))["code"] == "upstream_stream_ended"
        assert upstream.lanes == [SOCKET] * 3
        upstream.plays = [polite]
        await it.answers()


async def test_a_reload_changes_the_lane(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with lanes(tmp_path, logs, upstream) as it:
        await it.answers()
        path = tmp_path / "config.json"
        config = msgspec.json.decode(path.read_bytes())
        config["backend"]["transport"] = "http"
        path.write_bytes(msgspec.json.encode(config))
        it.daemon.signal(signal.SIGHUP)
        await it.daemon.logged("configuration reloaded")
        await it.answers()
        assert upstream.lanes == [SOCKET, HTTP]


# --- what comes with an answer

LIMITS = {
    "type": "codex.rate_limits",
    "plan_type": "plus",
    "rate_limits": {"primary": {"used_percent": 12.5, "window_minutes": 300, "reset_at": 2_000_000_000}},
}


async def test_the_limits_come_as_headers(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.plays = [stream_of(LIMITS, CREATED, ADDED, text("Hello"), done("Hello"), COMPLETED)]
    async with lanes(tmp_path, logs, upstream) as it:
        outcome = await it.chat.ask()
        assert outcome.headers["x-codex-primary-used-percent"] == "12.5"
        assert outcome.headers["x-codex-plan-type"] == "plus"
        assert outcome.headers["x-ratelimit-remaining-requests"] == "87"


async def test_a_limit_that_is_reached_tells_when_it_ends(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    reached = {"error": {"type": "usage_limit_reached", "message": "reached", "resets_in_seconds": 90}}
    upstream.plays = [refuse(429, reached, "X-Codex-Primary-Used-Percent: 100", "x-codex-primary-window-minutes: 300")]
    async with lanes(tmp_path, logs, upstream) as it:
        outcome = await it.chat.ask()
        assert outcome.error is not None
        assert (outcome.status, outcome.error["code"], len(upstream.calls)) == (429, "usage_limit_reached", 1)
        assert outcome.headers["retry-after"] == "90"
        assert outcome.headers["x-codex-primary-window-minutes"] == "300"
        assert outcome.headers["x-ratelimit-remaining-requests"] == "0"
        upstream.plays = [polite]
        await it.answers()
        assert upstream.lanes == [SOCKET] * 2


async def test_a_turns_state_is_repeated_within_it(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    item = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    state = {"type": "response.metadata", "headers": {"x-codex-turn-state": "sticky"}}
    called = [CREATED, state, {"type": "response.output_item.done", "output_index": 0, "item": item}, COMPLETED]
    upstream.plays = [stream_of(*called), polite]
    tools = [{"type": "function", "function": {"name": "f"}}]
    asked: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    async with lanes(tmp_path, logs, upstream) as it:
        outcome = await it.chat.ask(messages=asked, tools=tools)
        assert outcome.error is None
        call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        asked += [{"role": "assistant", "tool_calls": [call]}]
        asked += [{"role": "tool", "tool_call_id": "call_1", "content": "done"}]
        await it.answers(messages=asked, tools=tools)
        asked += [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "go on"}]
        await it.answers(messages=asked, tools=tools)
    states = [call.json["client_metadata"].get("x-codex-turn-state") for call in upstream.calls]
    assert states == [None, "sticky", None]
    assert [call.json.get("previous_response_id") for call in upstream.calls] == [None, "resp_1", "resp_1"]
    assert [len(call.json["input"]) for call in upstream.calls] == [1, 1, 1]


async def test_a_chain_that_the_backend_has_lost_is_sent_whole(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    lost = refuse(400, {"error": {"code": "previous_response_not_found", "message": "x"}})
    upstream.plays = [polite, lost, polite]
    asked: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    async with lanes(tmp_path, logs, upstream) as it:
        await it.answers(messages=asked)
        asked += [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "go on"}]
        await it.answers(messages=asked)
    assert [call.json.get("previous_response_id") for call in upstream.calls] == [None, "resp_1", None]
    assert [len(call.json["input"]) for call in upstream.calls] == [1, 1, 3]
    assert (upstream.lanes, len(upstream.asked)) == ([SOCKET] * 3, 2)


# --- when a websocket is closed


async def test_a_client_that_leaves_during_the_handshake_leaves_nothing(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async def silent(call: Call) -> None:
        await call.gone()
        gone.set()

    gone = trio.Event()
    upstream.handshakes = [silent, welcome]
    async with lanes(tmp_path, logs, upstream) as it:
        async with connected(it.daemon) as client:
            await client.send(post("/v1/chat/completions", hello(stream=True)))
            with trio.fail_after(PATIENCE):
                await upstream.until(lambda: len(upstream.asked) == 1)
        with trio.fail_after(PATIENCE):
            await gone.wait()
        await it.answers()
        assert (upstream.lanes, it.said("do not work")) == ([SOCKET], 0)


async def stays(call: Call) -> None:
    """Half an answer, and then silence."""
    await call.start()
    await call.events(CREATED, ADDED, text("Hel"))
    await call.gone()


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_closes_the_websocket_at_once(
    streamed: bool, tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    upstream.plays = [stays, polite]
    async with lanes(tmp_path, logs, upstream) as it:
        async with connected(it.daemon) as client:
            await client.send(post("/v1/chat/completions", hello(stream=streamed)))
            if streamed:
                await client.until(b'"Hel"')
            else:
                with trio.fail_after(PATIENCE):
                    await upstream.until(lambda: len(upstream.calls) == 1)
        await until(upstream, 0)
        await it.answers()
        assert (upstream.lanes, len(upstream.asked)) == ([SOCKET] * 2, 2)


@pytest.mark.parametrize("end", [{"stop": "lo"}, {"max_tokens": 1}])
async def test_an_answer_that_is_cut_short_closes_its_websocket(
    end: dict[str, Any], tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async def long(call: Call) -> None:
        await call.events(CREATED, ADDED, text("Hel"), text("lo"), text(", and so on, and so on"))
        await call.gone()

    upstream.plays = [long, polite]
    async with lanes(tmp_path, logs, upstream) as it:
        outcome = await it.chat.ask(**end)
        assert (outcome.finished, outcome.error) == (True, None)
        await until(upstream, 0)
        await it.answers()
        assert upstream.lanes == [SOCKET] * 2


async def test_an_idle_websocket_answers_pings(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    heard = trio.Event()

    async def pings(call: Call) -> None:
        await polite(call)
        assert isinstance(call, WebsocketCall)
        for _ in range(3):
            await call.heard()
        heard.set()

    upstream.plays = [pings, polite]
    async with lanes(tmp_path, logs, upstream) as it:
        await it.answers()
        with trio.fail_after(PATIENCE):
            await heard.wait()
        await it.answers()
        assert len(upstream.asked) == 1


@pytest.mark.parametrize("how", ["closed", "cut", "said something"])
async def test_the_end_of_an_idle_websocket_is_noticed(
    how: str, tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async def ends(call: Call) -> None:
        await polite(call)
        assert isinstance(call, WebsocketCall)
        await call.heard()
        if how == "closed":
            await call.close(1001, "going away")
        elif how == "cut":
            await call.stream.aclose()
        else:
            await call.events(text("stray"))
        await call.gone()

    upstream.plays = [ends, polite]
    async with lanes(tmp_path, logs, upstream) as it:
        await it.answers()
        await until(upstream, 0)
        begun = time.monotonic()
        await it.answers()
        # It is no failure: nothing is tried again.
        assert (upstream.lanes, len(upstream.asked), it.said("trying again")) == ([SOCKET] * 2, 2, 0)
        assert time.monotonic() - begun < PATIENCE


async def test_there_is_an_end_to_the_websockets(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    """All that are answering at once, and one more handshake than there are places."""
    opened, go_on = 0, trio.Event()

    async def slow(call: Call) -> None:
        await call.upgrade()

    async def waits(call: Call) -> None:
        nonlocal opened
        if isinstance(call, WebsocketCall):
            opened += 1
            most.append(upstream.websockets)
        await call.start()
        await call.events(CREATED, ADDED, text("Hel"))
        await go_on.wait()
        await call.events(text("lo"), done("Hello"), COMPLETED)
        await call.end()

    most: list[int] = []
    upstream.plays, upstream.handshakes = [waits], [slow]
    async with lanes(tmp_path, logs, upstream, max_connections=2) as it:
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(lambda number=number: it.answers(seed=number, user=f"user {number}"))
            with trio.fail_after(PATIENCE):
                await upstream.until(lambda: len(upstream.calls) == 6)
            go_on.set()
        assert (sorted(upstream.lanes), max(most)) == ([HTTP] * 4 + [SOCKET] * 2, 2)
        assert len(upstream.asked) == 2


async def test_of_two_answers_to_the_same_request_one_websocket_is_kept(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async def both(call: Call) -> None:
        await upstream.until(lambda: len(upstream.calls) == 2)
        await polite(call)

    upstream.plays = [both, both, polite]
    async with lanes(tmp_path, logs, upstream) as it:
        with trio.fail_after(PATIENCE):
            answer = await it.http.post("/v1/chat/completions", json=hello(n=2))
        assert [choice["message"]["content"] for choice in answer.json()["choices"]] == ["Hello"] * 2
        assert (upstream.lanes, len(upstream.asked)) == ([SOCKET] * 2, 2)
        await until(upstream, 1)
        await it.answers()
        assert len(upstream.asked) == 2


async def test_an_idle_websocket_makes_room_for_another(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with lanes(tmp_path, logs, upstream, max_connections=2) as it:
        for number in range(4):
            await it.answers(prompt_cache_key=f"k{number}")
            assert upstream.lanes == [SOCKET] * (number + 1)
        await until(upstream, 2)
        assert len(upstream.asked) == 4


async def test_websocket_only_says_that_all_are_in_use(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.plays = [stays]
    async with (
        lanes(tmp_path, logs, upstream, transport="websocket", max_connections=1) as it,
        connected(it.daemon) as client,
    ):
        await client.send(post("/v1/chat/completions", hello(stream=True)))
        await client.until(b'"Hel"')
        error = await it.refused(503)
        assert "backend.max_connections" in error["message"]


async def test_idle_websockets_end_after_their_time(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    changed = {"conversations.SWEEP_INTERVAL": 0.05}
    async with lanes(tmp_path, logs, upstream, constants=changed, idle_seconds=0.2) as it:
        await it.answers()
        await until(upstream, 0)
        await it.answers()
        assert len(upstream.asked) == 2


async def test_a_new_token_closes_what_was_opened_with_another(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with lanes(tmp_path, logs, upstream, constants={"client.WARM_INTERVAL": 0.05}) as it:
        await it.answers()
        path = it.daemon.state / "tokens.json"
        fresh = access_token(time.time() + 864000, number=2)
        document = msgspec.json.decode(path.read_bytes()) | {"access_token": fresh}
        path.write_bytes(msgspec.json.encode(document))
        await until(upstream, 0)
        await it.answers()
        assert [(call.header("authorization") or "")[7:] == fresh for call in upstream.asked] == [False, True]


async def test_a_sign_out_closes_idle_websockets(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with lanes(tmp_path, logs, upstream, constants={"client.WARM_INTERVAL": 0.05}) as it:
        await it.answers()
        (it.daemon.state / "tokens.json").unlink()
        await until(upstream, 0)
        assert (await it.refused(401))["code"] == "signed_out"


# --- the end


async def test_a_drain_waits_for_answers_and_closes_idle_websockets(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    go_on = trio.Event()

    async def slow(call: Call) -> None:
        await call.events(CREATED, ADDED, text("Hel"))
        await go_on.wait()
        await call.events(text("lo"), done("Hello"), COMPLETED)

    async with lanes(tmp_path, logs, upstream) as it:
        await it.answers()
        upstream.plays = [slow]
        async with connected(it.daemon) as client:
            await client.send(post("/v1/chat/completions", hello(stream=True, prompt_cache_key="another")))
            await client.until(b'"Hel"')
            assert upstream.websockets == 2
            it.daemon.signal()
            await it.daemon.logged("stopping: requests in progress may finish")
            go_on.set()
            assert b"data: [DONE]" in await client.all()
        with trio.fail_after(PATIENCE):
            assert await it.daemon.process.wait() == 0
        await until(upstream, 0)


async def test_the_drain_has_an_end_with_websockets_too(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.plays = [stays]
    async with (
        running(tmp_path, logs, upstream, server={"drain_seconds": 0.3}, backend={"transport": "websocket"}) as daemon,
        connected(daemon) as client,
    ):
        await client.send(post("/v1/chat/completions", hello(stream=True)))
        await client.until(b'"Hel"')
        daemon.signal()
        body = await client.all()
        assert b'"code":"shutting_down"' in body
        with trio.fail_after(PATIENCE):
            assert await daemon.process.wait() == 0
    await until(upstream, 0)


async def test_a_second_signal_stops_at_once_with_websockets_too(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async with lanes(tmp_path, logs, upstream) as it:
        await it.answers()
        upstream.plays = [stays]
        async with connected(it.daemon) as client:
            await client.send(post("/v1/chat/completions", hello(stream=True, prompt_cache_key="another")))
            await client.until(b'"Hel"')
            assert upstream.websockets == 2
            it.daemon.signal(signal.SIGINT)
            await it.daemon.logged("stopping: requests in progress may finish")
            it.daemon.signal()
            with trio.fail_after(PATIENCE):
                assert await it.daemon.process.wait() == 0
        await until(upstream, 0)


# --- over a backend as strict as the real one


async def test_a_conversation_sends_only_what_is_new(setup: Make) -> None:
    async with setup(backend={"transport": "websocket"}) as it:
        await it.daemon.logged("model catalogue refreshed")
        turns = it.chatgpt.chatgpt.turns = []
        messages: list[dict[str, Any]] = []
        async with it.client() as http:
            for number in range(3):
                messages.append({"role": "user", "content": f"question {number}"})
                answer = await http.post("/v1/chat/completions", json={"model": "gpt-5.5", "messages": messages})
                assert answer.status_code == 200
                messages.append(answer.json()["choices"][0]["message"])
        assert [turn.connection for turn in turns] == [1] * 3
        assert [len(turn.body["input"]) for turn in turns] == [1, 1, 1]
        # A reasoning item and a message for each answer, which the client need not send back.
        assert [len(turn.seen) for turn in turns] == [1, 4, 7]


async def test_a_conversation_goes_on_where_the_connection_was_lost(setup: Make) -> None:
    """The backend holds nothing on a new connection, so that one gets everything."""
    async with setup() as it:
        await it.daemon.logged("model catalogue refreshed")
        turns = it.chatgpt.chatgpt.turns = []
        messages: list[dict[str, Any]] = []
        async with it.client() as http:

            async def ask(content: str) -> None:
                messages.append({"role": "user", "content": content})
                answer = await http.post("/v1/chat/completions", json={"model": "gpt-5.5", "messages": messages})
                assert answer.status_code == 200, answer.text
                messages.append(answer.json()["choices"][0]["message"])

            await ask("one")
            await ask("two")
            # Another history with the same first message: the same connection, the whole input with its reasoning item.
            del messages[2:]
            await ask("another two")
            store.save(it.tokens, it.issuer.sign_in())
            await ask("three")
            await ask("four")
        found = [(turn.connection, "previous_response_id" in turn.body, len(turn.body["input"])) for turn in turns]
        assert found == [(1, False, 1), (1, True, 1), (1, False, 4), (2, False, 7), (2, True, 1)]


async def test_a_backend_without_websockets_is_asked_over_http(setup: Make) -> None:
    async with setup() as it:
        it.chatgpt.chatgpt.websocket = False
        for number in range(2):
            assert (await it.ask(f"req_{number}")).status_code == 200
        assert it.chatgpt.chatgpt.connections == 0
        await it.daemon.logged("websockets to the backend do not work; using HTTP.*seconds=3600")
