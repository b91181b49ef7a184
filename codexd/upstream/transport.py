"""HTTP/1.1 to ChatGPT: an httpx transport on plain sockets.

    connection | left by                                                                    | to
    -----------|----------------------------------------------------------------------------|--------
    none       | ``connect`` succeeds                                                       | in use
    in use     | the body was read to its end, and the connection persists                  | idle
    in use     | a failure, cancellation, or a body not read to its end                     | closed
    idle       | the next request (the connection used last comes first)                    | in use
    idle       | ``sweep`` or a request finds it ended; more than MAX_IDLE; ``aclose``      | closed

httpx's own transport is slow for this use. Measured on the same streams, it has a deadline and a scheduler pass for
each read, h11 for each chunk, and checks every open connection on every request (five times the cost with 1000 open
streams). Here a read is one wait and one ``recv``, and all of its chunks are decoded at once.

Only connecting has a deadline; callers set one for reads. HTTP/2 is not used, because one connection allows 100 streams
and further ones wait without an error. Cookies, redirects and authentication are left to httpx. ``connection`` opens
connections and ``http1`` parses responses.
"""

import contextlib
import math
import re
import ssl
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import httpx
import trio

from codexd.lowlevel import reactor
from codexd.reasons import quoted
from codexd.system import certificates
from codexd.system.certificates import CannotTrust
from codexd.upstream.connection import Connection, connect
from codexd.upstream.http1 import MAX_HEAD, Fields, Framing, framing_of, parse_head
from codexd.upstream.proxies import BadProxy, Origin, ProxyRoute
from codexd.upstream.tunnel import CannotConnect

KEEP_ALIVE = 90.0
"""Maximum idle seconds of a connection that is reused for a request which must not be sent twice."""

MAX_IDLE = 100
"""Maximum number of idle connections for one origin."""

STALE_SECONDS = 1.0
"""Seconds in which a reused connection that had ended before the request reports its end."""

JOIN_BODY = 64 * 1024
"""A request body up to this size is copied and sent in one write with its head."""

_USUAL = (200, 304)

_UNSENDABLE = re.compile(rb"[\x00\r\n]")


class Unanswered(httpx.RemoteProtocolError):
    """The connection ended before the first byte of a response."""


class RequestTarget(NamedTuple):
    """Destination of a request: origin of the connection, request target, Host header."""

    origin: Origin
    path: bytes
    host: bytes


def origin_of(url: httpx.URL) -> Origin:
    """Returns the origin of a URL, with the host in its IDNA form, which ``url.host`` would decode."""
    return url.scheme, url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)


def target_of(url: httpx.URL) -> RequestTarget:
    return RequestTarget(origin_of(url), url.raw_path, url.netloc)


def _directly(_: Origin) -> ProxyRoute:
    return ProxyRoute(None, "")


