"""The real daemon over an upstream that misbehaves to the byte: one well-formed outcome each, in either dialect."""

import gzip
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
import trio

from support.asking import Client
from support.daemon import PATIENCE, Daemon, connected, post, running
from support.secrets import ACCOUNT, MARKER, access_token, refresh_token
from support.upstream import (
    ADDED,
    COMPLETED,
    CREATED,
    Call,
    Script,
    Upstream,
    cut,
    done,
    failed,
    polite,
    refuse,
    stream_of,
    text,
    token_answer,
)

pytestmark = pytest.mark.loopback


@pytest.fixture
async def daemon(tmp_path: Path, logs: Path, upstream: Upstream) -> AsyncIterator[Daemon]:
    async with running(tmp_path, logs, upstream) as daemon:
        yield daemon


@pytest.fixture(params=["chat streamed", "chat whole", "responses streamed", "responses whole"])
async def client(request: pytest.FixtureRequest, daemon: Daemon) -> AsyncIterator[Client]:
    dialect, how = request.param.split()
    async with httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http:
        yield Client(http, dialect, how == "streamed")


async def cut_on_the_way(call: Call) -> None:
    await call.start()
    await call.events(CREATED, ADDED, text("Hel"))
    await call.raw(b"ff\r\ndata: {")
    await call.stream.aclose()


async def byte_by_byte(call: Call) -> None:
    await call.start()
    events = (CREATED, ADDED, text("\u2028\u0085\x0b"), done("\u2028\u0085\x0b"), COMPLETED)
    for event in events:
        data = b"data: " + msgspec.json.encode(event) + b"\r\n\r\n"
        for byte in data:
            await call.chunk(bytes([byte]))
    await call.end()


async def compressed(call: Call) -> None:
    whole = b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in (CREATED, done("Hello"), COMPLETED))
    await call.answer(200, gzip.compress(whole), "content-encoding: gzip")


async def noisy(call: Call) -> None:
    """Comments, bad JSON, unknown events, a [DONE] on the way, and more after the end."""
    await call.start()
    await call.chunk(b': hi\n\nevent: keepalive\ndata: {"type":"keepalive"}\n\ndata: {bad\n\ndata: [DONE]\n\n')
    await call.events({"type": "codex.rate_limits", "rate_limits": {"limit_reached": True}}, {"type": "brand.new"})
    await call.events(CREATED, ADDED, text("Hello"), done("Hello"), COMPLETED, text("more"), failed("server_error"))
    await call.end()


@pytest.mark.parametrize("script", [polite, byte_by_byte, compressed, noisy])
async def test_a_rude_answer_is_an_answer(script: Script, client: Client, upstream: Upstream) -> None:
    upstream.plays = [script]
    outcome = await client.ask()
    assert (outcome.status, outcome.finished, outcome.error) == (200, True, None)
    if script is byte_by_byte:
        assert outcome.text == "\u2028\u0085\x0b"
    elif script is not compressed:
        assert outcome.text == "Hello"


@pytest.mark.parametrize("first", [cut, refuse(500, b"oops"), refuse(502, b"<html>"), stream_of(CREATED),
                                   stream_of(CREATED, failed("server_is_overloaded")), stream_of(CREATED, COMPLETED)])  # fmt: skip
async def test_what_fails_before_its_first_byte_is_tried_once_more(
    first: Script, client: Client, upstream: Upstream
) -> None:
    upstream.plays = [first, polite]
    outcome = await client.ask()
    assert (outcome.status, outcome.text, len(upstream.calls)) == (200, "Hello", 2)


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (cut, 502, "upstream_stream_ended"),
        (refuse(500, b"oops"), 502, "upstream_error"),
        (stream_of(CREATED), 502, "upstream_stream_ended"),
        (stream_of(CREATED, COMPLETED), 502, "upstream_empty_answer"),
        (stream_of(failed("server_is_overloaded")), 503, "server_is_overloaded"),
    ],
)
async def test_a_fault_that_stays_is_an_error_after_two_tries(
    script: Script, status: int, code: str, client: Client, upstream: Upstream
) -> None:
    upstream.plays = [script]
    outcome = await client.ask()
    assert outcome.error is not None
    assert (outcome.status, outcome.error["code"]) == (status, code)
    # A connection that was idle, and ends without an answer, is no try: another takes its place at once.
    assert len(upstream.calls) in ((2, 3) if script is cut else (2,))
    assert set(outcome.error) == {"message", "type", "param", "code"}
    upstream.plays = [polite]
    assert (await client.ask()).text == "Hello"


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (refuse(400, {"detail": "Unsupported parameter: foo"}), 400, None),
        (refuse(403, b"<!DOCTYPE html><title>Just a moment...</title>"), 502, "upstream_blocked"),
        (refuse(402, {"detail": {"code": "deactivated_workspace"}}), 402, "deactivated_workspace"),
        (refuse(503, {"error": {"code": "slow_down"}}, "retry-after: 7"), 503, "slow_down"),
        (stream_of(failed("context_length_exceeded")), 400, "context_length_exceeded"),
        (stream_of(failed("rate_limit_exceeded", "Please try again in 1.5s.")), 429, "rate_limit_exceeded"),
    ],
)
async def test_a_refusal_is_not_tried_again(
    script: Script, status: int, code: str | None, client: Client, upstream: Upstream
) -> None:
    upstream.plays = [script]
    outcome = await client.ask()
    assert outcome.error is not None
    assert (outcome.status, outcome.error["code"], len(upstream.calls)) == (status, code, 1)
    assert outcome.headers.get("retry-after") == {503: "7", 429: "2"}.get(status)


