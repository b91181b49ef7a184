"""HTTP/1.1 towards ChatGPT: an httpx transport on the kernel's own sockets.

httpx's own transport is right and slow for this use. Measured beside it on the same streams: a deadline and a scheduler
pass for each read, h11 for each chunk, a pool that looks at every open connection on every request (with 1000 streams
open a request cost five times as much). Here one read is one wait and one ``recv``, all of its chunks are taken apart
at once, and an idle connection is the top of a stack.

Nothing here has a deadline but connecting: whoever reads has one. HTTP/1.1 alone, because over one HTTP/2 connection
only 100 streams run and the others wait without an error. A proxy of the environment is asked here too, so that behind
one nothing else is slower. Cookies, redirects and authentication are left to httpx.

How a connection is made is in ``connecting``, what a response's bytes mean in ``framing``.
"""

import math
import re
import ssl
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import httpx
import trio

from codexd.lowlevel import reactor
from codexd.system import certificates
from codexd.system.certificates import CannotTrust
from codexd.upstream.connection import Connection, connect
from codexd.upstream.http1 import MAX_HEAD, Fields, Framing, framing_of, parse_head
from codexd.upstream.proxies import BadProxy, Origin, ProxyRoute
from codexd.upstream.tunnel import CannotConnect

KEEP_ALIVE = 90.0
"""Seconds for which an idle connection may be used again by a request that must not be sent twice."""

MAX_IDLE = 100
"""Idle connections that are kept for one origin."""

STALE_SECONDS = 1.0
"""In which a connection that had ended before it was used says so."""

JOIN_BODY = 64 * 1024
"""A request body up to this size goes out in one write with its head; a larger one is not copied for that."""

_UNSENDABLE = re.compile(rb"[\x00\r\n]")


class Unanswered(httpx.RemoteProtocolError):
    """The connection ended before the first byte of an answer."""


class RequestTarget(NamedTuple):
    """Where a request goes: connection, request target, Host header."""

    origin: Origin
    path: bytes
    host: bytes


def origin_of(url: httpx.URL) -> Origin:
    """The host as it goes over the wire: IDNA's form, which ``url.host`` would decode."""
    return url.scheme, url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)


def target_of(url: httpx.URL) -> RequestTarget:
    return RequestTarget(origin_of(url), url.raw_path, url.netloc)


def _directly(_: Origin) -> ProxyRoute:
    return ProxyRoute(None, "")


