"""HTTP/1.1 towards ChatGPT: an httpx transport on the kernel's own sockets.

httpx's own transport is right and slow for this use. Measured beside it on the same streams: a deadline and a scheduler
pass for each read, h11 for each chunk, a pool that looks at every open connection on every request (with 1000 streams
open a request cost five times as much). Here one read is one wait and one ``recv``, all of its chunks are taken apart
at once, and an idle connection is the top of a stack. TLS reads and writes on the kernel's socket too, without a
stream of trio's between, which halved its cost.

Nothing here has a deadline but connecting: whoever reads has one. HTTP/1.1 alone, because over one HTTP/2 connection
only 100 streams run and the others wait without an error. A proxy of the environment is asked here too, so that behind
one nothing else is slower. Cookies, redirects and authentication are left to httpx.

What a response's bytes mean is in ``framing``, what is said to a proxy in ``tunnel``.
"""

import math
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, cast

import httpx
import trio

from codexd import reactor, trust, tunnel
from codexd.framing import MAX_HEAD, Fields, Framing, framing_of, parse_head
from codexd.proxies import BadProxy, Origin, Proxy, Route
from codexd.trust import CannotTrust
from codexd.tunnel import CannotConnect

CONNECT_SECONDS = 6.0
"""For a connection: name, addresses, proxy and TLS together. Tried twice, it still ends before the first keep-alive is
sent to a client (15 s), so that the status line can still say that it failed."""

READ_SIZE = 64 * 1024
KEEP_ALIVE = 90.0
"""Seconds for which an idle connection may be used again by a request that must not be sent twice."""

MAX_IDLE = 100
"""Idle connections that are kept for one origin."""

STALE_SECONDS = 1.0
"""In which a connection that had ended before it was used says so."""

PROBE_SECONDS = 30
"""After so long a silence the kernel asks whether the other side is there, three times, and gives up after as long
again: a router that forgets a connection, or a machine that slept, leaves no other sign."""

_PROBES = {
    "TCP_KEEPIDLE": PROBE_SECONDS,
    "TCP_KEEPALIVE": PROBE_SECONDS,  # macOS's name for it
    "TCP_KEEPINTVL": PROBE_SECONDS // 3,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 2 * PROBE_SECONDS * 1000,
}
"""The options, where the system has them."""

JOIN_BODY = 64 * 1024
"""A request body up to this size goes out in one write with its head; a larger one is not copied for that."""

_UNSENDABLE = re.compile(rb"[\x00\r\n]")


class Unanswered(httpx.RemoteProtocolError):
    """The connection ended before the first byte of an answer."""


class Target(NamedTuple):
    """Where a request goes: connection, request target, Host header."""

    origin: Origin
    path: bytes
    host: bytes


def origin_of(url: httpx.URL) -> Origin:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def target_of(url: httpx.URL) -> Target:
    return Target(origin_of(url), url.raw_path, url.netloc)


def _directly(_: Origin) -> Route:
    return Route(None, "")


