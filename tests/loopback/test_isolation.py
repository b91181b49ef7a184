"""Five hundred streams at once, of which half are left at any moment: the others get their own text, all of it."""

import random
import re
from pathlib import Path

import pytest
import trio

from support.daemon import PATIENCE, connected, hello, post, running
from support.upstream import ADDED, COMPLETED, CREATED, Call, Upstream, done, text

pytestmark = pytest.mark.loopback

STREAMS, WORDS = 500, 20
NAME = re.compile(rb"stream-(\d+)!")
CONTENT = re.compile(rb'"content":"([^"]*)"')


@pytest.mark.parametrize("lane", ["http", "websocket"])
async def test_who_leaves_takes_nothing_from_others(tmp_path: Path, logs: Path, upstream: Upstream, lane: str) -> None:
    leaving = {number: random.randrange(WORDS) for number in range(0, STREAMS, 2)}  # noqa: S311 - no secret
    playing, complete = set[int](), set[int]()
    all_open, over = trio.Event(), trio.Event()

    async def play(call: Call) -> None:
        found = NAME.search(call.body)
        assert found is not None
        number = int(found[1])
        playing.add(number)
        if len(playing) == STREAMS:
            all_open.set()
        try:
            await call.start()
            await call.events(CREATED, ADDED)
            await call.events(text(word(number, 0)))
            await all_open.wait()
            for place in range(1, WORDS):
                await call.events(text(word(number, place)))
            await call.events(done(whole(number)), COMPLETED)
            await call.end()
        except trio.BrokenResourceError:
            pass
        finally:
            playing.discard(number)
            if not playing:
                over.set()

    async def ask(number: int) -> None:
        async with connected(daemon) as client:
            asked = hello(stream=True, messages=[{"role": "user", "content": f"stream-{number}!"}])
            await client.send(post("/v1/chat/completions", asked))
            if number in leaving:
                await client.until(word(number, leaving[number]).encode())
            else:
                await client.until(b"[DONE]")
                complete.add(number)
            said = b"".join(CONTENT.findall(client.data)).decode()
            assert whole(number).startswith(said) if number in leaving else said == whole(number)

    upstream.plays = [play]
    quiet = {"level": "info", "enable_request_logging": False}
    async with running(
        tmp_path, logs, upstream, logging=quiet, backend={"transport": lane, "max_connections": 2 * STREAMS}
    ) as daemon:
        with trio.fail_after(2 * PATIENCE):
            async with trio.open_nursery() as nursery:
                for number in range(STREAMS):
                    nursery.start_soon(ask, number)
            await over.wait()
        assert complete == set(range(1, STREAMS, 2))
        async with connected(daemon) as client:
            await client.send(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert b"streams_open 0.0" in await client.all()


def word(number: int, place: int) -> str:
    return f"[{number}:{place}]"


def whole(number: int) -> str:
    return "".join(word(number, place) for place in range(WORDS))
