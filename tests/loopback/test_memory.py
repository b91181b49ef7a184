"""The memory budget: what would take more is refused or ended, what is under way goes on, and all of it comes back."""

import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from support.daemon import PATIENCE, Daemon, connected, hello, post, running
from support.upstream import ADDED, COMPLETED, CREATED, Call, Script, Upstream, done, polite, text
from support.zstd import zstd

pytestmark = pytest.mark.loopback

BUDGET = 128
"""MiB, the least that can be configured: 32 of it are for requests."""

PEAK = 256 * 1024
"""KiB that the daemon may ever take here."""

MIB = 1 << 20


def memory(daemon: Daemon, name: str) -> int:
    """A value of the daemon's in KiB: ``VmRSS`` now, ``VmHWM`` at its highest."""
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.fixture
async def daemon(tmp_path: Path, logs: Path, upstream: Upstream) -> AsyncIterator[Daemon]:
    quiet = {"level": "info", "enable_request_logging": False}
    async with running(tmp_path, logs, upstream, logging=quiet, server={"memory_mb": BUDGET}) as daemon:
        yield daemon
        assert memory(daemon, "VmHWM") < PEAK
        assert "internal error" not in daemon.log.read_text()


async def until_taken(daemon: Daemon, size: int) -> None:
    """Waits until requests have taken that many bytes."""
    async with httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http:
        with trio.fail_after(PATIENCE):
            while True:
                found = re.search(
                    r"^codexd_request_memory_bytes (\S+)", (await http.get("/metrics")).text, re.MULTILINE
                )
                if found is not None and float(found[1]) >= size:
                    return


async def test_bodies_under_way_fill_a_budget_and_no_more(daemon: Daemon) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (9 * MIB)
    question = post("/v1/chat/completions", hello(), "connection: close")
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(connected(daemon)) for _ in range(3)]
        for client in held:
            await client.send(head + b" " * (8 * MIB))
        await until_taken(daemon, 24 * MIB)
        async with connected(daemon) as client:
            with contextlib.suppress(trio.BrokenResourceError):
                await client.send(head + b" " * (9 * MIB))
            refused = await client.all()
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"server.memory_mb" in refused
        assert b"retry-after" in refused
        async with connected(daemon) as client:
            await client.send(question)
            assert (await client.all()).startswith(b"HTTP/1.1 200")
    # The others have left, and there is room again.
    answer = b""
    while not answer.startswith(b"HTTP/1.1 400"):
        async with connected(daemon) as client:
            await client.send(head.replace(b"%d" % (9 * MIB), b"%d" % (4 * MIB)) + b" " * (4 * MIB))
            answer = await client.until(b"}")


async def test_a_request_that_can_never_fit_says_so(daemon: Daemon) -> None:
    async with connected(daemon) as client:
        await client.send(post("/v1/responses", {"model": "gpt-5.5", "input": "x" * 20 * MIB}, "connection: close"))
        refused = await client.all()
    assert refused.startswith(b"HTTP/1.1 413")
    assert b"server.memory_mb" in refused


def compressed(coding: str, data: bytes) -> Script:
    async def play(call: Call) -> None:
        await call.start(200, f"content-encoding: {coding}")
        await call.chunk(data)
        await call.end()

    return play