class Transport(httpx.AsyncBaseTransport):
    """``context`` makes the TLS context, in a thread, when the first connection needs it; it may raise CannotTrust.

    ``route`` says through which proxy an origin is reached; it may raise BadProxy.
    """

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext] = lambda: trust.context(trust.store({}, None)),
        route: Callable[[Origin], Route] = _directly,
    ) -> None:
        self._make_context = context
        self.route = route
        self._context: ssl.SSLContext | None = None
        self._idle: dict[Origin, list[_Connection]] = {}

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

    async def post(self, target: Target, fields: Fields, body: bytes, may_resend: Callable[[], bool]) -> "Received":
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
        if not self._idle.get(origin):
            self._give_back(origin, await self._connect(origin))

    def sweep(self) -> None:
        """Close the idle connections that the other side has closed."""
        for origin, idle in self._idle.items():
            quiet = {connection: connection.quiet() for connection in idle}
            self._idle[origin] = [connection for connection in idle if quiet[connection]]
            for connection in idle:
                if not quiet[connection]:
                    connection.close()

    async def _exchange(
        self, connection: "_Connection", method: str, origin: Origin, head: bytes, body: bytes, *, ready: bool
    ) -> "Received":
        connected = trio.current_time()
        try:
            sent = await _sent(connection, head, body)
            status, fields, keep, rest = await _read_head(connection)
            keep = keep and sent
            framing, keep = framing_of(method, status, fields, keep=keep)
        except BaseException:
            connection.close()
            raise
        stream = Body(connection, framing, rest, (lambda: self._give_back(origin, connection)) if keep else None)
        return Received(status, fields, stream, connected, ready)

    async def aclose(self) -> None:
        for origin in list(self._idle):
            self._forget(origin)

    # --- connections

    def _take(self, origin: Origin, since: float = -math.inf) -> "_Connection | None":
        """One that nobody uses, idle since then at the earliest: the top of the stack was used last."""
        idle = self._idle.get(origin)
        while idle and idle[-1].idle_since >= since:
            connection = idle.pop()
            if connection.quiet():
                return connection
            connection.close()
        return None

    def _forget(self, origin: Origin) -> None:
        for connection in self._idle.pop(origin, ()):
            connection.close()

    def _give_back(self, origin: Origin, connection: "_Connection") -> None:
        connection.idle_since = trio.current_time()
        idle = self._idle.setdefault(origin, [])
        idle.append(connection)
        if len(idle) > MAX_IDLE:
            idle.pop(0).close()

    async def _connect(self, origin: Origin) -> "_Connection":
        """Raises CannotConnect, and httpx.UnsupportedProtocol."""
        scheme, host, port = origin
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
        try:
            with trio.fail_after(CONNECT_SECONDS):
                if proxy is None:
                    connection = await _open(host, port)
                else:
                    connection = await self._through(proxy, host, port)
                return connection if scheme == "http" else await self._secure(connection, host, proxy)
        except trio.TooSlowError as error:
            raise _too_slow(host, port, proxy) from error

    async def _through(self, proxy: Proxy, host: str, port: int) -> "_Connection":
        """A connection to that host and port, made by the proxy."""
        connection = await _open(proxy.host, proxy.port, proxy)
        if proxy.scheme == "https":
            connection = await self._secure(connection, proxy.host, proxy)
        try:
            steps = tunnel.handshake(proxy, host, port)
            send = next(steps)
            while True:
                try:
                    await connection.send(send)
                    received = await connection.read()
                except (httpx.ReadError, httpx.WriteError):
                    received = b""  # reset: an end like any other, and what it means is the handshake's to say
                try:
                    send = steps.send(received)
                except StopIteration:
                    return connection
        except BaseException:
            connection.close()
            raise

    async def _secure(self, connection: "_Connection", host: str, proxy: Proxy | None) -> "_Connection":
        """TLS inside that connection, which is closed when there is none to be had."""
        assert self._context is not None  # noqa: S101 - _connect has made it
        try:
            tls = connection.wrap(self._context, host)
            connection = _TlsConnection(tls)
            while True:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    await trio.lowlevel.wait_readable(connection.fd)
                except ssl.SSLWantWriteError:
                    await trio.lowlevel.wait_writable(connection.fd)
                else:
                    return connection
        except (OSError, ValueError) as error:
            connection.close()
            raise _insecure(error, host, proxy) from error
        except BaseException:
            connection.close()
            raise


async def _open(host: str, port: int, proxy: Proxy | None = None) -> "_Connection":
    """A connection of TCP, to whichever of the host's addresses answers first (RFC 8305). Raises CannotConnect."""
    try:
        stream = await trio.open_tcp_stream(host, port)
    except (OSError, UnicodeError) as error:
        # The second is a name that cannot be one.
        raise _unreachable(error, host, port, proxy) from error
    raw = socket.socket(fileno=stream.socket.detach())
    raw.setblocking(False)
    _watch_over(raw)
    return _Connection(raw)