@pytest.mark.parametrize("script", [cut_on_the_way, stream_of(CREATED, ADDED, text("Hel")),
                                    stream_of(CREATED, ADDED, text("Hel"), failed("server_error"))])  # fmt: skip
async def test_a_failure_on_the_way_is_one_error_and_no_success(
    script: Script, client: Client, upstream: Upstream
) -> None:
    upstream.plays = [script]
    outcome = await client.ask()
    assert outcome.error is not None
    assert not outcome.finished
    if client.streamed:
        assert (outcome.status, outcome.text, len(upstream.calls)) == (200, "Hel", 1)
    else:
        assert outcome.status == 502


async def test_a_limit_tells_when_it_ends(client: Client, upstream: Upstream) -> None:
    resets_at = int(time.time()) + 5000
    upstream.plays = [
        refuse(
            429,
            {
                "error": {
                    "type": "usage_limit_reached",
                    "message": "The usage limit has been reached",
                    "resets_at": resets_at,
                }
            },
            "x-codex-primary-used-percent: 100",
            "x-codex-primary-window-minutes: 300",
            f"x-codex-primary-reset-at: {resets_at}",
            "set-cookie: a=b",
        )
    ]
    outcome = await client.ask()
    assert outcome.error is not None
    kind = "usage_limit_reached" if client.dialect == "responses" else "insufficient_quota"
    assert (outcome.status, outcome.error["code"], outcome.error["type"]) == (429, "usage_limit_reached", kind)
    assert outcome.error["resets_at"] == resets_at
    assert 4900 < int(outcome.headers["retry-after"]) <= 5000
    assert outcome.headers["x-codex-primary-window-minutes"] == "300"
    assert outcome.headers["x-ratelimit-remaining-requests"] == "0"
    assert re.fullmatch(r"49\d\ds|5000s", outcome.headers["x-ratelimit-reset-requests"])
    assert "set-cookie" not in outcome.headers


async def test_the_answer_carries_the_fullest_window(client: Client) -> None:
    outcome = await client.ask(temperature=1)
    assert outcome.headers["x-codex-primary-used-percent"] == "12.5"
    assert (outcome.headers["x-ratelimit-remaining-requests"], outcome.headers["x-ratelimit-reset-requests"]) == (
        "40",
        "3600s",
    )
    assert "temperature=dropped" in outcome.headers["x-codexd-adjusted"]
    assert outcome.headers["x-request-id"].startswith("req_")


async def test_the_request_is_what_the_backend_expects(client: Client, upstream: Upstream) -> None:
    await client.ask()
    own = "0199f0aa-1111-7222-8333-444455556666"
    await client.ask(model="gpt-6-sol-low", prompt_cache_key=own)
    first, second = upstream.calls
    assert MARKER in (first.header("authorization") or "").removeprefix("Bearer ")
    for name, value in {
        "chatgpt-account-id": ACCOUNT, "openai-beta": "responses=experimental", "originator": "codex_cli_rs",
        "accept": "text/event-stream", "content-type": "application/json", "version": "0.169.0",
    }.items():  # fmt: skip
        assert first.header(name) == value
    assert (first.header("user-agent") or "").startswith("codexd/")
    key = first.json["prompt_cache_key"]
    for name in ("session_id", "conversation_id", "session-id", "thread-id", "x-client-request-id"):
        assert first.header(name) == key
        assert second.header(name) == own
    assert first.header("x-openai-internal-codex-responses-lite") is None
    assert second.header("x-openai-internal-codex-responses-lite") == "true"
    assert first.header("accept-encoding") is None
    assert first.json["instructions"]
    assert "instructions" not in second.json
    # Cloudflare's cookie comes back, the other one does not.
    assert (first.header("cookie"), second.header("cookie")) == (None, f"__cf_bm={MARKER}")


