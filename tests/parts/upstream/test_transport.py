"""HTTP towards ChatGPT, over real sockets: framing at every cut, what may be used again, what is refused."""

import contextlib
import gzip
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import httpx
import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st

from codexd.relay.pacing import KEEPALIVE_INTERVAL, RETRY_PAUSE
from codexd.telemetry.trace import Timings
from codexd.upstream import connection, proxies, transport
from codexd.upstream.connection import CONNECT_SECONDS
from codexd.upstream.http1 import Chunked
from codexd.upstream.proxies import Origin, ProxyRoute, parse
from codexd.upstream.transport import STALE_SECONDS, Transport
from codexd.upstream.tunnel import CannotConnect
from support.proxy import Proxy, proxying

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Server:
    """Answers each request, in order, with the next of the given bytes; None closes the connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = trio.Event()

    async def handle(self, stream: Any) -> None:
        self.connections += 1
        try:
            while self.answers:
                data = b""
                while b"\r\n\r\n" not in data:
                    received = await stream.receive_some(65536)
                    if not received:
                        return
                    data += received
                self.requests.append(data)
                answer = self.answers.pop(0)
                if answer is None:
                    return
                await stream.send_all(answer)
            await stream.receive_some(1)
        except trio.BrokenResourceError:
            pass
        finally:
            self.closed.set()
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def serving(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        if tls is None:
            listeners: Any = await nursery.start(partial(trio.serve_tcp, server.handle, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
        else:
            listeners = await nursery.start(partial(trio.serve_ssl_over_tcp, server.handle, 0, tls, host="127.0.0.1"))
            port = listeners[0].transport_listener.socket.getsockname()[1]
        yield port
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
    with trio.fail_after(20):
        async with httpx.AsyncClient(transport=Transport(**options)) as made:
            yield made


async def fetch(*answers: bytes | None, method: str = "GET", times: int = 1) -> tuple[list[httpx.Response], Server]:
    server = Server(*answers)
    async with serving(server) as port, client() as http:
        return [await http.request(method, f"http://127.0.0.1:{port}/path?q=1") for _ in range(times)], server


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
    async with serving(server) as port, client() as http:
        await http.get(f"http://127.0.0.1:{port}/")
        again = Server(ANSWER)
        server.answers = again.answers
        # What nobody asked for, in an idle connection: its end.
        idle = http._transport._idle["http", "127.0.0.1", port][0]
        idle._socket.shutdown(socket.SHUT_WR)
        await server.closed.wait()
        assert (await http.get(f"http://127.0.0.1:{port}/")).text == "ok"
    assert server.connections == 2


async def test_old_and_surplus_connections_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_IDLE", 1)
    server = Server(*[ANSWER] * 5)
    async with serving(server) as port, client() as http:
        url = f"http://127.0.0.1:{port}/"
        async with http.stream("GET", url) as first, http.stream("GET", url) as second:
            assert (await first.aread(), await second.aread()) == (b"ok", b"ok")
        idle = http._transport._idle["http", "127.0.0.1", port]
        assert (server.connections, len(idle)) == (2, 1)
        idle[0].idle_since -= transport.KEEP_ALIVE + 1
        assert (await http.get(url)).text == "ok"
        assert server.connections == 3


HERE: transport.Fields = [(b"accept", b"*/*")]


def here(port: int, scheme: str = "http") -> transport.RequestTarget:
    return transport.target_of(httpx.URL(f"{scheme}://localhost:{port}/path"))


async def post(made: Transport, target: transport.RequestTarget) -> tuple[int, bytes]:
    with trio.fail_after(20):
        status, _, body, *_ = await made.post(target, HERE, b"{}", Timings().resend)
        try:
            return status, b"".join([piece async for piece in body])
        finally:
            await body.aclose()


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
    async with serving(server) as port, client() as http:
        made = http._transport
        await post(made, here(port))
        made._idle["http", "localhost", port][0].idle_since -= transport.KEEP_ALIVE + 1
        await http.get(f"http://localhost:{port}/")
        assert server.connections == 2
        made._idle["http", "localhost", port][-1].idle_since -= transport.KEEP_ALIVE + 1
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
        (idle,) = made._idle[target.origin]
        assert await post(made, target) == (200, b"ok")
        assert made._idle[target.origin] == [idle]
        await post(made, target)
        assert server.connections == 1
        await made.aclose()


async def test_a_warm_connection_that_the_server_closes_is_made_anew() -> None:
    server = Server(ANSWER)
    made = Transport()
    async with serving(server) as port:
        target = here(port)
        await made.warm(target.origin)
        (gone,) = made._idle[target.origin]
        gone._socket.shutdown(socket.SHUT_WR)
        await server.closed.wait()
        await trio.lowlevel.wait_readable(gone.fd)
        made.sweep()
        assert made._idle[target.origin] == []
        assert gone._socket.fileno() < 0
        await made.warm(target.origin)
        assert await post(made, target) == (200, b"ok")
        await made.aclose()


async def test_the_kernel_looks_after_a_silent_connection() -> None:
    server = Server(ANSWER)
    made = Transport()
    async with serving(server) as port:
        await made.warm(here(port).origin)
        raw = made._idle[here(port).origin][0]._socket
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if sys.platform == "linux":
            names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            idle, interval, count, patience = (raw.getsockopt(socket.IPPROTO_TCP, name) for name in names)
            assert patience >= (idle + interval * count) * 1000, "one lost probe must not end it"
        await made.aclose()


async def test_informational_responses_and_bodies_that_are_none() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    responses, server = await fetch(early + ANSWER, b"HTTP/1.1 204 No Content\r\n\r\n", ANSWER, times=3)
    assert [response.status_code for response in responses] == [200, 204, 200]
    assert server.connections == 1
    (head,), _ = await fetch(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", method="HEAD")
    assert head.headers["content-length"] == "1000"


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
    async with serving(server) as port, client() as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(f"http://127.0.0.1:{port}/")
        assert http._transport._idle == {}


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


def routed(proxy: Proxy, userinfo: str = "") -> Callable[[Origin], ProxyRoute]:
    return lambda _: ProxyRoute(parse(proxy.url(userinfo), "$HTTPS_PROXY"), "$HTTPS_PROXY")


@asynccontextmanager
async def serving_through(
    authority: trustme.CA, kind: str | None, scheme: str, trusting: Callable[[], ssl.SSLContext]
) -> AsyncIterator[tuple[Transport, Any]]:
    """A transport through a proxy of that kind, and what serves behind it; the port is the server's own."""
    inner, _ = contexts(authority, "localhost")
    outer, _ = contexts(authority, "127.0.0.1")
    proxy = Proxy(("127.0.0.1", 0), kind="socks" if kind == "socks" else "http", tls=outer if kind == "https" else None)

    @asynccontextmanager
    async def serve(server: Server) -> AsyncIterator[int]:
        async with serving(server, inner if scheme == "https" else None) as port:
            proxy.target = ("127.0.0.1", port)
            yield port

    if kind is None:
        yield Transport(trusting), serve
        return
    async with proxying(proxy):
        yield Transport(trusting, routed(proxy)), serve


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