class Transport(httpx.AsyncBaseTransport):
    """``context`` makes the TLS context, in a thread, when the first connection needs it; it may raise CannotTrust.

    ``route`` says through which proxy an origin is reached; it may raise BadProxy.
    """

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext] = lambda: certificates.context(certificates.store({}, None)),
        route: Callable[[Origin], ProxyRoute] = _directly,
    ) -> None:
        self._make_context = context
        self.route = route
        self._context: ssl.SSLContext | None = None
        self.idle: dict[Origin, list[Connection]] = {}

    def configure(self, context: Callable[[], ssl.SSLContext]) -> None:
        """Trust otherwise, from the next connection on."""
        self._make_context, self._context = context, None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx's own exceptions. The response's stream must be closed."""
        url = request.url
        head = _head_of(request.method.encode("ascii"), url.raw_path, request.headers.raw)
        body = await request.aread()
        origin, since = origin_of(url), trio.current_time() - KEEP_ALIVE
        connection = self._take(origin, since) or await self._connect(origin)
        received = await self._exchange(connection, request.method, origin, head, body, ready=False)
        return httpx.Response(received.status, headers=received.fields, stream=received.body)

    async def post(
        self, target: RequestTarget, fields: Fields, body: bytes, may_resend: Callable[[], bool]
    ) -> "RawResponse":
        """The same for a POST, without httpx's objects. Raises httpx's exceptions.

        A connection that has been idle for as long as it pleases may end just when it is used. What was sent on one and
        met its end at once is sent once more, on a new one, when ``may_resend`` agrees.
        """
        length = b"content-length", b"%d" % len(body)
        head = _head_of(b"POST", target.path, [(b"host", target.host), *fields, length])
        if (connection := self._take(target.origin)) is not None:
            began = trio.current_time()
            try:
                return await self._exchange(connection, "POST", target.origin, head, body, ready=True)
            except Unanswered:
                # Whoever closes later has perhaps begun to work on it.
                if trio.current_time() > began + STALE_SECONDS or not may_resend():
                    raise
            # What has ended this one unnoticed, a network that changed or a sleep, has ended the others too.
            self._forget(target.origin)
        connection = await self._connect(target.origin)
        return await self._exchange(connection, "POST", target.origin, head, body, ready=False)

    async def warm(self, origin: Origin) -> None:
        """Have a connection ready there. Raises httpx's exceptions."""
        if not self.idle.get(origin):
            self._give_back(origin, await self._connect(origin))

    def sweep(self) -> None:
        """Close the idle connections that the other side has closed."""
        for origin, idle in self.idle.items():
            quiet = {connection: connection.quiet() for connection in idle}
            self.idle[origin] = [connection for connection in idle if quiet[connection]]
            for connection in idle:
                if not quiet[connection]:
                    connection.close()

    async def _exchange(
        self, connection: "Connection", method: str, origin: Origin, head: bytes, body: bytes, *, ready: bool
    ) -> "RawResponse":
        connected = trio.current_time()
        try:
            sent = await _sent(connection, head, body)
            status, fields, keep, rest = await _read_head(connection)
            keep = keep and sent
            framing, keep = framing_of(method, status, fields, keep=keep)
        except BaseException:
            connection.close()
            raise
        give_back = (lambda: self._give_back(origin, connection)) if keep else None
        stream = ResponseBody(connection, framing, rest, give_back)
        return RawResponse(status, fields, stream, connected, ready)

    async def aclose(self) -> None:
        for origin in list(self.idle):
            self._forget(origin)

    # --- connections

    def _take(self, origin: Origin, since: float = -math.inf) -> "Connection | None":
        """One that nobody uses, idle since then at the earliest: the top of the stack was used last."""
        idle = self.idle.get(origin)
        while idle and idle[-1].idle_since >= since:
            connection = idle.pop()
            if connection.quiet():
                return connection
            connection.close()
        return None

    def _forget(self, origin: Origin) -> None:
        for connection in self.idle.pop(origin, ()):
            connection.close()

    def _give_back(self, origin: Origin, connection: "Connection") -> None:
        connection.idle_since = trio.current_time()
        idle = self.idle.setdefault(origin, [])
        idle.append(connection)
        if len(idle) > MAX_IDLE:
            idle.pop(0).close()

    async def _connect(self, origin: Origin) -> "Connection":
        """Raises CannotConnect, and httpx.UnsupportedProtocol."""
        scheme = origin[0]
        if scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(f"http or https is needed, not {scheme!r}")
        try:
            proxy = self.route(origin).proxy
        except BadProxy as error:
            raise _unusable(error, "proxy_failed") from error
        if self._context is None and "https" in (scheme, proxy and proxy.scheme):
            try:
                self._context = await trio.to_thread.run_sync(self._make_context)
            except CannotTrust as error:
                raise _unusable(error, "certificate_not_trusted") from error
            self._context.set_alpn_protocols(["http/1.1"])
        return await connect(origin, proxy, self._context)


def _unusable(error: BadProxy | CannotTrust, code: str) -> CannotConnect:
    """A setting that must be changed first; its message has what is wrong and what to do."""
    what, _, advice = str(error).partition(". ")
    return CannotConnect(what, advice, code, again=False)