def bomb(size: int) -> bytes:
    """An event of that size, of next to nothing, in zstd."""
    maker = zstd.ZstdCompressor()
    pieces = [maker.compress(b'data: {"type":"response.output_text.delta","delta":"')]
    pieces += [maker.compress(b"x" * MIB) for _ in range(size // MIB)]
    return b"".join([*pieces, maker.compress(b'"}\n\n'), maker.flush()])


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_expands_without_end(daemon: Daemon, upstream: Upstream, stream: bool) -> None:
    upstream.plays = [compressed("zstd", bomb(2048 * MIB))]
    async with httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http:
        answer = await http.post("/v1/chat/completions", json=hello(stream=stream))
        assert answer.json()["error"]["code"] in ("upstream_stream_ended", "server_is_busy")
        upstream.plays = [polite]
        assert (await http.post("/v1/chat/completions", json=hello())).status_code == 200


@pytest.mark.parametrize("status", [200, 500, 429])
async def test_a_document_or_an_error_that_expands(daemon: Daemon, upstream: Upstream, status: int) -> None:
    async def play(call: Call) -> None:
        await call.answer(status, zstd.compress(b'{"detail":"' + bytes(600 * MIB)), "content-encoding: zstd")

    upstream.plays = [play, polite]
    async with httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http:
        answer = await http.post("/v1/chat/completions", json=hello())
        assert answer.status_code in (200, 429, 502, 503)
        assert (await http.post("/v1/chat/completions", json=hello())).status_code == 200


async def test_an_endless_text_for_a_client_that_does_not_stream(daemon: Daemon, upstream: Upstream) -> None:
    async def play(call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED)
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await call.events(text("x" * 30_000))

    upstream.plays = [play]
    async with httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http:
        for path, body in (("/v1/chat/completions", hello()), ("/v1/responses", {"model": "gpt-5.5", "input": "x"})):
            refused = await http.post(path, json=body)
            assert (refused.status_code, "server.memory_mb" in refused.text) == (503, True)


async def test_pages_without_end_leave_what_was_known(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async def endless(call: Call) -> None:
        await call.start()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await call.chunk(b" " * MIB)

    upstream.page_play = endless
    async with running(tmp_path, logs, upstream, server={"memory_mb": BUDGET}) as daemon:
        await daemon.logged("its answer is larger than 16777216 bytes")
        async with httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http:
            assert len((await http.get("/v1/models")).json()["data"]) > 1
            assert (await http.get("/api/codex/usage")).status_code == 502
        assert memory(daemon, "VmHWM") < PEAK


async def test_what_was_taken_comes_back(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    fast = {"codexd.daemon.STATUS_INTERVAL": 0.1}
    quiet = {"level": "info", "enable_request_logging": False}
    many = [{"role": "user", "content": f"{number}"} for number in range(33_000)]
    async with (
        running(tmp_path, logs, upstream, logging=quiet, constants=fast, storage={"response_bytes": 0}) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
    ):
        await http.post("/v1/responses", json={"model": "gpt-5.5", "input": "x"})
        before = memory(daemon, "VmRSS")
        for _ in range(3):
            for path, body in (("/v1/responses", {"input": many}), ("/v1/chat/completions", {"messages": many})):
                assert (await http.post(path, json={"model": "gpt-5.5", **body})).status_code == 200
            await http.post("/v1/responses", json={"model": "gpt-5.5", "input": "x" * 30 * MIB})
        with trio.fail_after(PATIENCE):
            while memory(daemon, "VmRSS") > before + 32 * 1024:
                await http.get("/health")


async def test_stored_responses_take_what_they_have_in_bytes(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    quiet = {"level": "info", "enable_request_logging": False}
    many = [{"role": "user", "content": f"{number}"} for number in range(30_000)]
    async with (
        running(tmp_path, logs, upstream, logging=quiet, storage={"response_bytes": 32 * MIB}) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
    ):
        names = []

        async def play(call: Call) -> None:
            name = f"resp_{len(upstream.calls)}"
            names.append(name)
            ended = COMPLETED | {"response": {**COMPLETED["response"], "id": name}}
            await call.start()
            await call.events(CREATED, ADDED, done("Hello"), ended)
            await call.end()

        upstream.plays = [play]
        for _ in range(30):
            assert (await http.post("/v1/responses", json={"model": "gpt-5.5", "input": many})).status_code == 200
        assert (await http.get(f"/v1/responses/{names[-1]}")).status_code == 200
        assert memory(daemon, "VmRSS") < 200 * 1024


HANDSHAKE = (
    b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def masked(data: bytes, *, last: bool, first: bool = False) -> bytes:
    """A frame of a client, masked with nothing."""
    return bytes([0x80 * last | first, 0xFF]) + len(data).to_bytes(8) + bytes(4) + data


async def taken(http: httpx.AsyncClient) -> float:
    found = re.search(r"^codexd_request_memory_bytes (\S+)", (await http.get("/metrics")).text, re.MULTILINE)
    assert found is not None
    return float(found[1])


async def answer_after(go_on: trio.Event, call: Call) -> None:
    await call.start()
    await go_on.wait()
    await call.events(CREATED, ADDED, done("Hello"), COMPLETED)
    await call.end()


async def test_a_websocket_message_is_counted_and_what_is_too_large_is_not_kept(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    go_on = trio.Event()
    upstream.plays = [partial(answer_after, go_on)]
    server = {"memory_mb": BUDGET, "max_body_bytes": 4 * MIB}
    async with (
        running(tmp_path, logs, upstream, server=server) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
    ):
        async with connected(daemon) as client:
            await client.send(HANDSHAKE)
            await client.until(b"101")
            await client.send(masked(b"x" * (3 * MIB), last=False, first=True))
            await until_taken(daemon, 3 * MIB)
            await client.send(masked(b"x" * (3 * MIB), last=False))
            await client.until((1009).to_bytes(2))
            with trio.fail_after(PATIENCE):
                while await taken(http) > 0:
                    await client.send(masked(b"x" * MIB, last=False))
        async with connected(daemon) as client:
            await client.send(HANDSHAKE)
            await client.until(b"101")
            text = b'{"type":"response.create","model":"gpt-5.5","input":"%b"}' % (b"x" * MIB)
            for _ in range(3):
                await client.send(masked(text, last=True, first=True))
            await until_taken(daemon, 3 * MIB)
            go_on.set()
            with trio.fail_after(PATIENCE):
                while client.data.count(b"response.completed") < 3:
                    client.data += await client.stream.receive_some(65536)
                while await taken(http) > 2 * MIB:  # what the connection remembers
                    pass
        with trio.fail_after(PATIENCE):
            while await taken(http) > 0:
                pass


async def test_conversations_with_code_in_them_take_what_they_are(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    code = '{"rows": [[1, 2, 3], [4, 5, 6]], "more": {"a": 1, "b": [2]}},' * 16_000
    quiet = {"level": "info", "enable_request_logging": False}
    go_on = trio.Event()
    upstream.plays = [partial(answer_after, go_on)]
    async with (
        running(tmp_path, logs, upstream, logging=quiet, server={"memory_mb": 512}) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE, limits=httpx.Limits(max_connections=100)) as http,
        trio.open_nursery() as nursery,
    ):

        async def agent(number: int) -> None:
            body = {"model": "gpt-5.5", "input": f"{number} {code}", "stream": True}
            assert (await http.post("/v1/responses", json=body)).status_code == 200

        for number in range(40):
            nursery.start_soon(agent, number)
        await upstream.until(lambda: len(upstream.calls) == 40)
        go_on.set()
