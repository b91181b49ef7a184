"""A websocket over real sockets, plain and with TLS, against wsproto's server: handshake, sending, reading, idling."""

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
import trio.testing
import trustme
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from codexd.lowlevel import reactor
from codexd.upstream import connection, frames
from codexd.upstream.frames import Closed
from codexd.upstream.transport import RawResponse, Transport, Unanswered
from codexd.upstream.websocket import WebSocket, handshake
from support.peer import Peer, peers
from support.serving import ANSWER, Server, contexts, here, post, serving

Talk = Callable[[Peer], Awaitable[None]]

FIELDS = [(b"authorization", b"Bearer t"), (b"openai-beta", b"x")]


class Meeting:
    """A server, and the transport towards it."""

    def __init__(self, made: Transport, server: Server, port: int, scheme: str) -> None:
        self.made, self.server, self.target = made, server, here(port, scheme)

    async def ask(self) -> "WebSocket | RawResponse":
        with trio.fail_after(20):
            found = await handshake(self.made, self.target, FIELDS)
        return found if isinstance(found, RawResponse) else found[0]

    async def opened(self) -> WebSocket:
        found = await self.ask()
        assert isinstance(found, WebSocket)
        return found


@pytest.fixture(params=["http", "https"])
def meeting(request: pytest.FixtureRequest, authority: trustme.CA) -> Any:
    """Serves a talk, plain or with TLS. Every socket of ours must be closed at its end."""

    @asynccontextmanager
    async def meet(talk: Talk | Server) -> AsyncIterator[Meeting]:
        tls, trusting = contexts(authority, "localhost")
        server = talk if isinstance(talk, Server) else peers(talk)
        made = Transport(trusting)
        with trio.fail_after(20):
            async with serving(server, tls if request.param == "https" else None) as port:
                yield Meeting(made, server, port, request.param)
                await made.aclose()

    return meet


Meet = Callable[[Talk | Server], contextlib.AbstractAsyncContextManager[Meeting]]


async def messages(socket: WebSocket, count: int) -> list[bytes]:
    """Reads until so many messages have come."""
    found = list[bytes]()

    def step(data: Sequence[bytes]) -> bool:
        found.extend(data)
        return len(found) < count

    with trio.fail_after(20):
        await socket.push(step)
    return found


async def read(socket: WebSocket) -> None:
    await messages(socket, 1_000_000)


# --- handshake


async def test_a_handshake_and_a_message_each_way(meeting: Meet) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept()
        await peer.say(TextMessage("hello " + await peer.hear_message()))
        assert await peer.hear() is None, "it ends without a close frame"

    async with meeting(talk) as met:
        opened = await met.opened()
        assert not opened.closed
        await opened.send("wörld".encode())
        assert await messages(opened, 1) == ["hello wörld".encode()]
        opened.close()
        assert opened.closed
        await met.server.closed.wait()
    (head,) = met.server.requests
    names = [line.partition(b":")[0] for line in head.split(b"\r\n")[1:-2]]
    assert head.startswith(b"GET /path HTTP/1.1\r\nhost: localhost")
    assert names == [
        b"host", b"connection", b"upgrade", b"sec-websocket-version", b"sec-websocket-key", b"authorization",
        b"openai-beta",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "but",
    [
        {"sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="},
        {"sec-websocket-accept": None},
        {"upgrade": None},
        {"upgrade": "h2c"},
        {"connection": None},
        {"connection": "keep-alive"},
        {"sec-websocket-extensions": "permessage-deflate"},
        {"sec-websocket-protocol": "chat"},
    ],
    ids=str,
)
async def test_a_handshake_that_is_none(meeting: Meet, but: dict[str, str | None]) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept(but=but)
        assert await peer.hear() is None

    async with meeting(talk) as met:
        with pytest.raises(httpx.RemoteProtocolError, match="handshake is invalid"):
            await met.ask()
        await met.server.closed.wait()


async def test_a_handshake_may_be_written_in_another_way(meeting: Meet) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept(but={"upgrade": "WebSocket", "connection": "keep-alive, Upgrade"})
        await peer.hear()

    async with meeting(talk) as met:
        (await met.opened()).close()


@pytest.mark.parametrize(
    ("status", "body"), [(401, b'{"detail":"no"}'), (403, b""), (426, b"no websockets"), (200, b"a page")]
)
async def test_a_refusal_is_a_response_and_its_connection_is_not_used_again(
    meeting: Meet, status: int, body: bytes
) -> None:
    refusal = b"HTTP/1.1 %d No\r\ncontent-length: %d\r\nx-reason: y\r\n\r\n%b" % (status, len(body), body)
    async with meeting(Server(refusal, ANSWER)) as met:
        found = await met.ask()
        assert isinstance(found, RawResponse)
        assert (found.status, dict(found.fields)[b"x-reason"]) == (status, b"y")
        assert b"".join([piece async for piece in found.body]) == body
        await found.body.aclose()
        assert await post(met.made, met.target) == (200, b"ok")
        assert met.server.connections == 2


