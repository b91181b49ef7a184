"""The simulated ChatGPT in a test: over a socket for real processes, or without one for the clock to jump."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import trio

from codexd.demo.chatgpt import ChatGPT
from codexd.demo.issuer import SimulatedIssuer
from codexd.server.loopback import Reply, Request


class _Recorder:
    """The reply to one request, kept."""

    def __init__(self) -> None:
        self.status, self.body, self.headers = 0, b"", list[tuple[str, str]]()

    async def send(self, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        self.status, self.body, self.headers = status, body, list(headers)


class Wire:
    """An httpx transport to a simulated issuer. ``faults`` come first, one a request; ``requests`` are all that came.

    ``handler`` answers in the issuer's place.
    """

    def __init__(self, issuer: SimulatedIssuer) -> None:
        self.issuer = issuer
        self.requests: list[httpx.Request] = []
        self.faults: list[httpx.Response | Exception] = []
        self.handler: Callable[[httpx.Request], Awaitable[httpx.Response]] | None = None
        self.seconds = 0.0

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self))

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        await trio.sleep(self.seconds)
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        if self.handler is not None:
            return await self.handler(request)
        reply = _Recorder()
        url = request.url
        asked = Request(
            request.method, url.path, url.query.decode(), dict(request.headers), cast("bytes", request.content)
        )
        assert await self.issuer.handle(asked, cast("Reply", reply)), f"no such endpoint: {url}"
        return httpx.Response(reply.status, headers=reply.headers, content=reply.body)


class Simulated:
    """A simulated ChatGPT that serves; ``url`` is what ``running`` wants of an upstream."""

    def __init__(self, chatgpt: ChatGPT, url: str) -> None:
        self.chatgpt = chatgpt
        self.issuer = chatgpt.issuer
        self.url = url


@asynccontextmanager
async def simulated(**options: Any) -> AsyncIterator[Simulated]:
    import time

    chatgpt = ChatGPT(time.time, SimulatedIssuer(time.time, any_port=True, **options), pace=0)
    async with trio.open_nursery() as nursery:
        yield Simulated(chatgpt, await nursery.start(chatgpt.serve))
        nursery.cancel_scope.cancel()
