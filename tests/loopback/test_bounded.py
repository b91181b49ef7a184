"""The worst bodies that the limits allow, and those that they refuse: who streams beside them notices nothing."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from support.bystander import shortest, standing_by
from support.daemon import Daemon, connected, post, running
from support.upstream import ADDED, COMPLETED, CREATED, Call, Upstream, done, polite
from support.zstd import zstd

pytestmark = pytest.mark.loopback

STALL = 0.25
"""Seconds that a bystander may wait."""

ATTEMPTS = 5

ROOMY = {"memory_mb": 2048}
"""Whatever this machine has: it is time that is looked at here."""

ITEMS = 33_000
"""Messages with three values each: what ``server.max_items`` allows."""

MANY = [{"role": "user", "content": "x"}] * ITEMS
USED = [{"type": "tool_use", "id": f"c{number}", "name": "f", "input": {}} for number in range(8000)]
RESULTS = [{"type": "tool_result", "tool_use_id": f"c{number}", "content": "r"} for number in range(8000)]
LINES = ("\n" + "x" * 11) * 4_500_000
LONG = "x" * 60_000_000
TOOLS = [{"type": "function", "function": {"name": f"f{i}", "parameters": {"title": str(i)}}} for i in range(13_000)]

WORST: dict[str, tuple[str, dict[str, Any]]] = {
    "chat, messages": ("/v1/chat/completions", {"messages": MANY}),
    "chat, tools": ("/v1/chat/completions", {"messages": MANY[:1], "tools": TOOLS}),
    "chat, one text": ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    "chat, one text of lines": ("/v1/chat/completions", {"messages": [{"role": "user", "content": LINES}]}),
    "chat, eight choices": ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG[:8_000_000]}], "n": 8}),
    "responses, messages": ("/v1/responses", {"input": MANY}),
    "responses, one text": ("/v1/responses", {"input": LONG}),
    "responses, tokens": ("/v1/responses/input_tokens", {"input": LONG}),
    "messages, messages": ("/v1/messages", {"messages": MANY, "max_tokens": 9}),
    "messages, tool use": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": USED}, {"role": "user", "content": RESULTS}], "max_tokens": 9},
    ),
    "messages, tokens": ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": LONG}]}),
    "ollama, messages": ("/api/chat", {"messages": MANY}),
    "completions, a prompt": ("/v1/completions", {"prompt": LINES}),
}  # fmt: skip


@pytest.fixture
async def daemon(tmp_path: Path, logs: Path, upstream: Upstream) -> AsyncIterator[Daemon]:
    quiet = {"level": "info", "enable_request_logging": False}
    async with running(tmp_path, logs, upstream, logging=quiet, server=ROOMY) as daemon:
        yield daemon


async def asked(daemon: Daemon, request: bytes, status: int = 200) -> bytes:
    """Sends a request; returns what came until the connection closed."""
    async with connected(daemon) as client:
        await client.send(request)
        answer = await client.all()
    assert answer.startswith(b"HTTP/1.1 %d" % status), answer[:500]
    return answer


@pytest.mark.parametrize("name", WORST)
async def test_the_worst_body_delays_nobody(daemon: Daemon, upstream: Upstream, name: str) -> None:
    path, fields = WORST[name]
    request = post(path, {"model": "gpt-5.5", **fields}, "connection: close")
    async with standing_by(daemon, upstream) as bystander:

        async def attempt() -> float:
            async def work() -> None:
                await asked(daemon, request)

            return await bystander.during(work)

        assert await shortest(ATTEMPTS, STALL, attempt) < STALL


BOMBS = {
    "small messages": b'{"model":"gpt-5.5","messages":[' + b'{"role":"user","content":"x"},' * 2_000_000 + b"]}",
    "parameters": b'{"model":"gpt-5.5"' + b"".join(b',"x%d":1' % number for number in range(90_000)) + b"}",
    "lines": b'{"model":"gpt-5.5","messages":[{"role":"user","content":"' + rb"\n" * 30_000_000 + b'"}]}',
    "nothing": b"[" + b"[]," * 20_000_000 + b"]",
}


@pytest.mark.parametrize("coding", ["identity", "zstd"])
@pytest.mark.parametrize("name", BOMBS)
async def test_what_expands_is_refused_before_it_is_built(
    daemon: Daemon, upstream: Upstream, name: str, coding: str
) -> None:
    body = zstd.compress(BOMBS[name]) if coding == "zstd" else BOMBS[name]
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: localhost", f"content-encoding: {coding}"]
    request = "\r\n".join([*lines, "connection: close", f"content-length: {len(body)}", "", ""]).encode() + body
    async with standing_by(daemon, upstream) as bystander:

        async def attempt() -> float:
            async def work() -> None:
                answer = await asked(daemon, request, 400 if name == "parameters" else 413)
                assert any(why in answer for why in (b"server.max_items", b"the maximum is 1000", b"times its size"))

            return await bystander.during(work)

        assert await shortest(ATTEMPTS, STALL, attempt) < STALL
    assert len(upstream.calls) == 1


async def test_a_large_event_delays_nobody(daemon: Daemon, upstream: Upstream) -> None:
    items = [{"type": "message", "content": []}] * 20_000
    big = {"type": "response.completed", "response": {**COMPLETED["response"], "output": items}}

    async def play(call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED, done("x" * 20_000_000), big)
        await call.end()

    for path, fields in (("/v1/responses", {"input": "x"}), ("/v1/chat/completions", {"messages": MANY[:1]})):
        for stream in (True, False):
            request = post(path, {"model": "gpt-5.5", "stream": stream, **fields}, "connection: close")
            async with standing_by(daemon, upstream, play) as bystander:

                async def attempt() -> float:
                    async def work() -> None:
                        await asked(daemon, request)  # noqa: B023 - of this round

                    return await bystander.during(work)

                assert await shortest(ATTEMPTS, STALL, attempt) < STALL


async def test_a_long_conversation_that_is_continued_delays_nobody(daemon: Daemon, upstream: Upstream) -> None:
    first = post("/v1/responses", {"model": "gpt-5.5", "input": MANY}, "connection: close")
    async with standing_by(daemon, upstream, polite) as bystander:

        async def attempt() -> float:
            async def work() -> None:
                found = (await asked(daemon, first)).partition(b"\r\n\r\n")[2]
                name = msgspec.json.decode(found)["id"]
                again = {"model": "gpt-5.5", "input": "more", "previous_response_id": name}
                await asked(daemon, post("/v1/responses", again, "connection: close"))
                await asked(
                    daemon,
                    f"GET /v1/responses/{name}/input_items HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode(),
                )

            return await bystander.during(work)

        assert await shortest(ATTEMPTS, STALL, attempt) < STALL
    assert len(upstream.calls[-1].json["input"]) == ITEMS + 2


COMMENTS = zstd.compress(b":\n\n" * 40_000_000)
"""120 MB of nothing, in some kB."""


async def test_an_answer_of_comments_delays_nobody(daemon: Daemon, upstream: Upstream) -> None:
    async def play(call: Call) -> None:
        await call.start(200, "content-encoding: zstd")
        await call.chunk(COMMENTS)
        await call.end()

    request = post("/v1/chat/completions", {"model": "gpt-5.5", "messages": MANY[:1]}, "connection: close")
    async with standing_by(daemon, upstream, play) as bystander:

        async def attempt() -> float:
            async def work() -> None:
                await asked(daemon, request, 502)

            return await bystander.during(work)

        assert await shortest(ATTEMPTS, STALL, attempt) < STALL


async def test_over_websockets_to_the_backend_nobody_is_delayed_either(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    """Those who ask for little meanwhile are not, too: nothing that the worker holds is waited for."""
    quiet = {"level": "info", "enable_request_logging": False}
    small = post("/v1/responses", {"model": "gpt-5.5", "input": "x"}, "connection: close")
    large = post("/v1/responses", {"model": "gpt-5.5", "input": MANY}, "connection: close")
    async with (
        running(tmp_path, logs, upstream, logging=quiet, server=ROOMY, backend={"transport": "auto"}) as daemon,
        standing_by(daemon, upstream) as bystander,
    ):

        async def attempt() -> float:
            async def work() -> None:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(asked, daemon, large)
                    for _ in range(5):
                        await asked(daemon, small)

            return await bystander.during(work)

        assert await shortest(ATTEMPTS, STALL, attempt) < STALL