async def test_an_idle_connection_that_ends_under_the_handshake_is_no_fault(meeting: Meet) -> None:
    async def talk(peer: Peer) -> None:
        if met.server.connections == 1:
            return
        await peer.accept()
        await peer.hear()

    async with meeting(talk) as met:
        await met.made.warm(met.target.origin)
        opened = await met.opened()
        assert (met.server.connections, len(met.server.requests)) == (2, 2)
        opened.close()


async def test_a_new_connection_that_ends_under_the_handshake_is_one(meeting: Meet) -> None:
    async def talk(_: Peer) -> None:
        pass

    async with meeting(talk) as met:
        with pytest.raises(Unanswered):
            await met.ask()
        assert met.server.connections == 1


# --- reading


async def test_what_comes_with_the_101_is_read(meeting: Meet) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept(TextMessage("one"), Ping(b"p"), TextMessage("tw", message_finished=False))
        assert await peer.hear() == Pong(b"p")
        await peer.say(TextMessage("o"), TextMessage("three"))
        await peer.hear()

    async with meeting(talk) as met:
        opened = await met.opened()
        found = list[bytes]()
        await opened.push(lambda data: bool(found.extend(data)))
        assert found == [b"one"], "push stops where it is told to"
        assert await messages(opened, 2) == [b"two", b"three"]
        opened.close()


@pytest.mark.parametrize("behind", [CloseConnection(code=1013, reason="later"), BytesMessage(b"\0")])
async def test_an_end_that_comes_with_the_101_is_a_failed_handshake(meeting: Meet, behind: Event) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept(behind)
        assert await peer.hear() is None

    async with meeting(talk) as met:
        with pytest.raises(httpx.RemoteProtocolError):
            await met.ask()
        await met.server.closed.wait()


async def test_fragments_and_many_messages_of_one_read(meeting: Meet) -> None:
    large = "é" * 200_000

    async def talk(peer: Peer) -> None:
        await peer.accept()
        pieces = [TextMessage(large[at : at + 1000], message_finished=at == 199_000) for at in range(0, 200_000, 1000)]
        await peer.say(TextMessage("a"), *pieces, TextMessage("b"))
        await peer.hear()

    async with meeting(talk) as met:
        opened = await met.opened()
        assert await messages(opened, 3) == [b"a", large.encode(), b"b"]
        opened.close()


async def test_pings_are_answered_while_an_answer_streams(meeting: Meet) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept()
        for number in range(3):
            payload = b"%d" % number
            await peer.say(TextMessage("x", message_finished=False))
            assert await peer.pinged(payload) == payload
            await peer.say(TextMessage("y"))

    async with meeting(talk) as met:
        opened = await met.opened()
        assert await messages(opened, 3) == [b"xy"] * 3
        opened.close()


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (CloseConnection(code=1011, reason="keepalive ping timeout"), Closed),
        (BytesMessage(b"\0"), Closed),
        (None, httpx.RemoteProtocolError),
    ],
)
@pytest.mark.parametrize("together", [True, False])
async def test_an_end_is_told_after_what_came_before_it(
    meeting: Meet, last: Event | None, error: type[Exception], together: bool
) -> None:
    began, said, heard = trio.Event(), trio.Event(), trio.Event()

    async def talk(peer: Peer) -> None:
        await peer.accept()
        await began.wait()
        await peer.say(TextMessage("before"))
        if not together:
            await heard.wait()
        if last is not None:
            await peer.say(last)
        if isinstance(peer.stream, trio.SSLStream):
            await peer.stream.aclose()
        said.set()

    async with meeting(talk) as met:
        opened = await met.opened()
        began.set()
        if together:
            await said.wait()
        found = list[bytes]()

        def step(data: Sequence[bytes]) -> bool:
            found.extend(data)
            heard.set()
            return True

        with pytest.raises(error):
            await opened.push(step)
        # What shares a read with a close frame is lost with it: the answer failed.
        assert found in ([b"before"], []) if together else found == [b"before"]
        opened.close()


async def test_a_cut_connection_is_an_error(meeting: Meet) -> None:
    began = trio.Event()

    async def talk(peer: Peer) -> None:
        await peer.accept()
        await began.wait()
        stream = peer.stream
        raw = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await trio.aclose_forcefully(raw)

    async with meeting(talk) as met:
        opened = await met.opened()
        began.set()
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await read(opened)
        opened.close()


