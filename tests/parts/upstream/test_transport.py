"""HTTP towards ChatGPT, over real sockets: framing at every cut, what may be used again, what is refused."""

import contextlib
import gzip
import socket
from typing import Any

import httpx
import pytest
import trio
import trustme

from codexd.relay.pacing import KEEPALIVE_INTERVAL, RETRY_PAUSE
from codexd.telemetry.trace import Timings
from codexd.upstream import connection
from codexd.upstream.connection import CONNECT_SECONDS
from codexd.upstream.transport import STALE_SECONDS, Transport
from support.cancelling import CancelAfter
from support.serving import ANSWER, CHUNKED, HERE, Server, client, contexts, fetch, here, serving, serving_through


async def test_informational_responses_and_bodies_that_are_none() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    responses, server = await fetch(early + ANSWER, b"HTTP/1.1 304 Not Modified\r\n\r\n", ANSWER, times=3)
    assert [response.status_code for response in responses] == [200, 304, 200]
    assert server.connections == 1
    (head,), _ = await fetch(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", method="HEAD")
    assert head.headers["content-length"] == "1000"


@pytest.mark.parametrize(
    "unusual",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 206 Partial\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n",
    ],
)
async def test_after_anything_unusual_nothing_else_is_asked_on_the_connection(unusual: bytes) -> None:
    responses, server = await fetch(unusual, ANSWER, times=2)
    assert (responses[1].status_code, responses[1].content, server.connections) == (200, b"ok", 2)