def _unusable(error: BadProxy | CannotTrust, code: str) -> CannotConnect:
    """A setting that must be changed first; its message has what is wrong and what to do."""
    what, _, advice = str(error).partition(". ")
    return CannotConnect(what, advice, code, again=False)


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _unreachable(error: OSError | UnicodeError, host: str, port: int, proxy: Proxy | None) -> CannotConnect:
    if isinstance(error, socket.gaierror | UnicodeError):
        what = f"the name {host} cannot be resolved"
        advice = "Check the network, and the name servers in /etc/resolv.conf."
    else:
        what = f"no connection to {_place(host, port)}: {_why(error)}"
        advice = "Check the network and the firewall; behind a company's proxy, set $HTTPS_PROXY."
    if proxy is None:
        return CannotConnect(what, advice)
    return CannotConnect(
        f"{what}; it is {tunnel.named(proxy)}", f"Check that it runs, or correct {proxy.source}.", "proxy_failed"
    )


def _too_slow(host: str, port: int, proxy: Proxy | None) -> CannotConnect:
    what = f"no connection to {_place(host, port)} within {CONNECT_SECONDS:g} seconds"
    if proxy is not None:
        advice = f"Check that the proxy runs and reaches the internet, or correct {proxy.source}."
        return CannotConnect(f"{what}, through {tunnel.named(proxy)}", advice, "proxy_failed")
    return CannotConnect(what, "Check for a firewall on the way; behind a company's proxy, set $HTTPS_PROXY.")


def _insecure(error: OSError | ValueError, host: str, proxy: Proxy | None) -> CannotConnect:
    via = "" if proxy is None else f", through {tunnel.named(proxy)}"
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = getattr(error, "reason", None)
        why = reason.lower().replace("_", " ") if isinstance(reason, str) else _why(error)
        advice = "Check whether something on the way blocks or changes TLS."
        if proxy is not None and proxy.scheme == "https" and host == proxy.host:
            advice = f"For a proxy without TLS of its own write http:// in {proxy.source}."
        return CannotConnect(f"no TLS with {host}{via}: {why}", advice)
    what = f"the certificate of {host} is not trusted{via}: {error.verify_message}"
    if error.verify_code in _CLOCK:
        advice = "Check the clock of this machine (timedatectl)."
    elif error.verify_code in _WRONG_NAME:
        advice = "Something else answers under that name: check the proxy, the DNS and backend.url."
    else:
        advice = (
            "If a company's proxy opens TLS, install its CA (update-ca-certificates), or name the CA's file in "
            "backend.ca_file."
        )
    return CannotConnect(what, advice, "certificate_not_trusted", again=False)


_CLOCK = (9, 10)
_WRONG_NAME = (62, 64)
"""X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED; _HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH."""


def _watch_over(opened: socket.socket) -> None:
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if (option := getattr(socket, name, None)) is not None:
            opened.setsockopt(socket.IPPROTO_TCP, option, value)


def _why(error: BaseException) -> str:
    """What is at the bottom of a failed connection: trio tries several addresses and reports all of them."""
    while (cause := error.__cause__) is not None:
        error = cause
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


class _Connection:
    """One connection, plain. ``read`` gives what one wait brought, and nothing at the end."""

    __slots__ = ("_fd", "_socket", "idle_since", "over")

    def __init__(self, opened: "socket.socket | _TlsInTls") -> None:
        self._socket = opened
        self.over = False  # the end has come behind what was read: only the next read tells, and no epoll
        self._fd = opened.fileno()
        self.idle_since = 0.0

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await trio.lowlevel.wait_writable(self._fd)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._fd)
            except OSError as error:
                raise httpx.WriteError(_why(error)) from error

    @property
    def fd(self) -> int:
        return self._fd

    def wrap(self, context: ssl.SSLContext, host: str) -> "ssl.SSLSocket | _TlsInTls":
        """TLS on this connection, whose handshake is still to be made; this is of no more use."""
        # An end that the other side did not sign may be anybody's, so it is told, and not taken for the real one.
        return context.wrap_socket(
            cast("socket.socket", self._socket),
            server_hostname=host,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )

    async def read(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            if (data := self.read_now()) is not None:
                return data

    def read_now(self) -> bytes | None:
        """What is there already; None when that is nothing. Raises ReadError."""
        try:
            return self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            raise httpx.ReadError(_why(error)) from error

    def quiet(self) -> bool:
        """Whether nothing has come since the last answer: neither its end nor what nobody asked for."""
        try:
            # Over TLS this takes in what is no data: the tickets that follow a handshake.
            self._socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._fd)
            self._socket.close()