class Outer:
    """The outer connection of TLS in TLS: what came is there to be read, in pieces of a record's size."""

    def __init__(self) -> None:
        self.came, self.sent = bytearray(), bytearray()

    def fileno(self) -> int:
        return -1

    def send(self, data: memoryview) -> int:
        self.sent += data
        return len(data)

    def recv(self, size: int) -> bytes:
        if not self.came:
            raise ssl.SSLWantReadError
        piece = bytes(self.came[: min(size, 16384)])
        del self.came[: len(piece)]
        return piece


@pytest.mark.parametrize("records", [1, 60, 66, 70, 133, 200])
def test_nothing_stays_behind_in_tls_in_tls(authority: trustme.CA, records: int) -> None:
    """When the kernel has no more, no wait ends: whatever can be decrypted has to come with what was read last."""
    server, trusting = contexts(authority, "localhost")
    outer, came, going = Outer(), ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(came, going, server_side=True)
    ours = connection._TlsInTls(outer, trusting(), "localhost")  # type: ignore[arg-type]
    for _ in range(4):
        for side in (ours, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            came.write(bytes(outer.sent))
            outer.sent.clear()
            outer.came += going.read()
    for _ in range(records):
        theirs.write(b"x" * 1000)
        outer.came += going.read()
    opened, found = connection.TlsConnection(ours), 0
    while outer.came:
        found += len(opened.read_now() or b"")
    assert found == records * 1000


@pytest.mark.parametrize("kind", ["http", "https", "socks"])
async def test_a_proxy_is_asked_once_for_a_connection(authority: trustme.CA, kind: str) -> None:
    _, trusting = contexts(authority, "localhost")
    async with serving_through(authority, kind, "https", trusting) as (made, serve):
        asked: list[Origin] = []
        made.route = lambda origin, route=made.route: asked.append(origin) or route(origin)  # type: ignore[misc]
        server = Server(ANSWER, ANSWER)
        async with serve(server) as port, httpx.AsyncClient(transport=made) as http:
            await made.warm(here(port, "https").origin)
            for _ in range(2):
                assert (await http.get(f"https://localhost:{port}/")).text == "ok"
            assert asked == [("https", "localhost", port)]
            assert server.connections == 1


async def test_what_goes_wrong_with_a_proxy_names_it(authority: trustme.CA) -> None:
    _, trusting = contexts(authority, "localhost")

    async def fails(proxy: Proxy, said: str, userinfo: str = "", context: Any = trusting) -> None:
        made = Transport(context, routed(proxy, userinfo))
        with trio.fail_after(20), pytest.raises(CannotConnect, match=said) as caught:
            await made.warm(("https", "chatgpt.test", 443))
        assert caught.value.code in ("proxy_failed", "certificate_not_trusted")
        assert "sEcReT" not in str(caught.value)

    async with proxying(Proxy(("127.0.0.1", 1), credentials=("u", "p"))) as proxy:
        await fails(
            proxy, r"the proxy http://127.0.0.1:\d+ \(\$HTTPS_PROXY\) asks for a user name and a password \(407\)"
        )
        await fails(proxy, "does not accept the user name", "u:sEcReT@")
    async with proxying(Proxy(("127.0.0.1", 1), answer=b"HTTP/1.1 403 No\r\n\r\n")) as proxy:
        await fails(proxy, r"refuses to connect to chatgpt.test:443 \(403 Forbidden\)")
    async with proxying(Proxy(("127.0.0.1", 1), answer=b"HTTP/1.1 502 No\r\n\r\n")) as proxy:
        await fails(proxy, r"could not connect to chatgpt.test:443 \(502 Bad Gateway\)")
    async with proxying(Proxy(("127.0.0.1", 1), kind="socks")) as proxy:
        http = Transport(trusting, lambda _: ProxyRoute(parse(f"http://127.0.0.1:{proxy.port}", "$HTTPS_PROXY"), ""))
        with trio.fail_after(20), pytest.raises(CannotConnect, match=r"for SOCKS write socks5://"):
            await http.warm(("https", "chatgpt.test", 443))
    async with proxying(Proxy(("127.0.0.1", 1), opens=trustme.CA())) as proxy:
        await fails(proxy, r"certificate of chatgpt.test is not trusted, through the proxy http://127.*backend.ca_file")
    async with proxying(Proxy(("127.0.0.1", 1))) as proxy:
        made = Transport(trusting, lambda _: ProxyRoute(parse(f"https://127.0.0.1:{proxy.port}", "$https_proxy"), ""))
        with trio.fail_after(20), pytest.raises(CannotConnect, match=r"write http:// in \$https_proxy"):
            await made.warm(("https", "chatgpt.test", 443))
    proxy.port = 1
    await fails(proxy, r"no connection to 127.0.0.1:1: connection refused; it is the proxy http://127.0.0.1:1")


async def test_an_international_name_is_asked_for_in_its_ascii_form() -> None:
    for kind in ("http", "socks"):
        async with proxying(Proxy(("127.0.0.1", 1), kind=kind)) as proxy:
            made = Transport(route=routed(proxy))
            for url in ("http://xn--bcher-kva.example/", "http://b\u00fccher.example/"):
                async with httpx.AsyncClient(transport=made) as http:
                    with pytest.raises(httpx.HTTPError):  # the proxy reaches nobody there
                        await http.get(url)
            assert proxy.asked == ["xn--bcher-kva.example:80"] * 2


async def test_a_proxy_that_cannot_be_used_fails_what_needs_it() -> None:
    made = Transport(route=partial(proxies.route, {"ALL_PROXY": "foo://p", "NO_PROXY": "[::1], fd00::/8, 127.0.0.1"}))
    with pytest.raises(CannotConnect, match=r"\$ALL_PROXY: unsupported proxy scheme"):
        await made.warm(("https", "chatgpt.test", 443))
    async with serving(Server(ANSWER)) as port, httpx.AsyncClient(transport=made) as http:
        assert (await http.get(f"http://127.0.0.1:{port}/")).text == "ok"


class Names(trio.abc.HostnameResolver):
    """A resolver that knows one name."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        if host != b"chatgpt.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (each, port, 0, 0))
            if ":" in each
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in self._addresses
        ]

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("addresses", "served"),
    [
        (["127.0.0.1"], "127.0.0.1"), (["::1"], "::1"), (["::1", "127.0.0.1"], "127.0.0.1"), (["127.0.0.1", "::1"], "::1"),
        (["127.0.0.9", "127.0.0.8", "127.0.0.1"], "127.0.0.1"), (["full", "127.0.0.1"], "127.0.0.1"), (["full", "::1"], "::1"),
    ],
)  # fmt: skip
async def test_an_address_that_is_dead_does_not_count(addresses: list[str], served: str) -> None:
    """IPv6, IPv4 and mixed; refused, and one whose listener takes no more (``full``): there is no answer at all."""
    if not socket.has_ipv6 or not _has_ipv6():
        pytest.skip("this machine has no IPv6 on loopback")
    server = Server(ANSWER)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, server.handle, 0, host=served))
        port = listeners[0].socket.getsockname()[1]
        with socket.socket() as full, contextlib.ExitStack() as stack:
            full.bind(("127.0.0.7", port))
            full.listen(0)
            for _ in range(3):  # more than its queue takes: the next ones hear nothing
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.7", port))
            names = ["127.0.0.7" if each == "full" else each for each in addresses]
            trio.socket.set_custom_hostname_resolver(Names(*names))
            with trio.fail_after(20):
                async with httpx.AsyncClient(transport=Transport()) as http:
                    assert (await http.get(f"http://chatgpt.test:{port}/")).text == "ok"
                    with pytest.raises(CannotConnect, match=r"the name elsewhere\.test cannot be resolved"):
                        await http.get(f"http://elsewhere.test:{port}/")
                    trio.socket.set_custom_hostname_resolver(Names("127.0.0.9"))
                    with pytest.raises(CannotConnect, match=r"no connection to chatgpt.test:1: connection refused"):
                        await http.get("http://chatgpt.test:1/")
        nursery.cancel_scope.cancel()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA, name: str) -> tuple[ssl.SSLContext, Callable[[], ssl.SSLContext]]:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(server)

    def trusting() -> ssl.SSLContext:
        made = ssl.create_default_context()
        authority.configure_trust(made)
        return made

    return server, trusting


async def test_an_answer_before_all_was_sent_is_read() -> None:
    async def impatient(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await stream.aclose()

    server = Server()
    server.handle = impatient  # type: ignore[method-assign]
    async with serving(server) as port, client() as http:
        answer = await http.post(f"http://127.0.0.1:{port}/", content=b"x" * 30_000_000)
        assert (answer.status_code, answer.text) == (413, "big")
        assert http._transport._idle == {}


@pytest.mark.parametrize("pushed", [False, True])
async def test_an_end_that_comes_with_the_last_data_over_tls(authority: trustme.CA, pushed: bool) -> None:
    """close_notify in the same segment, and the connection left open: nothing more will ever wake anybody."""
    tls, trusting = contexts(authority, "localhost")

    async def last_words(stream: trio.SocketStream) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        end = tls.wrap_bio(incoming, outgoing, server_side=True)

        async def until(step: Callable[[], Any]) -> None:
            while True:
                try:
                    step()
                except ssl.SSLWantReadError:
                    await stream.send_all(outgoing.read())
                    incoming.write(await stream.receive_some(65536))
                else:
                    break

        await until(end.do_handshake)
        await until(lambda: end.read(65536))
        end.write(CHUNKED + b"5\r\nfirst\r\n")
        await stream.send_all(outgoing.read())
        await trio.testing.wait_all_tasks_blocked(0.01)
        end.write(b"4\r\nlast\r\n")
        with contextlib.suppress(ssl.SSLWantReadError):
            end.unwrap()
        await stream.send_all(outgoing.read())
        await trio.sleep_forever()

    server = Server()
    server.handle = last_words  # type: ignore[method-assign]
    async with (
        serving(server) as port,
        client(context=trusting) as http,
        http.stream("GET", f"https://localhost:{port}/") as response,
    ):
        body: Any = response.stream._stream
        seen = [await anext(body)]
        with pytest.raises(httpx.RemoteProtocolError, match="last chunk"):
            if pushed:
                await body.push(lambda data: seen.append(data) is None)
            while True:
                seen.append(await anext(body))
        assert seen == [b"first", b"last"]


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
        (idle,) = made._idle[origin]
        await trio.lowlevel.wait_readable(idle.fd)
        made.sweep()
        assert made._idle[origin] == [idle]
        await made.aclose()


async def test_tls(authority: trustme.CA) -> None:
    body = bytes(range(256)) * 1000  # many records
    large = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    tls, trusting = contexts(authority, "localhost")
    server = Server(ANSWER, large, CHUNKED + b"1\r\nx\r\n")
    async with serving(server, tls) as port, client(context=trusting) as http:
        url = f"https://localhost:{port}/"
        assert (await http.get(url)).text == "ok"
        assert (await http.get(url)).content == body
        async with http.stream("GET", url) as response:
            assert await anext(response.aiter_bytes()) == b"x"
    assert server.connections == 1


@pytest.mark.parametrize("framed", ["length", "chunks", "connection"])
async def test_tls_that_ends_without_saying_so(authority: trustme.CA, framed: str) -> None:
    """Whoever is on the way can end a connection; only what its framing says is complete is taken for whole."""
    answers = {
        "length": ANSWER,
        "chunks": CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
        "connection": b"HTTP/1.1 200 OK\r\n\r\nok",
    }
    tls, trusting = contexts(authority, "localhost")
    server = Server()

    async def cut(stream: trio.SSLStream[trio.SocketStream]) -> None:
        server.connections += 1
        await stream.receive_some(65536)
        await stream.send_all(answers[framed])
        await stream.transport_stream.send_eof()
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some(1)

    server.handle = cut  # type: ignore[method-assign]
    made = Transport(trusting)
    async with serving(server, tls) as port:
        for _ in range(2):
            if framed == "connection":
                with pytest.raises(httpx.ReadError):
                    await post(made, here(port, "https"))
            else:
                assert await post(made, here(port, "https")) == (200, b"ok")
        assert server.connections == 2
        await made.aclose()


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
                idle = {each.fd for each in made._idle.get(here(port, scheme).origin, [])}
                assert {each.fileno() for each in live if each.fileno() >= 0} == idle
                assert await ask(1000 + step) == b"a:%4d" % (1000 + step)
                if not cancel.scope.cancelled_caught:
                    break
            assert 5 < step < 299
            await made.aclose()


async def test_a_certificate_that_is_not_trusted(authority: trustme.CA) -> None:
    tls, trusting = contexts(authority, "somebody.else")
    async with serving(Server(ANSWER), tls) as port:
        async with client(context=trusting) as http:
            with pytest.raises(httpx.ConnectError, match=r"Hostname mismatch|doesn't match|Something else answers"):
                await http.get(f"https://localhost:{port}/")
        async with client() as http:
            with pytest.raises(
                httpx.ConnectError, match=r"the certificate of localhost is not trusted: .*backend\.ca_file"
            ):
                await http.get(f"https://localhost:{port}/")


BODIES = [b"", b"a", b"\r\n", b"0\r\n\r\n", b"x" * 300, b"data: {}\r\n\r\n"]


def whole(chunks: list[bytes], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks if chunk)
    return framed + b"0\r\n" + trailers + b"\r\n"


@pytest.mark.parametrize("extension", [b"", b";name=value", b" ; a"])
@pytest.mark.parametrize("trailers", [b"", b"x: y\r\n", b"x: y\r\nz: w\r\n"])
def test_a_chunked_body_split_anywhere(extension: bytes, trailers: bytes) -> None:
    data = whole(BODIES, extension, trailers) + b"next"
    for at in range(len(data)):
        body = Chunked()
        out = body.feed(data[:at])
        if not body.done:
            out += body.feed(data[at:])
            assert body.rest == b"next"
        assert (out, body.done) == (b"".join(BODIES), True)
    body = Chunked()
    single = [body.feed(bytes([byte])) for byte in data[:-4]]
    assert (b"".join(single), body.done, body.rest) == (b"".join(BODIES), True, b"")


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(0, 400)))
def test_a_chunked_body_cut_at_will(chunks: list[bytes], cuts: list[int]) -> None:
    data = whole(chunks)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    body = Chunked()
    out = b"".join([body.feed(data[a:b]) for a, b in pairwise(places)])
    assert (out, body.done, body.rest) == (b"".join(chunks), True, b"")