class Transport(httpx.AsyncBaseTransport):
    """An httpx transport with a stack of idle connections for each origin.

    ``context`` makes the TLS context, in a thread, for the first connection with TLS; it may raise CannotTrust.
    ``route`` selects the proxy for an origin; it may raise BadProxy.
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
        """Sets another function for the TLS context, used from the next connection on."""
        self._make_context, self._context = context, None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request. Raises httpx's exceptions. The caller must close the response's stream."""
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
        """Sends a POST without httpx's objects. Raises httpx's exceptions. The caller must close the body.

        An idle connection of any age is reused, and may end just then. If it ends without a response within
        STALE_SECONDS and ``may_resend`` returns True, the request is sent once more on a new connection.
        """
        length = b"content-length", b"%d" % len(body)
        head = _head_of(b"POST", target.path, [(b"host", target.host), *fields, length])
        if (connection := self._take(target.origin)) is not None:
            began = trio.current_time()
            try:
                return await self._exchange(connection, "POST", target.origin, head, body, ready=True)
            except Unanswered:
                # A server that closes later may have started to process the request.
                if trio.current_time() > began + STALE_SECONDS or not may_resend():
                    raise
            # The cause, such as a changed network or a suspended machine, has probably ended the other idle ones too.
            self._forget(target.origin)
        connection = await self._connect(target.origin)
        return await self._exchange(connection, "POST", target.origin, head, body, ready=False)

    async def upgrade(self, target: RequestTarget, fields: Fields) -> "RawResponse | Upgraded":
        """Sends a GET whose ``fields`` ask for another protocol; returns the connection if the server agreed (101).

        Otherwise it returns the response, whose body the caller must close. Raises httpx's exceptions. An idle
        connection may end just then; the request is sent again on a new one, because it has no other effect.
        """
        head = _head_of(b"GET", target.path, [(b"host", target.host), *fields])
        if (connection := self._take(target.origin)) is not None:
            with contextlib.suppress(Unanswered):
                return await self._upgrade(connection, target.origin, head, ready=True)
        connection = await self._connect(target.origin)
        return await self._upgrade(connection, target.origin, head, ready=False)

    async def warm(self, origin: Origin) -> None:
        """Opens an idle connection to the origin if there is none. Raises httpx's exceptions."""
        if not self.idle.get(origin):
            self._give_back(origin, await self._connect(origin))

    def sweep(self) -> None:
        """Closes idle connections that the other side has closed."""
        for origin, idle in self.idle.items():
            quiet = {connection: connection.quiet() for connection in idle}
            self.idle[origin] = [connection for connection in idle if quiet[connection]]
            for connection in idle:
                if not quiet[connection]:
                    connection.close()

    async def _upgrade(
        self, connection: Connection, origin: Origin, head: bytes, *, ready: bool
    ) -> "RawResponse | Upgraded":
        connected = trio.current_time()
        try:
            await _sent(connection, head, b"")
            status, fields, _, rest = await _read_head(connection, upgrading=True)
            if status == 101:
                return Upgraded(fields, connection, rest, connected, ready)
            return self._received(connection, "GET", origin, (status, fields, False, rest), connected, ready)
        except BaseException:
            connection.close()
            raise

    async def _exchange(
        self, connection: "Connection", method: str, origin: Origin, head: bytes, body: bytes, *, ready: bool
    ) -> "RawResponse":
        connected = trio.current_time()
        try:
            sent = await _sent(connection, head, body)
            status, fields, keep, rest = await _read_head(connection)
            return self._received(connection, method, origin, (status, fields, keep and sent, rest), connected, ready)
        except BaseException:
            connection.close()
            raise

    def _received(
        self,
        connection: Connection,
        method: str,
        origin: Origin,
        head: "tuple[int, Fields, bool, bytes]",
        connected: float,
        ready: bool,
    ) -> "RawResponse":
        """Returns the response with this head (of ``_read_head``). Raises RemoteProtocolError."""
        status, fields, keep, rest = head
        # After anything unusual, such as an error of a proxy on the way, nothing else is asked on the connection.
        framing, keep = framing_of(method, status, fields, keep=keep and status in _USUAL)
        give_back = (lambda: self._give_back(origin, connection)) if keep else None
        return RawResponse(status, fields, ResponseBody(connection, framing, rest, give_back), connected, ready)

    async def aclose(self) -> None:
        for origin in list(self.idle):
            self._forget(origin)

    # --- connections

    def _take(self, origin: Origin, since: float = -math.inf) -> "Connection | None":
        """Returns an idle connection that was used after ``since``, the one used last first, or None."""
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
        """Opens a connection. Raises CannotConnect and httpx.UnsupportedProtocol."""
        scheme = origin[0]
        if scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(f"use an http or https URL, not {quoted(scheme)}")
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
    """Returns the error for an invalid setting, whose message says what is wrong and what to do."""
    what, _, advice = str(error).partition(". ")
    return CannotConnect(what, advice, code, again=False)


async def _sent(connection: Connection, head: bytes, body: bytes) -> bool:
    """Sends the request; returns whether all of it was written.

    False is not an error: a server may answer early, such as with 413 or 401, and close. Its answer can still be read.
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
    if _UNSENDABLE.search(b"".join([part for field in fields for part in field])) is not None:
        raise httpx.LocalProtocolError("a header contains invalid characters")
    lines = [b"%b: %b\r\n" % field for field in fields]
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, path, b"".join(lines))


async def _read_head(connection: Connection, *, upgrading: bool = False) -> tuple[int, Fields, bool, bytes]:
    """Returns status, header fields, whether the connection persists, and the bytes after the head.

    ``upgrading``: 101 is a possible answer.
    """
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
        if status >= 200 or (status == 101 and upgrading):
            return status, fields, persistent, data
        if status == 101:
            raise httpx.RemoteProtocolError("the server switched protocols without a request (101)")


# --- bodies


class ResponseBody(httpx.AsyncByteStream):
    """A response body, one piece per read. When it is read to its end, its connection becomes idle."""

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
        """Calls ``step`` with each piece until it returns False or the body ends; returns whether the body ended.

        The reactor calls ``step``, which must neither wait nor block. Another call, or iteration, continues there.
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
                # epoll does not report bytes that were read with the head, or an end that was read with the last piece.
                data, self._rest = self._rest or await connection.read(), b""
                if data:
                    out = framing.feed(data)
                    going_on = not out or step(out)
                else:
                    framing.eof()
            else:
                await reactor.watch(connection.fd, ready)
            if not (going_on or framing.done):
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

    ``connected``: time (trio's clock) when it had a connection. ``ready``: that was an idle one.
    """

    status: int
    fields: Fields
    body: ResponseBody
    connected: float
    ready: bool


class Upgraded(NamedTuple):
    """A connection that speaks another protocol now. ``rest``: what was read behind the head of the 101."""

    fields: Fields
    connection: Connection
    rest: bytes
    connected: float
    ready: bool
