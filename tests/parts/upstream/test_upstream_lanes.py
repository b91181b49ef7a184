"""A request on its lane: over a websocket, again over a new one, over HTTP; and what closes the websocket lane."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from wsproto.events import CloseConnection, TextMessage

from codexd.auth import store
from codexd.auth.issuer import Issuer
from codexd.auth.session import Access, Session
from codexd.auth.store import Credentials
from codexd.config.model import Backend, OAuth
from codexd.errors import ApiError
from codexd.protocol.codex.request import Reasoning
from codexd.upstream import client, frames, identity, lane
from codexd.upstream.attempt import Attempts
from codexd.upstream.call import Call
from codexd.upstream.client import Upstream, make_client
from codexd.upstream.http_lane import EventStream
from codexd.upstream.transport import Transport
from codexd.upstream.websocket_lane import WebsocketStream
from support import calls
from support.calls import called, output, raw, said, user
from support.peer import Peer, peers
from support.secrets import access_token
from support.serving import serving
from support.simulated import Simulated, simulated

NOW = 1_795_000_000.0

KEY = "0199f0aa-1111-7222-8333-444455556666"
call = partial(calls.call, key=KEY, model="gpt-5.5", instructions="I", reasoning=Reasoning(effort="low"))


@asynccontextmanager
async def reaching(url: str, path: Path, issuer: str = "http://localhost:1", **config: Any) -> AsyncIterator[Upstream]:
    made = Transport()
    with trio.fail_after(20):
        async with make_client(made) as http, trio.open_nursery() as nursery:
            session = Session(path, issuer=Issuer(http, OAuth(issuer=issuer), {}), clock=lambda: NOW)
            upstream = Upstream(http, session, Backend(url=url, **config), clock=lambda: NOW, transport=made)
            nursery.start_soon(upstream._conversations.run)
            await wait_all_tasks_blocked()
            yield upstream
            nursery.cancel_scope.cancel()


@pytest.fixture
def chatgpt(tmp_path: Path) -> Any:
    @asynccontextmanager
    async def run(**config: Any) -> AsyncIterator[tuple[Upstream, Simulated]]:
        async with simulated() as it:
            store.save(tmp_path / "tokens.json", it.issuer.sign_in())
            it.chatgpt.turns = []
            async with reaching(f"{it.url}/backend-api", tmp_path / "tokens.json", it.url, **config) as upstream:
                yield upstream, it

    return run


Talk = Callable[[Peer], Awaitable[None]]


@pytest.fixture
def rude(tmp_path: Path) -> Any:
    """A backend whose websockets talk like this, each with the next; a request over HTTP is answered."""

    @asynccontextmanager
    async def run(
        *talks: Talk, status: bytes = b"200 OK", **config: Any
    ) -> AsyncIterator[tuple[Upstream, list[bytes]]]:
        remaining = list(talks)

        async def talk(peer: Peer) -> None:
            if peer.head.startswith(b"POST"):
                body = b'data: {"type":"response.completed","response":{}}\n\n'
                await peer.stream.send_all(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
            else:
                await remaining.pop(0)(peer)

        server = peers(talk)
        store.save(tmp_path / "tokens.json", Credentials(access_token=access_token(9e9)))
        path = tmp_path / "tokens.json"
        async with serving(server) as port, reaching(f"http://127.0.0.1:{port}", path, **config) as upstream:
            yield upstream, server.requests

    return run


async def read(source: EventStream | WebsocketStream) -> list[Any]:
    """Returns all events of an answer, decoded."""
    found = list[bytes]()

    def step(events: Sequence[bytes]) -> bool:
        found.extend(events)
        return True

    while not await source.push(step):
        pass  # the events before a failure come first
    return [msgspec.json.decode(each) for each in found]


async def ask(upstream: Upstream, asked: Call, failures: int = 0) -> list[Any]:
    async with upstream.open(asked, failures) as source:
        return await read(source)


def refusing(status: int, **headers: str) -> Talk:
    async def talk(peer: Peer) -> None:
        lines = [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([f"HTTP/1.1 {status} No", "content-length: 2", *lines, "", "{}"])
        await peer.stream.send_all(head.encode())

    return talk


async def accepting(peer: Peer) -> None:
    """Answers each request with one that is complete."""
    await peer.accept()
    with contextlib.suppress(AssertionError):
        while True:
            await peer.hear_message()
            created, completed = (
                {"type": f"response.{kind}", "response": {"id": "r"}} for kind in ("created", "completed")
            )
            await peer.say(*[TextMessage(msgspec.json.encode(each).decode()) for each in (created, completed)])


async def ending(peer: Peer) -> None:
    await peer.accept()
    await peer.hear_message()
    await peer.say(CloseConnection(code=1011))


async def silent(peer: Peer) -> None:
    await peer.stream.receive_some()


async def cutting(_: Peer) -> None:
    pass


def went(asked: Call) -> tuple[str | None, str | None]:
    return asked.timings.lane, asked.timings.fallback


# --- the usual way


async def test_a_conversation_over_one_websocket(chatgpt: Any) -> None:
    async with chatgpt() as (upstream, it):
        first = call(user("hi"))
        events = await ask(upstream, first)
        items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert went(first) == ("websocket", None)
        assert (first.timings.kept, first.timings.delta, first.timings.ready) == (False, False, False)
        assert upstream.websockets == (1, 1)
        second = call(user("hi"), *[raw(item) for item in items], user("more"))
        async with upstream.open(second) as source:
            assert upstream.websockets == (1, 0)
            assert (await read(source))[-1]["type"] == "response.completed"
            assert source.headers["x-codex-primary-used-percent"] == "12.0"
        assert went(second) == ("websocket", None)
        assert (second.timings.kept, second.timings.delta, second.timings.ready) == (True, True, True)
        assert second.timings.sent < first.timings.sent + 100
        assert (first.timings.handshakes, second.timings.handshakes) == (1, 0)
        other = call(user("other"), key=KEY.replace("0199", "0198"))
        await ask(upstream, other)
        assert (it.chatgpt.connections, upstream.websockets) == (2, (2, 2))
        assert [turn.connection for turn in it.chatgpt.turns] == [1, 1, 2]
        found = upstream.limits()
        assert found is not None
        assert found.windows[0].used_percent == 12


async def test_the_other_transports(chatgpt: Any) -> None:
    async with chatgpt(transport="http") as (upstream, it):
        asked = call(user("hi"))
        assert (await ask(upstream, asked))[-1]["type"] == "response.completed"
        assert (went(asked), it.chatgpt.connections) == (("http", None), 0)
    async with chatgpt(transport="websocket") as (upstream, it):
        it.chatgpt.websocket = False
        with pytest.raises(ApiError) as caught:
            await ask(upstream, call(user("hi")))
        assert (caught.value.status, "status 426" in str(caught.value)) == (502, True)


async def test_who_leaves_in_the_middle_closes(chatgpt: Any) -> None:
    async with chatgpt() as (upstream, _):
        async with upstream.open(call(user("hi"))) as source:
            await source.push(lambda _: False)
        assert upstream.websockets == (0, 0)


async def test_a_tool_loop_keeps_the_turn_state(rude: Any) -> None:
    """On HTTP too, if that takes over inside the turn."""
    answer = [
        {"type": "response.created", "response": {"id": "r"}},
        {"type": "response.metadata", "headers": {identity.TURN_STATE: "state"}},
        {"type": "response.output_item.done", "item": msgspec.to_builtins(raw(called()), builtin_types=[msgspec.Raw])},
        {"type": "response.completed", "response": {"id": "r"}},
    ]

    async def talk(peer: Peer) -> None:
        await peer.accept()
        await peer.hear_message()
        await peer.say(*[TextMessage(msgspec.json.encode(each).decode()) for each in answer])
        assert f'"{identity.TURN_STATE}":"state"' in await peer.hear_message()

    async with rude(talk) as (upstream, requests):
        await ask(upstream, call(user("hi")))
        again = call(user("hi"), called(), output())
        with pytest.raises(ApiError):
            await ask(upstream, again)
        assert again.timings.delta
        await ask(upstream, again, 2)
        assert went(again) == ("http", "failed")
        assert b"x-codex-turn-state: state" in requests[-1]


@pytest.mark.parametrize("first", ["state", "no \xe9"])
async def test_over_http_the_turn_state_is_a_header(rude: Any, first: str) -> None:
    status = f"200 OK\r\nx-codex-turn-state: {first}".encode("latin-1")
    async with rude(transport="http", status=status) as (upstream, requests):

        async def told(*items: Any) -> bool:
            await ask(upstream, call(*items))
            return b"x-codex-turn-state: state" in requests.pop()

        kept = first == "state"
        assert not await told(user("hi"))
        assert await told(user("hi"), called(), output()) is kept
        assert await told(user("hi"), called(), output(), called(), output()) is kept
        assert not await told(user("hi"), called(), output(), said("x"), user("next"))
        assert not await told(user("other"), called(), output())


# --- handshakes


async def test_a_token_that_is_refused_is_replaced(chatgpt: Any) -> None:
    async with chatgpt() as (upstream, it):
        it.issuer.access.clear()
        asked = call(user("hi"))
        assert (await ask(upstream, asked))[-1]["type"] == "response.completed"
        assert (went(asked), asked.timings.handshakes) == (("websocket", None), 2)


async def test_a_sporadic_403_is_tried_again(rude: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REFUSED_PAUSE", 0.0)
    async with rude(refusing(403), accepting, refusing(403), refusing(403)) as (upstream, _):
        asked = call(user("hi"))
        await ask(upstream, asked)
        assert (went(asked), asked.timings.handshakes) == (("websocket", None), 2)
        other = call(user("hi"), key=KEY.replace("0199", "0198"))
        await ask(upstream, other)
        assert (went(other), other.timings.handshakes) == (("http", "refused"), 2)
        assert upstream._lane.open


@pytest.mark.parametrize(
    ("talk", "fallback", "is_open"),
    [
        (refusing(426), "unsupported", False),
        (refusing(500), "refused", True),
        (refusing(401), "refused", True),
        (cutting, "refused", True),
        (silent, "silent", False),
    ],
)
async def test_http_takes_over_where_no_websocket_is_to_be_had(
    rude: Any, monkeypatch: pytest.MonkeyPatch, talk: Talk, fallback: str, is_open: bool
) -> None:
    if talk is silent:
        monkeypatch.setattr(client, "HANDSHAKE_SECONDS", 0.05)
    async with rude(talk, accepting) as (upstream, _):
        asked = call(user("hi"))
        assert (await ask(upstream, asked))[-1]["type"] == "response.completed"
        assert went(asked) == ("http", fallback)
        assert upstream._lane.open == is_open
        again = call(user("hi"))
        await ask(upstream, again)
        assert went(again) == (("websocket", None) if is_open else ("http", "paused"))


@pytest.mark.parametrize(
    ("talk", "said_error"), [(refusing(500), "status 500"), (cutting, "websocket"), (silent, "no answer")]
)
async def test_only_websockets_means_an_error(
    rude: Any, monkeypatch: pytest.MonkeyPatch, talk: Talk, said_error: str
) -> None:
    monkeypatch.setattr(client, "HANDSHAKE_SECONDS", 0.05 if talk is silent else 5.0)
    async with rude(talk, transport="websocket") as (upstream, requests):
        with pytest.raises(ApiError, match=said_error):
            await ask(upstream, call(user("hi")))
        assert len(requests) == 1


async def test_a_lane_that_works_again_is_used_again(rude: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "UNSUPPORTED_PAUSE", 0.0)
    async with rude(refusing(426), accepting) as (upstream, _):
        await ask(upstream, call(user("hi")))
        assert not upstream._lane.open
        await ask(upstream, call(user("hi")))
        assert upstream._lane.open


@pytest.mark.parametrize("how", ["unreachable", "left", "ended"])
async def test_a_try_that_tells_nothing_is_taken_back(
    rude: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    monkeypatch.setattr(lane, "UNSUPPORTED_PAUSE", 0.0)
    async with rude(refusing(426), *({"left": [silent], "ended": [ending]}.get(how, [])), accepting) as (upstream, _):
        await ask(upstream, call(user("hi")))
        config = upstream._config
        if how == "left":
            with trio.move_on_after(0.05):
                await ask(upstream, call(user("hi")))
        elif how == "ended":
            with pytest.raises(ApiError):
                await ask(upstream, call(user("hi")))
        else:
            upstream._set(Backend(url="http://127.0.0.1:1"))
            with pytest.raises(ApiError, match="no connection"):
                await ask(upstream, call(user("hi")))
            upstream._set(config)
        assert upstream.websockets == (0, 0)
        assert not upstream._lane.open
        again = call(user("hi"))
        await ask(upstream, again)
        assert (went(again), upstream._lane.open) == (("websocket", None), True)


# --- limits


async def test_a_request_that_is_too_large_goes_over_http(chatgpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_MESSAGE", 1000)
    async with chatgpt() as (upstream, it):
        asked = call(user("x" * 1000))
        await ask(upstream, asked)
        assert (went(asked), it.chatgpt.connections) == (("http", "too large"), 0)


async def test_a_long_conversation_stays_on_its_websocket_while_its_news_is_small(
    chatgpt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with chatgpt() as (upstream, it):
        first = call(user("x" * 1000))
        items = [event["item"] for event in await ask(upstream, first) if event["type"] == "response.output_item.done"]
        monkeypatch.setattr(client, "MAX_MESSAGE", 1000)
        again = call(user("x" * 1000), *map(raw, items), user("and?"))
        await ask(upstream, again)
        assert (went(again), again.timings.delta) == (("websocket", None), True)
        edited = call(user("y" * 1000), *map(raw, items), user("and?"))
        await ask(upstream, edited)
        assert went(edited) == ("http", "too large")
        assert it.chatgpt.connections == 1


async def test_a_request_that_fails_everywhere_does_not_close_the_lane(rude: Any) -> None:
    async with rude(status=b"500 Oops") as (upstream, _):
        for _ in range(lane.FAILURES + 1):
            with pytest.raises(ApiError):
                await ask(upstream, call(user("hi")), 2)
        assert upstream._lane.open


async def test_what_websockets_cannot_and_http_can_closes_the_lane(rude: Any) -> None:
    async with rude() as (upstream, _):
        for _ in range(lane.FAILURES):
            assert upstream._lane.open
            await ask(upstream, call(user("hi")), 2)
        assert not upstream._lane.open


async def test_http_alone_closes_what_is_open(chatgpt: Any) -> None:
    async with chatgpt() as (upstream, it):
        await ask(upstream, call(user("hi")))
        assert upstream.websockets == (1, 1)
        upstream.configure(Backend(url=f"{it.url}/backend-api", transport="http"))
        await wait_all_tasks_blocked()
        assert upstream.websockets == (0, 0)


@pytest.mark.parametrize("transport", ["auto", "websocket"])
async def test_when_all_websockets_answer(chatgpt: Any, transport: str) -> None:
    async with chatgpt(max_connections=1, transport=transport) as (upstream, _), upstream.open(call(user("a"))):
        other = call(user("b"))
        if transport == "auto":
            await ask(upstream, other)
            assert went(other) == ("http", "busy")
        else:
            with pytest.raises(ApiError, match="All 1 websockets"):
                await ask(upstream, other)


# --- attempts


async def test_a_websocket_that_fails_is_followed_by_another_and_that_by_http(rude: Any) -> None:
    async with rude(ending, ending, accepting) as (upstream, _):
        asked = call(user("hi"))
        attempts = Attempts(upstream, asked, lambda: None)
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                async with attempts.open() as source:
                    await read(source)
            assert caught.value.retryable
            assert went(asked) == ("websocket", None)
        async with attempts.open() as source:
            assert (await read(source))[-1]["type"] == "response.completed"
        assert went(asked) == ("http", "failed")
        assert upstream._lane.open
        assert upstream.websockets == (0, 0)


async def test_after_a_failure_a_new_connection_is_opened(chatgpt: Any) -> None:
    async with chatgpt() as (upstream, _):
        await ask(upstream, call(user("hi")))
        again = call(user("hi"))
        await ask(upstream, again, failures=1)
        assert (again.timings.kept, again.timings.handshakes) == (False, 1)


async def test_a_connection_that_ends_under_the_message_is_a_failed_attempt(
    rude: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "FRAGMENT", 100_000)

    async def talk(peer: Peer) -> None:
        await peer.accept()
        await peer.hear()
        await peer.say(CloseConnection(code=1009))
        while await peer.hear():
            pass

    async with rude(talk) as (upstream, _):
        with pytest.raises(ApiError) as caught:
            await ask(upstream, call(user("x" * 10_000_000)))
        assert (caught.value.error.code, caught.value.retryable) == ("upstream_stream_ended", True)


async def test_reasoning_that_cannot_be_decrypted_is_left_out(rude: Any) -> None:
    heard = list[str]()

    async def refuse(peer: Peer) -> None:
        await peer.accept()
        heard.append(await peer.hear_message())
        error = {"code": "invalid_encrypted_content", "message": "x"}
        await peer.say(TextMessage(msgspec.json.encode({"type": "error", "status": 400, "error": error}).decode()))

    async with rude(refuse, refuse, refuse) as (upstream, _):
        attempts = Attempts(upstream, call(user("hi")), lambda: None)
        with pytest.raises(ApiError) as caught:
            async with attempts.open() as source:
                await read(source)
        assert not caught.value.retryable, "it has none"
        asked, without = call(user("hi")), call(user("bare"))
        attempts = Attempts(upstream, asked, lambda: asked.replaced(without.request))
        with pytest.raises(ApiError) as caught:
            async with attempts.open() as source:
                await read(source)
        assert caught.value.retryable
        with pytest.raises(ApiError) as caught:
            async with attempts.open() as source:
                await read(source)
        assert not caught.value.retryable, "it was left out already"
        assert ["bare" in each for each in heard] == [False, False, True]
        attempts.forget()
        with pytest.raises(ValueError, match="forgotten"):
            async with attempts.open():
                raise AssertionError


async def test_over_http_there_is_one_retry_and_none_after_websockets(rude: Any) -> None:
    async with rude(transport="http") as (upstream, _):
        attempts = Attempts(upstream, call(user("hi")), lambda: None)
        for retryable in (True, False):
            with pytest.raises(ApiError) as caught:
                async with attempts.open():
                    raise ApiError(502, "x", retryable=True)
            assert caught.value.retryable == retryable
    async with rude(ending, ending) as (upstream, _):
        attempts = Attempts(upstream, call(user("hi")), lambda: None)
        for retryable in (True, True, False):
            with pytest.raises(ApiError) as caught:
                async with attempts.open() as source:
                    await read(source)
                    raise ApiError(502, "x", retryable=True)
            assert caught.value.retryable == retryable


# --- headers


async def test_cookies_come_first_in_a_handshake(rude: Any) -> None:
    async with rude(accepting) as (upstream, requests):
        upstream._client.cookies.set("__cf_bm", "simulated", domain="127.0.0.1")
        await ask(upstream, call(user("hi")))
    lines = requests[0].split(b"\r\n")
    assert lines[lines.index(next(line for line in lines if line.startswith(b"sec-websocket-key"))) + 1].startswith(
        b"cookie: "
    )


def test_the_headers_of_a_handshake() -> None:
    access = Access("t", "acct", "us")
    asked = call(user("hi"), service_tier="priority")
    found = identity.of_handshake(Backend(user_agent="ua"), access, asked, None)
    assert list(found) == [
        "chatgpt-account-id", "authorization", "user-agent", "originator", "openai-beta", "version",
        "x-codex-beta-features", "x-client-request-id", "session-id", "thread-id", "x-codex-window-id",
        "x-codex-routing-hint", "x-openai-internal-codex-residency",
    ]  # fmt: skip
    assert (found["x-codex-routing-hint"], found["user-agent"]) == ("model=gpt-5.5;tier=priority", "ua")
    bare = identity.of_handshake(Backend(), Access("t", None), call(user("hi")), None)
    assert set(found) - set(bare) == {"chatgpt-account-id", "x-openai-internal-codex-residency"}
    assert bare["x-codex-routing-hint"] == "model=gpt-5.5"


def test_the_headers_over_http() -> None:
    asked = call(user("hi"), lite=True)
    asked.turn_state = "state"
    found = identity.of_post(Backend(), Access("t", "acct", "us"), asked, None)
    assert (found[identity.TURN_STATE], found[identity.LITE_HEADER]) == ("state", "true")
    assert (found["chatgpt-account-id"], found["x-openai-internal-codex-residency"]) == ("acct", "us")
    bare = identity.of_post(Backend(), Access("t", None), call(user("hi")), None)
    assert set(found) - set(bare) == {
        identity.TURN_STATE, identity.LITE_HEADER, "chatgpt-account-id", "x-openai-internal-codex-residency",
    }  # fmt: skip


# --- over HTTP, and pages


async def test_a_token_that_is_refused_is_replaced_over_http(chatgpt: Any) -> None:
    async with chatgpt(transport="http") as (upstream, it):
        it.issuer.access.clear()
        asked = call(user("hi"))
        assert (await ask(upstream, asked))[-1]["type"] == "response.completed"
        assert (went(asked), asked.timings.tries) == (("http", None), 2)
        assert b"__cf_bm" in upstream._cookie_header()
        assert await upstream.account_check()
        assert (await upstream.usage()).plan == "plus"


async def test_what_http_refuses_is_an_error(chatgpt: Any) -> None:
    async with chatgpt(transport="http") as (upstream, _):
        with pytest.raises(ApiError) as caught:
            await ask(upstream, call(user("hi"), model="unknown"))
        assert (caught.value.status, "not supported" in caught.value.error.message) == (400, True)
        with pytest.raises(ApiError) as caught:
            await upstream._get("/wham/nothing")
        assert caught.value.status == 404


async def test_a_configuration_is_applied_to_the_next_request(chatgpt: Any) -> None:
    async with chatgpt() as (upstream, it):
        upstream.configure(msgspec.structs.replace(upstream._config, transport="http"))
        asked = call(user("hi"))
        await ask(upstream, asked)
        assert (went(asked), it.chatgpt.connections) == (("http", None), 0)
        assert upstream.route(upstream._config.url).proxy is None
        assert await upstream.reach(it.url) is not None
        assert await upstream.reach(f"{it.url}/backend-api/wham/usage") is not None
        with pytest.raises(ApiError):
            await upstream.reach("http://127.0.0.1:1/")