async def test_a_refused_token_is_refreshed_once(client: Client, daemon: Daemon, upstream: Upstream) -> None:
    fresh = access_token(time.time() + 864000, number=2)
    upstream.plays = [refuse(401, {"error": {"code": "token_expired", "message": "expired"}}), polite]
    upstream.token_plays = [token_answer(fresh, refresh_token(2))]
    outcome = await client.ask()
    assert (outcome.status, outcome.text) == (200, "Hello")
    assert upstream.calls[1].header("authorization") == f"Bearer {fresh}"
    assert upstream.token_calls[0].json["refresh_reason"] == "unauthorized_recovery"
    stored = msgspec.json.decode((daemon.state / "tokens.json").read_bytes())
    assert (stored["access_token"], stored["refresh_token"]) == (fresh, refresh_token(2))


async def test_a_token_that_stays_refused_is_not_refreshed_again_and_again(client: Client, upstream: Upstream) -> None:
    upstream.plays = [refuse(401, {"detail": "Unauthorized"})]
    upstream.token_plays = [token_answer(access_token(time.time() + 864000, number=2), refresh_token(2))]
    for _ in range(3):
        outcome = await client.ask()
        assert outcome.error is not None
        assert outcome.status == 401
        assert "codexctl login" in outcome.error["message"]
    assert len(upstream.token_calls) == 1


async def test_a_sign_in_that_has_ended_is_a_401_until_the_file_changes(
    client: Client, daemon: Daemon, upstream: Upstream
) -> None:
    upstream.plays = [refuse(401, {"detail": "Unauthorized"})]
    upstream.token_plays = [refuse(401, {"error": {"code": "refresh_token_reused", "message": "already used"}})]
    for _ in range(2):
        outcome = await client.ask()
        assert outcome.error is not None
        assert (outcome.status, outcome.error["code"]) == (401, "signed_out")
    assert (len(upstream.token_calls), len(upstream.calls)) == (1, 1)
    async with httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http:
        assert (await http.get("/health?ready=1")).status_code == 503
        assert (await http.get("/health")).status_code == 200
    upstream.plays = [polite]
    document = msgspec.json.decode((daemon.state / "tokens.json").read_bytes())
    document["refresh_token"] = refresh_token(9)
    (daemon.state / "tokens.json").write_bytes(msgspec.json.encode(document))
    assert (await client.ask()).text == "Hello"


async def test_silence_has_an_end_and_a_heartbeat_does_not_count_as_progress(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async def silent(call: Call) -> None:
        await call.gone()

    async def stalls(call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED, text("Hel"))
        await call.gone()

    limits = {"first_event_timeout": 0.4, "idle_timeout": 0.4}
    async with (
        running(tmp_path, logs, upstream, backend=limits) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
    ):
        for dialect in ("chat", "responses"):
            for streamed in (True, False):
                asking = Client(http, dialect, streamed)
                upstream.plays = [silent]
                outcome = await asking.ask()
                assert outcome.error is not None
                assert (outcome.status, outcome.error["code"]) == (504, "upstream_timeout")
                assert "first_event_timeout" in outcome.error["message"]
                upstream.plays = [stalls]
                outcome = await asking.ask()
                assert outcome.error is not None
                assert (outcome.status, outcome.text) == ((200, "Hel") if streamed else (504, ""))
                assert "idle_timeout" in outcome.error["message"]
        with trio.fail_after(PATIENCE):
            await upstream.until(lambda: upstream.open <= 1)  # the catalogue's connection may stay


async def test_an_upstream_that_is_not_there_is_named(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with (
        running(tmp_path, logs, upstream, backend={"url": "http://127.0.0.1:1/backend-api"}) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
    ):
        outcome = await Client(http, "chat", streamed=True).ask()
        assert outcome.error is not None
        assert (outcome.status, outcome.error["code"]) == (502, "upstream_unreachable")


async def test_a_connection_is_used_again(client: Client, daemon: Daemon, upstream: Upstream) -> None:
    await daemon.logged("model catalogue refreshed")  # until then there may be two connections to choose from
    for _ in range(5):
        await client.ask()
    assert len({id(call.stream) for call in upstream.calls}) == 1


async def test_a_client_that_leaves_with_the_last_event_has_had_its_answer(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    """As agents do: they close the connection on response.completed, before the stream has ended."""

    async def lingering(call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED, text("Hi"), done("Hi"), COMPLETED)
        await call.gone()

    upstream.plays = [lingering]
    async with running(tmp_path, logs, upstream) as daemon:
        async with connected(daemon) as client:
            await client.send(post("/v1/responses", {"model": "gpt-5.5", "input": "x", "stream": True}))
            await client.until(b"response.completed")
        line = await daemon.logged("request finished.*path=/v1/responses")
        assert "status=200" in line
        assert "tokens_out=3" in line