class _TlsConnection(_Connection):
    """The same over TLS, where one wait may bring several records, and the last of them is not the last of the data."""

    __slots__ = ()

    def wrap(self, context: ssl.SSLContext, host: str) -> "_TlsInTls":
        return _TlsInTls(cast("ssl.SSLSocket", self._socket), context, host)

    async def read(self) -> bytes:
        while True:
            if (data := self.read_now()) is not None:
                await trio.lowlevel.checkpoint()
                return data
            await trio.lowlevel.wait_readable(self._fd)

    def read_now(self) -> bytes | None:
        found: list[bytes] = []
        size = 0
        while size < READ_SIZE:
            try:
                data = self._socket.recv(READ_SIZE)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                # It wants to write only to answer a change of keys, which the next write does too.
                break
            except OSError as error:
                if found:
                    self.over = True  # the next read meets it again
                    break
                raise httpx.ReadError(_why(error)) from error
            found.append(data)
            size += len(data)
            if not data:
                self.over = True
                break
        if len(found) == 1:
            return found[0]
        return b"".join(found) if found else None


class _TlsInTls:
    """TLS inside of TLS, as behind a proxy that speaks TLS itself: what ``_Connection`` uses of a socket."""

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, host: str) -> None:
        self._outer = outer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._unsent = memoryview(b"")
        self._owed = 0

    def fileno(self) -> int:
        return self._outer.fileno()

    def do_handshake(self) -> None:
        while True:
            self._flush()
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                return

    def recv(self, size: int) -> bytes:
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()

    def send(self, data: memoryview) -> int:
        """What was encrypted is told as sent only once it has gone out: until then the same data is given again."""
        self._flush()
        if not self._owed:
            self._owed = self._tls.write(data)
            self._flush()
        sent, self._owed = self._owed, 0
        return sent

    def close(self) -> None:
        self._outer.close()

    def _flush(self) -> None:
        """Raises SSLWantWriteError while not all has gone out."""
        while True:
            if not self._unsent:
                self._unsent = memoryview(self._out.read())
            if not self._unsent:
                return
            self._unsent = self._unsent[self._outer.send(self._unsent) :]

    def _fill(self) -> None:
        """Raises SSLWantReadError when nothing is there."""
        data = self._outer.recv(READ_SIZE)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()


async def _sent(connection: _Connection, head: bytes, body: bytes) -> bool:
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


async def _read_head(connection: _Connection) -> tuple[int, Fields, bool, bytes]:
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


class Body(httpx.AsyncByteStream):
    """The body, a piece for each read. Once it was read to its end, the connection goes back to the idle ones."""

    __slots__ = ("_connection", "_framing", "_give_back", "_rest")

    def __init__(
        self, connection: _Connection, framing: Framing, rest: bytes, give_back: Callable[[], None] | None
    ) -> None:
        self._connection: _Connection | None = connection
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

    async def push(self, step: Callable[[bytes], bool]) -> None:
        """Call ``step`` with each piece as it comes, until it returns False or the body ends.

        It is called by ``reactor``, so it must neither wait nor block. Iterating goes on where this has stopped.
        """
        connection, framing = self._connection, self._framing
        if connection is None or framing.done or self._rest or connection.over:
            return  # what is here already is for whoever iterates

        def ready() -> bool:
            data = connection.read_now()
            if data is None:
                return True
            if not data:
                framing.eof()
                return False
            out = framing.feed(data)
            return (not out or step(out)) and not framing.done and not connection.over

        await reactor.watch(connection.fd, ready)

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


class Received(NamedTuple):
    """A response whose head was read. ``body`` must be closed.

    ``connected``: when there was a connection for it, in trio's time; ``ready``: an idle one was there.
    """

    status: int
    fields: Fields
    body: Body
    connected: float
    ready: bool
