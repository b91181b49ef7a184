"""Somebody else's stream and health check while the daemon works for another client: how long they wait."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from support.daemon import Daemon, Raw, connected, hello, post
from support.upstream import ADDED, COMPLETED, CREATED, Call, Script, Upstream, done, polite, text

MARK = "the bystander's own words"
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Bystander:
    """An open stream and a connection for health checks. ``longest`` is the longest wait so far, in seconds."""

    def __init__(self, call: Call, stream: Raw, health: Raw) -> None:
        self._call = call
        self._stream = stream
        self._health = health
        self._number = 0
        self.longest = 0.0
        self.waits = 0

    async def look(self) -> None:
        """An event from the backend to the client, and a health check, at once."""
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._event)
            nursery.start_soon(self._check)
        self.longest = max(self.longest, trio.current_time() - began)
        self.waits += 1

    async def _event(self) -> None:
        self._number += 1
        word = f"word{self._number}."
        await self._call.events(text(word))
        await self._stream.until(word.encode())
        self._stream.data = b""

    async def _check(self) -> None:
        await self._health.send(HEALTH)
        await self._health.until(b"uptime_seconds")
        self._health.data = b""

    async def during(self, work: Callable[[], Awaitable[None]]) -> float:
        """Looks as long as the work lasts, and once after it; returns the longest wait."""
        self.longest, over = 0.0, False

        async def run() -> None:
            nonlocal over
            await work()
            over = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            while not over:
                await self.look()
        await self.look()
        return self.longest


@asynccontextmanager
async def standing_by(daemon: Daemon, upstream: Upstream, others: Script = polite) -> AsyncIterator[Bystander]:
    """A bystander; the upstream answers everybody else with ``others``."""
    calls, receive = trio.open_memory_channel[Call](1)
    over = trio.Event()

    async def play(call: Call) -> None:
        if MARK.encode() not in call.body[-4000:]:
            await others(call)
            return
        await call.start()
        await call.events(CREATED, ADDED)
        await calls.send(call)
        await over.wait()
        await call.events(done("x"), COMPLETED)
        await call.end()

    upstream.plays = [play]
    question = hello(stream=True, messages=[{"role": "user", "content": MARK}])
    async with connected(daemon) as stream, connected(daemon) as health:
        await stream.send(post("/v1/chat/completions", question))
        yield Bystander(await receive.receive(), stream, health)
        over.set()
        await stream.until(b"[DONE]")


async def shortest(attempts: int, limit: float, attempt: Callable[[], Awaitable[float]]) -> float:
    """The best of some attempts: a machine with other work delays one, and only what is at fault delays all."""
    best = math.inf
    for _ in range(attempts):
        best = min(best, await attempt())
        if best < limit:
            break
    return best