async def test_compressed_bodies_are_httpxs() -> None:
    packed = gzip.compress(b"plain words")
    (response,), _ = await fetch(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b" % (len(packed), packed))  # fmt: skip
    assert response.text == "plain words"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nspace : x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\nc: d\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
        CHUNKED + b"2\r\nok",
        CHUNKED + b"2\r\nok!\r\n0\r\n\r\n",
        CHUNKED + b"-2\r\nok\r\n0\r\n\r\n",
        CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n",
        CHUNKED + b"2\nok\r\n0\r\n\r\n",
        CHUNKED + b"2" * 70_000,
        CHUNKED + b"0\r\nx: " + b"y" * 70_000,
        CHUNKED + b"2\r\nok\r\n0\r\n",
    ],
)
async def test_what_is_not_http_ends_the_connection(answer: bytes | None) -> None:
    async def rude(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        if answer is not None:
            await stream.send_all(answer)
        await stream.send_eof()
        await stream.receive_some(1)

    server = Server()
    server.handle = rude  # type: ignore[method-assign]
    made = Transport()
    async with serving(server) as port, client(made) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(f"http://127.0.0.1:{port}/")
        assert made.idle == {}


async def test_a_reset_is_a_read_error() -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(CHUNKED + b"2\r\nok\r\n")
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        stream.socket.close()

    server = Server()
    server.handle = reset  # type: ignore[method-assign]
    async with serving(server) as port, client() as http:
        with pytest.raises(httpx.ReadError, match="reset"):
            await http.get(f"http://127.0.0.1:{port}/")


async def test_who_cannot_be_reached() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        async with client() as http:
            with pytest.raises(httpx.ConnectError, match=r"no connection to 127\.0\.0\.1:\d+: connection refused"):
                await http.get(f"http://127.0.0.1:{port}/")
            with pytest.raises(httpx.UnsupportedProtocol):
                await http.get(f"ftp://127.0.0.1:{port}/")


async def test_a_connection_in_its_time(monkeypatch: pytest.MonkeyPatch, autojump_clock: Any) -> None:
    async def never(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", never)
    began = trio.current_time()
    async with httpx.AsyncClient(transport=Transport()) as http:
        with pytest.raises(httpx.ConnectError, match="no connection to b:80 within 6 seconds"):
            await http.get("http://b/")
    assert trio.current_time() - began == pytest.approx(CONNECT_SECONDS)
    # Twice, and it is told before a keep-alive would have begun the answer.
    assert 2 * CONNECT_SECONDS + 2 * RETRY_PAUSE + STALE_SECONDS < KEEPALIVE_INTERVAL


async def test_a_header_that_cannot_be_sent_is_not_quoted() -> None:
    for name, value in (("authorization", "Bearer secret\r\nx: y"), ("x", "secret\0")):
        request = httpx.Request("GET", "http://127.0.0.1:1/", headers={name: value})
        server = Server()
        async with serving(server) as port:
            request.url = httpx.URL(f"http://127.0.0.1:{port}/")
            with pytest.raises(httpx.LocalProtocolError) as caught:
                await Transport().handle_async_request(request)
        assert "secret" not in str(caught.value)


async def test_leaving_closes_the_connection() -> None:
    server = Server(CHUNKED + b"2\r\nok\r\n")
    async with serving(server) as port, client() as http:
        async with http.stream("GET", f"http://127.0.0.1:{port}/") as response:
            assert await anext(response.aiter_bytes()) == b"ok"
        await server.closed.wait()
    silent = Server(b"HTTP/1.1")
    async with serving(silent) as port, client() as http:
        with trio.move_on_after(0.05):
            await http.get(f"http://127.0.0.1:{port}/")
        await silent.closed.wait()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("kind", [None, "http", "https", "socks"])
async def test_a_large_body_goes_up_and_comes_down(authority: trustme.CA, kind: str | None, scheme: str) -> None:
    body = bytes(range(256)) * 12_000

    async def echo(stream: trio.SocketStream) -> None:
        data = b""
        while not data.endswith(body):
            data += await stream.receive_some(1 << 20)
        await stream.send_all(CHUNKED)
        for at in range(0, len(body), 70_001):
            piece = body[at : at + 70_001]
            await stream.send_all(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece))
        await stream.send_all(b"0\r\nx: trailer\r\n\r\n")

    server = Server()
    server.handle = echo  # type: ignore[method-assign]
    _, trusting = contexts(authority, "localhost")
    async with serving_through(authority, kind, scheme, trusting) as (made, serve), serve(server) as port:
        with trio.fail_after(30):
            async with httpx.AsyncClient(transport=made) as http:
                assert (await http.post(f"{scheme}://localhost:{port}/", content=body)).content == body


async def test_an_answer_before_all_was_sent_is_read() -> None:
    async def impatient(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await stream.aclose()

    server = Server()
    server.handle = impatient  # type: ignore[method-assign]
    made = Transport()
    async with serving(server) as port, client(made) as http:
        answer = await http.post(f"http://127.0.0.1:{port}/", content=b"x" * 30_000_000)
        assert (answer.status_code, answer.text) == (413, "big")
        assert made.idle == {}


SPLIT = (
    b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3;ext=1\r\nabc\r\n1\r\nd\r\n0\r\nlast: words\r\n\r\n"
)


@pytest.mark.parametrize("pushed", [False, True])
async def test_an_answer_in_two_pieces_cut_anywhere(pushed: bool) -> None:
    server = Server()

    async def cut(stream: trio.SocketStream) -> None:
        server.connections += 1
        for place in range(1, len(SPLIT)):
            await stream.receive_some(65536)
            await stream.send_all(SPLIT[:place])
            await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(SPLIT[place:])
        await stream.receive_some(1)

    server.handle = cut  # type: ignore[method-assign]
    made = Transport()
    async with serving(server) as port:
        for place in range(1, len(SPLIT)):
            with trio.fail_after(20):
                _, _, body, *_ = await made.post(here(port), HERE, b"{}", Timings().resend)
                pieces: list[bytes] = []

                def take(piece: bytes, pieces: list[bytes] = pieces) -> bool:
                    pieces.append(piece)
                    return True

                if pushed:
                    await body.push(take)
                pieces += [piece async for piece in body]
            assert b"".join(pieces) == b"abcd", place
        assert server.connections == 1
        await made.aclose()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("kind", [None, "http", "https", "socks"])
async def test_leaving_at_every_wait(authority: trustme.CA, scheme: str, kind: str | None) -> None:
    """Nothing stays open, and what is said afterwards is what was asked."""
    _, trusting = contexts(authority, "localhost")
    async with serving_through(authority, kind, scheme, trusting) as (made, serve):
        await leaving_at_every_wait(made, scheme, serve)


async def leaving_at_every_wait(made: Transport, scheme: str, serve: Any) -> None:
    live = set[socket.socket]()
    make = connection.Connection.__init__

    def noting(self: connection.Connection, opened: socket.socket) -> None:
        live.add(opened)
        make(self, opened)

    async def slow(stream: Any) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(65536):
                number = data.partition(b"\r\nnumber: ")[2].partition(b"\r\n")[0]
                for piece in (b"HTTP/1.1 200 OK\r\n", b"content-length: 6\r\n\r\n", b"a:", number.rjust(4)):
                    await stream.send_all(piece)
                    await trio.testing.wait_all_tasks_blocked()
        await trio.aclose_forcefully(stream)

    async def ask(number: int) -> bytes:
        _, _, body, *_ = await made.post(here(port, scheme), [(b"number", b"%d" % number)], b"{}", Timings().resend)
        try:
            return b"".join([piece async for piece in body])
        finally:
            await body.aclose()

    server = Server()
    server.handle = slow  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch, trio.fail_after(60):
        patch.setattr(connection.Connection, "__init__", noting)
        async with serve(server) as port:
            for step in range(1, 300):
                await made.aclose()  # so that connecting is among what is left
                cancel = CancelAfter(step)
                trio.lowlevel.add_instrument(cancel)
                with cancel.scope:
                    assert await ask(step) == b"a:%4d" % step
                trio.lowlevel.remove_instrument(cancel)
                idle = {each.fd for each in made.idle.get(here(port, scheme).origin, [])}
                assert {each.fileno() for each in live if each.fileno() >= 0} == idle
                assert await ask(1000 + step) == b"a:%4d" % (1000 + step)
                if not cancel.scope.cancelled_caught:
                    break
            assert 5 < step < 299
            await made.aclose()
