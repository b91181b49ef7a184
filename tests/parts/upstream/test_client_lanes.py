"""The client of the backend on its two lanes, over real sockets: leaving at every wait."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio.testing

from codexd.auth import store
from codexd.auth.issuer import Issuer
from codexd.auth.session import Session
from codexd.auth.store import Credentials
from codexd.config.model import Backend, OAuth
from codexd.protocol.codex.request import InputText, Message, Reasoning, Text, UpstreamRequest
from codexd.telemetry.trace import Timings
from codexd.upstream.call import Call
from codexd.upstream.client import Upstream
from codexd.upstream.transport import Transport
from support import upstream as fake
from support.cancelling import CancelAfter
from support.secrets import access_token
from support.upstream import ADDED, COMPLETED, CREATED, WebsocketCall, done, text, welcome

NOW = 1_795_000_000.0


def call(number: int) -> Call:
    request = UpstreamRequest(
        model="m",
        input=[Message(role="user", content=[InputText(text=f"{number}")])],
        reasoning=Reasoning(),
        prompt_cache_key="k",
        text=Text(verbosity="low"),
    )
    return Call(request, "k", lite=False, caller="", lossless=True, timings=Timings())


async def repeats(asked: fake.Call) -> None:
    """Answers with what was asked, one event after another."""
    number = asked.json["input"][-1]["content"][0]["text"]
    whole = msgspec.json.decode(
        msgspec.json.encode([CREATED, ADDED, text(number), done(number), COMPLETED]).replace(
            b'"resp_1"', b'"resp_%b"' % number.encode()
        )
    )
    await asked.start()
    for event in whole:
        await asked.events(event)
        await trio.testing.wait_all_tasks_blocked()
    await asked.end()


@asynccontextmanager
async def client(folder: Path, server: fake.Upstream) -> AsyncIterator[tuple[Upstream, Transport]]:
    store.save(folder / "tokens.json", Credentials(access_token=access_token(9e9)))
    transport = Transport()
    async with httpx.AsyncClient(transport=transport) as http, trio.open_nursery() as nursery:
        session = Session(folder / "tokens.json", issuer=Issuer(http, OAuth(), {}), clock=lambda: NOW)
        config = Backend(url=f"{server.url}/backend-api", transport="websocket")
        made = Upstream(http, session, config, clock=lambda: NOW, transport=transport)
        nursery.start_soon(made._conversations.run)
        yield made, transport
        nursery.cancel_scope.cancel()


async def ask(made: Upstream, number: int, seen: Callable[[], None] = lambda: None) -> str:
    """The text of the answer. ``seen`` is called for each event."""
    said: list[Any] = []

    def step(messages: Sequence[bytes]) -> bool:
        for message in messages:
            said.append(msgspec.json.decode(message))
            seen()
        return True

    async with made.open(call(number)) as source:
        while not await source.push(step):
            pass
    return "".join(event["delta"] for event in said if event["type"] == "response.output_text.delta")


@pytest.mark.parametrize("kept", [False, True])
async def test_leaving_a_websocket_at_every_wait(kept: bool, tmp_path: Path, upstream: fake.Upstream) -> None:
    """Nothing stays open, and what is said afterwards is what was asked."""

    async def slow(asked: fake.Call) -> None:
        await trio.testing.wait_all_tasks_blocked()
        await welcome(asked)

    upstream.plays, upstream.handshakes = [repeats], [slow]
    async with client(tmp_path, upstream) as (made, transport):
        for step in range(1, 300):
            if kept:
                assert await ask(made, 2000 + step) == f"{2000 + step}"
            else:
                made._conversations.sweep("")
                await upstream.until(lambda: upstream.websockets == 0)
                await transport.aclose()
            cancel = CancelAfter(step)
            trio.lowlevel.add_instrument(cancel)
            with cancel.scope:
                assert await ask(made, step) == f"{step}"
            trio.lowlevel.remove_instrument(cancel)
            opened, idle = made.websockets
            assert opened == idle, step
            await upstream.until(lambda: upstream.websockets == made.websockets[0])
            await upstream.until(lambda: upstream.open == made.websockets[0])
            assert made._lane.open
            assert await ask(made, 1000 + step) == f"{1000 + step}"
            if not cancel.scope.cancelled_caught:
                break
        assert 2 < step < 299
    assert all(isinstance(each, WebsocketCall) for each in upstream.calls)


async def test_leaving_a_websocket_after_each_event(tmp_path: Path, upstream: fake.Upstream) -> None:
    """Only an answer that was read to its end leaves a websocket to use again."""
    upstream.plays = [repeats]
    async with client(tmp_path, upstream) as (made, _):
        for count in range(1, 6):
            scope, events = trio.CancelScope(), 0

            def seen(count: int = count, scope: trio.CancelScope = scope) -> None:
                nonlocal events
                events += 1
                if events == count:
                    scope.cancel()

            with scope:
                await ask(made, count, seen)
            assert scope.cancelled_caught
            await upstream.until(lambda: upstream.websockets == 0)
            assert made.websockets == (0, 0)
            assert await ask(made, 10 + count) == f"{10 + count}"
