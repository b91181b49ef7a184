"""A server of raw answers and the transport towards it: what the tests of the way to the backend share."""

import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import trio
import trustme

from codexd.telemetry.trace import Timings
from codexd.upstream import connection, transport
from codexd.upstream.proxies import Origin, ProxyRoute, parse
from codexd.upstream.transport import Transport
from support.proxy import Proxy, proxying

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


HERE: transport.Fields = [(b"accept", b"*/*")]


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
async def client(made: Transport | None = None) -> AsyncIterator[httpx.AsyncClient]:
    with trio.fail_after(20):
        async with httpx.AsyncClient(transport=made or Transport()) as http:
            yield http


def here(port: int, scheme: str = "http") -> transport.RequestTarget:
    return transport.target_of(httpx.URL(f"{scheme}://localhost:{port}/path"))


async def post(made: Transport, target: transport.RequestTarget) -> tuple[int, bytes]:
    with trio.fail_after(20):
        status, _, body, *_ = await made.post(target, HERE, b"{}", Timings().resend)
        try:
            return status, b"".join([piece async for piece in body])
        finally:
            await body.aclose()


def contexts(authority: trustme.CA, name: str) -> tuple[ssl.SSLContext, Callable[[], ssl.SSLContext]]:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(server)

    def trusting() -> ssl.SSLContext:
        made = ssl.create_default_context()
        authority.configure_trust(made)
        return made

    return server, trusting


def raw(idle: connection.Connection) -> socket.socket:
    """A second descriptor of a connection's socket; closed as a context."""
    return socket.socket(fileno=os.dup(idle.fd))


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


async def fetch(*answers: bytes | None, method: str = "GET", times: int = 1) -> tuple[list[httpx.Response], Server]:
    server = Server(*answers)
    async with serving(server) as port, client() as http:
        return [await http.request(method, f"http://127.0.0.1:{port}/path?q=1") for _ in range(times)], server
