"""Which connections are used again, which requests are sent again, and what is ready before it is needed."""

import socket
import ssl
import sys
from typing import Any

import httpx
import pytest
import trio
import trustme

from codexd.telemetry.trace import Timings
from codexd.upstream import transport
from codexd.upstream.transport import Transport
from support.serving import ANSWER, CHUNKED, Server, client, contexts, fetch, here, post, raw, serving


async def test_a_connection_is_used_again() -> None:
    responses, server = await fetch(ANSWER, ANSWER, CHUNKED + b"2\r\nok\r\n0\r\n\r\n", ANSWER, times=4)
    assert [response.text for response in responses] == ["ok"] * 4
    assert server.connections == 1
    assert server.requests[0].startswith(b"GET /path?q=1 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\nok", "ok"),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", "ok"),
        (b"HTTP/1.1 200 OK\r\nConnection: foo, Close\r\ncontent-length: 2\r\n\r\nok", "ok"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok and more", "ok"),
        (CHUNKED + b"2\r\nok\r\n0\r\n\r\nmore", "ok"),
        (CHUNKED.replace(b"\r\n\r\n", b"\r\ncontent-length: 2\r\n\r\n") + b"2\r\nok\r\n0\r\n\r\n", "ok"),
    ],
)  # fmt: skip
async def test_what_cannot_be_used_again_is_not(answer: bytes, text: str) -> None:
    server = Server()

    async def once(stream: Any) -> None:
        server.connections += 1
        await stream.receive_some(65536)
        await stream.send_all(answer)
        await stream.aclose()

    server.handle = once  # type: ignore[method-assign]
    async with serving(server) as port, client() as http:
        for _ in range(2):
            assert (await http.get(f"http://127.0.0.1:{port}/")).text == text
    assert server.connections == 2


async def test_a_connection_that_the_server_has_closed_is_not_used() -> None:
    server = Server(ANSWER)
    made = Transport()
    async with serving(server) as port, client(made) as http:
        await http.get(f"http://127.0.0.1:{port}/")
        again = Server(ANSWER)
        server.answers = again.answers
        # What nobody asked for, in an idle connection: its end.
        with raw(made.idle["http", "127.0.0.1", port][0]) as idle:
            idle.shutdown(socket.SHUT_WR)
        await server.closed.wait()
        assert (await http.get(f"http://127.0.0.1:{port}/")).text == "ok"
    assert server.connections == 2


async def test_old_and_surplus_connections_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_IDLE", 1)
    server = Server(*[ANSWER] * 5)
    made = Transport()
    async with serving(server) as port, client(made) as http:
        url = f"http://127.0.0.1:{port}/"
        async with http.stream("GET", url) as first, http.stream("GET", url) as second:
            assert (await first.aread(), await second.aread()) == (b"ok", b"ok")
        idle = made.idle["http", "127.0.0.1", port]
        assert (server.connections, len(idle)) == (2, 1)
        idle[0].idle_since -= transport.KEEP_ALIVE + 1
        assert (await http.get(url)).text == "ok"
        assert server.connections == 3


async def test_a_connection_that_ends_as_it_is_used_again_is_no_fault() -> None:
    """It had been idle: the request may have met its end on the way, and nothing was heard of it."""
    server = Server(ANSWER, None, ANSWER)
    made = Transport()
    async with serving(server) as port:
        assert [await post(made, here(port)) for _ in range(2)] == [(200, b"ok")] * 2
        assert (server.connections, len(server.requests)) == (2, 3)
        await made.aclose()