async def _sent(connection: Connection, head: bytes, body: bytes) -> bool:
    """Send the request; whether it was taken whole.

    A server may answer before it has read all, 413 or 401, and close: its answer is there to be read.
    """
    try:
        if len(body) <= JOIN_BODY:
            await connection.send(head + body)
        else:
            await connection.send(head)
            await connection.send(body)
    except httpx.WriteError:
        return False
    return True


# --- heads


def _head_of(method: bytes, path: bytes, fields: Fields) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method, path)]
    for name, value in fields:
        if _UNSENDABLE.search(value) or _UNSENDABLE.search(name):
            raise httpx.LocalProtocolError("a header holds what HTTP does not allow")
        lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"\r\n"])


async def _read_head(connection: Connection) -> tuple[int, Fields, bool, bytes]:
    """Status, header fields, whether the connection may live on, and the bytes that came after the head."""
    data = b""
    while True:
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > MAX_HEAD:
                raise httpx.RemoteProtocolError("the response's headers are too long")
            try:
                more = await connection.read()
            except httpx.ReadError as error:
                if data:
                    raise
                raise Unanswered(str(error)) from error
            if not more:
                if data:
                    raise httpx.RemoteProtocolError("the server closed the connection in the middle of its headers")
                raise Unanswered("the server closed the connection without a response")
            data += more
        status, fields, persistent = parse_head(data[:end])
        data = data[end + 4 :]
        if status >= 200:
            return status, fields, persistent, data
        if status == 101:
            raise httpx.RemoteProtocolError("the server changed the protocol unasked")


# --- bodies


class ResponseBody(httpx.AsyncByteStream):
    """The body, a piece for each read. Once it was read to its end, the connection goes back to the idle ones."""

    __slots__ = ("_connection", "_framing", "_give_back", "_rest")

    def __init__(
        self, connection: Connection, framing: Framing, rest: bytes, give_back: Callable[[], None] | None
    ) -> None:
        self._connection: Connection | None = connection
        self._framing = framing
        self._rest = rest
        self._give_back = give_back

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        framing = self._framing
        while not framing.done:
            if self._connection is None:
                raise httpx.StreamClosed
            if self._rest:
                data, self._rest = self._rest, b""
            elif not (data := await self._connection.read()):
                framing.eof()
                break
            if out := framing.feed(data):
                return out
        self._finish()
        raise StopAsyncIteration

    async def push(self, step: Callable[[bytes], bool]) -> bool:
        """Calls ``step`` with each piece as it comes, until it returns False or the body ends; whether it has ended.

        The reactor calls it, so it must neither wait nor block. Called again, or iterated, it goes on where it stopped.
        """
        framing, going_on = self._framing, True

        def ready() -> bool:
            nonlocal going_on
            data = connection.read_now()
            if data is None:
                return True
            if not data:
                framing.eof()
                return False
            out = framing.feed(data)
            going_on = not out or step(out)
            return going_on and not framing.done and not connection.over

        while not framing.done:
            connection = self._open_connection()
            if self._rest or connection.over:
                # No epoll tells of what was read with the head, nor of an end that was read behind the last piece.
                data, self._rest = self._rest or await connection.read(), b""
                if data:
                    out = framing.feed(data)
                    going_on = not out or step(out)
                else:
                    framing.eof()
            else:
                await reactor.watch(connection.fd, ready)
            if not going_on:
                return False
        self._finish()
        return True

    def _open_connection(self) -> Connection:
        if self._connection is None:
            raise httpx.StreamClosed
        return self._connection

    def _finish(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._give_back is None or not self._framing.done or self._framing.rest or self._rest or connection.over:
            connection.close()
        else:
            self._give_back()

    async def aclose(self) -> None:
        self._finish()


class RawResponse(NamedTuple):
    """A response whose head was read. ``body`` must be closed.

    ``connected``: when there was a connection for it, in trio's time; ``ready``: an idle one was there.
    """

    status: int
    fields: Fields
    body: ResponseBody
    connected: float
    ready: bool
