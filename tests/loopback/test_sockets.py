"""Websockets of the real daemon: leaving, being told to leave, and being rude."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws

from support.daemon import PATIENCE, Daemon, connected, running
from support.upstream import ADDED, CREATED, Call, Upstream, text

pytestmark = pytest.mark.loopback

CREATE = {"type": "response.create", "model": "gpt-5.5", "input": "x"}


class Peer:
    """A client's end of a websocket, over a bare connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._connection = WSConnection(ConnectionType.CLIENT)
        self._events: list[ws.Event] = []

    async def send(self, event: ws.Event) -> None:
        await self.stream.send_all(self._connection.send(event))

    async def create(self, **fields: Any) -> None:
        await self.send(ws.TextMessage(data=msgspec.json.encode(CREATE | fields).decode()))

    async def next(self) -> ws.Event:
        with trio.fail_after(PATIENCE):
            while not self._events:
                data = await self.stream.receive_some(65536)
                self._connection.receive_data(data or None)
                self._events += self._connection.events()
        return self._events.pop(0)


@asynccontextmanager
async def peer(daemon: Daemon) -> AsyncIterator[Peer]:
    async with connected(daemon) as client:
        it = Peer(client.stream)
        await it.send(ws.Request(host="localhost", target="/v1/responses"))
        assert isinstance(await it.next(), ws.AcceptConnection)
        yield it


async def test_a_client_that_leaves_frees_the_upstream(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    gone = trio.Event()

    async def endless(call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED, text("Hi"))
        await call.gone()
        gone.set()

    upstream.plays = [endless]
    async with running(tmp_path, logs, upstream) as daemon:
        for politely in (True, False):
            gone = trio.Event()
            async with peer(daemon) as client:
                await client.create()
                assert isinstance(await client.next(), ws.TextMessage)
                if politely:
                    await client.send(ws.CloseConnection(code=1000))
            with trio.fail_after(30):
                await gone.wait()
        await daemon.logged("method=WS path=/v1/responses status=499")


async def test_a_stop_does_not_wait_for_idle_websockets(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with running(tmp_path, logs, upstream) as daemon, peer(daemon) as client:
        daemon.signal()
        closed = await client.next()
        assert isinstance(closed, ws.CloseConnection)
        assert closed.code == 1001
        with trio.fail_after(30):
            assert await daemon.process.wait() == 0


async def test_a_message_that_is_too_large_ends_its_own_connection_alone(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async with running(tmp_path, logs, upstream, server={"max_body_bytes": 4096}) as daemon:
        async with peer(daemon) as client:
            await client.create(input="x" * 5000)
            closed = await client.next()
            assert isinstance(closed, ws.CloseConnection)
            assert closed.code == 1009
        async with peer(daemon) as client:
            await client.create(model="nope")
            message = await client.next()
            assert isinstance(message, ws.TextMessage)
            assert "model_not_found" in message.data
        await daemon.logged("method=WS path=/v1/responses status=404 error=model_not_found")
        assert "Traceback" not in daemon.log.read_text()