async def test_what_was_perhaps_begun_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes a request, works for a while and closes may have done it."""
    monkeypatch.setattr(transport, "STALE_SECONDS", 0.0)
    server = Server(ANSWER, None, ANSWER)
    made = Transport()
    async with serving(server) as port:
        await post(made, here(port))
        with pytest.raises(transport.Unanswered):
            await post(made, here(port))
        assert (server.connections, len(server.requests)) == (1, 2)


def test_a_request_is_sent_again_once() -> None:
    timings = Timings()
    assert [timings.resend() for _ in range(3)] == [True, False, False]
    assert timings.tries == 1


@pytest.mark.parametrize("host", ["a..b", ".x", "x" * 70])
async def test_a_name_that_cannot_be_one_is_a_failed_connection(host: str) -> None:
    made = Transport()
    with pytest.raises(httpx.ConnectError):
        await made.warm(("http", host, 80))


async def test_what_a_new_connection_leaves_unanswered_is_not_sent_again() -> None:
    server = Server(None, ANSWER)
    made = Transport()
    async with serving(server) as port:
        with pytest.raises(transport.Unanswered):
            await post(made, here(port))
        assert len(server.requests) == 1


async def test_what_a_connection_has_begun_to_answer_is_not_sent_again() -> None:
    server = Server(ANSWER, b"HTTP/1.1 2", None, ANSWER)
    made = Transport()
    ended = trio.Event()
    handle = server.handle

    async def cut(stream: trio.SocketStream) -> None:
        async def ending(data: bytes) -> None:
            await send_all(data)
            if data == b"HTTP/1.1 2":
                await stream.send_eof()
                ended.set()

        send_all = stream.send_all
        stream.send_all = ending  # type: ignore[method-assign]
        await handle(stream)

    server.handle = cut  # type: ignore[method-assign]
    async with serving(server) as port:
        await post(made, here(port))
        with pytest.raises(httpx.RemoteProtocolError, match="in the middle"):
            await post(made, here(port))
        assert ended.is_set()
        assert len(server.requests) == 2
        await made.aclose()


async def test_an_old_connection_is_for_what_may_be_sent_twice() -> None:
    """A refresh token may not: it would be used up by the first of the two."""
    server = Server(*[ANSWER] * 4)
    made = Transport()
    async with serving(server) as port, client(made) as http:
        await post(made, here(port))
        made.idle["http", "localhost", port][0].idle_since -= transport.KEEP_ALIVE + 1
        await http.get(f"http://localhost:{port}/")
        assert server.connections == 2
        made.idle["http", "localhost", port][-1].idle_since -= transport.KEEP_ALIVE + 1
        await post(made, here(port))
        assert server.connections == 2


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_warm_connection_is_what_the_first_request_takes(authority: trustme.CA, scheme: str) -> None:
    server = Server(ANSWER, ANSWER)
    tls, trusting = contexts(authority, "localhost")
    made = Transport(trusting)
    async with serving(server, tls if scheme == "https" else None) as port:
        target = here(port, scheme)
        for _ in range(3):
            await made.warm(target.origin)
            made.sweep()
        (idle,) = made.idle[target.origin]
        assert await post(made, target) == (200, b"ok")
        assert made.idle[target.origin] == [idle]
        await post(made, target)
        assert server.connections == 1
        await made.aclose()


async def test_a_warm_connection_that_the_server_closes_is_made_anew() -> None:
    server = Server(ANSWER)
    made = Transport()
    async with serving(server) as port:
        target = here(port)
        await made.warm(target.origin)
        (gone,) = made.idle[target.origin]
        with raw(gone) as ours:
            ours.shutdown(socket.SHUT_WR)
        await server.closed.wait()
        await trio.lowlevel.wait_readable(gone.fd)
        made.sweep()
        assert made.idle[target.origin] == []
        assert gone.closed
        await made.warm(target.origin)
        assert await post(made, target) == (200, b"ok")
        await made.aclose()


async def test_what_follows_a_handshake_does_not_make_a_warm_connection_a_used_one(authority: trustme.CA) -> None:
    """The tickets of TLS 1.3 come unasked; trio keeps them back, and most servers do not."""
    tls, trusting = contexts(authority, "localhost")
    told = trio.Event()

    async def forthcoming(stream: trio.SocketStream) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        end = tls.wrap_bio(incoming, outgoing, server_side=True)
        shaken = False
        while not shaken:
            try:
                end.do_handshake()
                shaken = True
            except ssl.SSLWantReadError:
                await stream.send_all(outgoing.read())
                incoming.write(await stream.receive_some(65536))
        assert end.version() == "TLSv1.3"
        tickets = outgoing.read()
        assert tickets
        await stream.send_all(tickets)
        told.set()
        await stream.receive_some(1)

    server = Server()
    server.handle = forthcoming  # type: ignore[method-assign]
    made = Transport(trusting)
    async with serving(server) as port:
        origin = here(port, "https").origin
        await made.warm(origin)
        await told.wait()
        (idle,) = made.idle[origin]
        await trio.lowlevel.wait_readable(idle.fd)
        made.sweep()
        assert made.idle[origin] == [idle]
        await made.aclose()


async def test_the_kernel_looks_after_a_silent_connection() -> None:
    server = Server(ANSWER)
    made = Transport()
    async with serving(server) as port:
        await made.warm(here(port).origin)
        with raw(made.idle[here(port).origin][0]) as ours:
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if sys.platform == "linux":
                names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
                idle, interval, count, patience = (ours.getsockopt(socket.IPPROTO_TCP, name) for name in names)
                assert patience >= (idle + interval * count) * 1000, "one lost probe must not end it"
        await made.aclose()
