"""A websocket to the backend: who has its descriptor, and when it is closed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
import trio
import trio.testing

from codexd.upstream.frames import Closed
from codexd.upstream.transport import Transport, target_of
from codexd.upstream.websocket import WebSocket, handshake
from support.upstream import Call, Upstream, WebsocketCall, framed


@asynccontextmanager
async def opened(upstream: Upstream) -> AsyncIterator[WebSocket]:
    with trio.fail_after(20):
        target = target_of(httpx.URL(f"{upstream.url}/backend-api/codex/responses"))
        found = await handshake(Transport(), target, [])
        assert isinstance(found, tuple)
        websocket = found[0]
        try:
            yield websocket
        finally:
            websocket.close()
        await upstream.until(lambda: upstream.open == 0)


async def echo(call: Call) -> None:
    await call.events(call.json)


async def answer(websocket: WebSocket) -> bytes:
    """The next message."""
    found = list[bytes]()

    def step(messages: object) -> bool:
        found.extend(messages)  # type: ignore[arg-type]
        return False

    await websocket.push(step)
    return found[0]


async def test_it_can_be_claimed_before_its_watch_has_started(upstream: Upstream) -> None:
    upstream.plays = [echo]
    async with opened(upstream) as websocket, trio.open_nursery() as nursery:
        for number in range(3):
            message = msgspec.json.encode({"type": "x", "number": number})
            await websocket.send(message)
            assert await answer(websocket) == message
            websocket.rest()
            nursery.start_soon(websocket.watch)
            assert await websocket.claim()


async def test_closing_an_idle_one_ends_its_watch(upstream: Upstream) -> None:
    async with opened(upstream) as websocket, trio.open_nursery() as nursery:
        websocket.rest()
        nursery.start_soon(websocket.watch)
        await trio.testing.wait_all_tasks_blocked()
        websocket.close()
        assert websocket.closed
        assert not await websocket.claim()


async def test_a_cancelled_watch_closes_nothing_that_was_claimed(upstream: Upstream) -> None:
    upstream.plays = [echo]
    async with opened(upstream) as websocket:
        async with trio.open_nursery() as nursery:
            websocket.rest()
            nursery.start_soon(websocket.watch)
            await trio.testing.wait_all_tasks_blocked()
            assert await websocket.claim()
            nursery.cancel_scope.cancel()
        await websocket.send(b'{"type":"x"}')
        assert await answer(websocket) == b'{"type":"x"}'


async def test_an_end_behind_an_answer_is_told_after_it(upstream: Upstream) -> None:
    async def closes(call: Call) -> None:
        assert isinstance(call, WebsocketCall)
        await call.raw(framed(b"{}") + b"\x88\x02\x03\xe8")
        await call.gone()

    upstream.plays = [closes]
    async with opened(upstream) as websocket, trio.open_nursery() as nursery:
        await websocket.send(b'{"type":"x"}')
        assert await answer(websocket) == b"{}"
        with pytest.raises(Closed):
            await answer(websocket)
        websocket.rest()
        nursery.start_soon(websocket.watch)
        assert not await websocket.claim()