# --- sending


async def test_fragments_are_sent_with_pongs_between_them(meeting: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long message does not delay the pongs, and what comes meanwhile is not lost."""
    monkeypatch.setattr(frames, "FRAGMENT", 4)
    said = trio.Event()

    async def talk(peer: Peer) -> None:
        await peer.accept()
        first = await peer.hear()
        assert isinstance(first, TextMessage)
        assert (first.data, first.message_finished) == ("abcd", False)
        await peer.say(TextMessage("early"), Ping(b"p"))
        said.set()
        heard = [await peer.hear() for _ in range(3)]
        assert [type(event) for event in heard] == [Pong, TextMessage, TextMessage]
        assert "".join(event.data for event in heard if isinstance(event, TextMessage)) == "efghij"
        await peer.say(TextMessage("late"))
        await peer.hear()

    async with meeting(talk) as met:
        opened = await met.opened()
        kind, sends = type(opened._connection), list[bytes]()
        send = kind.send

        async def slow(self: connection.Connection, data: bytes) -> None:
            await send(self, data)
            sends.append(data)
            if len(sends) == 1:
                await said.wait()
                await trio.lowlevel.wait_readable(self.fd)

        monkeypatch.setattr(kind, "send", slow)
        await opened.send(b"abcdefghij")
        assert len(sends) == 3
        assert await messages(opened, 2) == [b"early", b"late"]
        opened.close()


async def test_an_end_is_noticed_between_two_fragments(meeting: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAGMENT", 1000)

    async def talk(peer: Peer) -> None:
        await peer.accept()
        await peer.hear()
        await peer.say(CloseConnection(code=1009, reason="message too big"))
        while await peer.hear():
            pass

    async with meeting(talk) as met:
        opened = await met.opened()
        with pytest.raises(Closed, match="message too big"):
            await opened.send(b"x" * 100_000_000)
        opened.close()


async def test_a_peer_that_pings_and_does_not_read_is_given_up(meeting: Meet) -> None:
    """Pongs are not kept: a peer that takes none would fill the memory."""
    began, over = trio.Event(), trio.Event()

    async def talk(peer: Peer) -> None:
        await peer.accept()
        await began.wait()
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await peer.say(*[Ping(b"x" * 125)] * 1000)
        over.set()

    async with meeting(talk) as met:
        opened = await met.opened()
        with socket.socket(fileno=opened._connection.fd) as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            ours.detach()
        began.set()
        with pytest.raises(httpx.WriteError):
            await read(opened)
        opened.close()
        await over.wait()


# --- idle


@asynccontextmanager
async def idling(socket: WebSocket) -> AsyncIterator[trio.Event]:
    """The websocket is watched; the event tells that this ended."""
    ended = trio.Event()

    async def watch() -> None:
        await socket.watch()
        ended.set()

    async with trio.open_nursery() as nursery:
        socket.rest()
        nursery.start_soon(watch)
        yield ended
        nursery.cancel_scope.cancel()


async def test_pings_are_answered_while_idle_and_it_can_be_claimed(meeting: Meet) -> None:
    pinged = trio.Event()

    async def talk(peer: Peer) -> None:
        await peer.accept()
        assert await peer.pinged(b"1") == b"1"
        assert await peer.pinged(b"2") == b"2"
        pinged.set()
        assert await peer.hear_message() == "again"
        await peer.say(TextMessage("answer"))
        await peer.hear()

    async with meeting(talk) as met:
        opened = await met.opened()
        assert await opened.claim(), "it is not idle yet"
        async with idling(opened) as ended:
            await pinged.wait()
            assert _ready_of(opened)(), "to be woken without data is nothing"
            assert not ended.is_set()
            assert await opened.claim()
            await ended.wait()
            await opened.send(b"again")
            assert await messages(opened, 1) == [b"answer"]
        opened.close()


@pytest.mark.parametrize("last", [TextMessage("late"), CloseConnection(code=1001), BytesMessage(b""), None])
async def test_what_comes_unasked_ends_an_idle_one(meeting: Meet, last: Event | None) -> None:
    began = trio.Event()

    async def talk(peer: Peer) -> None:
        await peer.accept()
        await began.wait()
        if last is not None:
            await peer.say(last)
            assert await peer.hear() is None

    async with meeting(talk) as met:
        opened = await met.opened()
        async with idling(opened) as ended:
            await trio.testing.wait_all_tasks_blocked()
            assert not opened.closed
            began.set()
            await ended.wait()
            assert opened.closed
            assert not await opened.claim()


async def test_what_was_read_before_it_became_idle_ends_it_too(meeting: Meet) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept(TextMessage("early"))
        assert await peer.hear() is None

    async with meeting(talk) as met:
        opened = await met.opened()
        async with idling(opened) as ended:
            await ended.wait()
            assert opened.closed


async def test_a_claim_may_come_before_the_watch_has_begun(meeting: Meet) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept()
        await peer.hear_message()
        await peer.say(TextMessage("answer"))
        await peer.hear()

    async with meeting(talk) as met:
        opened = await met.opened()
        async with idling(opened) as ended:
            assert await opened.claim()
            assert ended.is_set()
            await opened.send(b"x")
            assert await messages(opened, 1) == [b"answer"]
        opened.close()


async def test_who_closes_an_idle_one_ends_its_watch(meeting: Meet) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept()
        assert await peer.hear() is None

    async with meeting(talk) as met:
        opened = await met.opened()
        async with idling(opened) as ended:
            await trio.testing.wait_all_tasks_blocked()
            opened.close()
            assert opened.closed
            await ended.wait()
        await met.server.closed.wait()
        assert not await opened.claim()


async def test_a_watch_that_is_cancelled_frees_who_claims(meeting: Meet) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept()
        await peer.hear()

    async with meeting(talk) as met:
        opened = await met.opened()
        found = list[bool]()

        async def claim() -> None:
            found.append(await opened.claim())

        async with trio.open_nursery() as claiming, idling(opened):
            await trio.testing.wait_all_tasks_blocked()
            claiming.start_soon(claim)
        assert len(found) == 1
        opened.close()


@pytest.mark.parametrize("last", [TextMessage("late"), CloseConnection(code=1001)])
async def test_what_comes_as_it_is_claimed_is_no_answer(meeting: Meet, last: Event) -> None:
    """The reactor may still read for the watch, after the claim and before the watch has ended."""

    async def talk(peer: Peer) -> None:
        await peer.accept()
        await peer.hear()

    async with meeting(talk) as met:
        opened = await met.opened()
        async with idling(opened) as ended:
            await trio.testing.wait_all_tasks_blocked()
            server = Peer(None, b"")

            def late(_: Any) -> bytes:
                return server.encoded(last)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(opened._connection), "read_now", late)
                ready = _ready_of(opened)
                assert opened._watching is not None
                opened._watching.cancel()
                assert not ready()
            assert not await opened.claim()
            assert ended.is_set()
        opened.close()


def _ready_of(opened: WebSocket) -> Callable[[], bool]:
    """What the reactor does for a websocket."""
    stream = reactor.running()._streams[opened._connection.fd]

    def ready() -> bool:
        with contextlib.suppress(httpx.HTTPError, Closed):
            return stream.step()
        return False

    return ready


# --- leaving


class CancelAfter(trio.abc.Instrument):
    """Cancels ``scope`` when the task that it was made in has run for so many steps."""

    def __init__(self, steps: int) -> None:
        self.scope = trio.CancelScope()
        self._task, self._left = trio.lowlevel.current_task(), steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self.scope.cancel()


async def test_leaving_at_every_wait(meeting: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays open, and nothing stays with the reactor."""
    monkeypatch.setattr(frames, "FRAGMENT", 5)
    live = set[Any]()
    make = connection.Connection.__init__

    def noting(self: connection.Connection, opened: Any) -> None:
        live.add(opened)
        make(self, opened)

    monkeypatch.setattr(connection.Connection, "__init__", noting)

    async def talk(peer: Peer) -> None:
        await peer.accept()
        while True:
            event = await peer.hear()
            if not isinstance(event, TextMessage):
                return
            if event.message_finished:
                for word in ("one", "two"):
                    await peer.say(TextMessage(word), Ping())
                    await trio.testing.wait_all_tasks_blocked()
                    await peer.hear()

    async def use(met: Meeting) -> None:
        await met.made.aclose()  # so that connecting is among what is left
        opened = await met.opened()
        try:
            for _ in range(2):
                await opened.send(b"0123456789")
                assert await messages(opened, 2) == [b"one", b"two"]
                async with idling(opened):
                    await trio.testing.wait_all_tasks_blocked()
                    assert await opened.claim()
        finally:
            opened.close()

    async with meeting(talk) as met:
        for step in range(1, 300):
            cancel = CancelAfter(step)
            trio.lowlevel.add_instrument(cancel)
            with cancel.scope:
                await use(met)
            trio.lowlevel.remove_instrument(cancel)
            assert {each for each in live if each.fileno() >= 0} == set()
            assert len(reactor.running()) == 0
            if not cancel.scope.cancelled_caught:
                break
        assert 10 < step < 299
