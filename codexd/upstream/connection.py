"""A connection to a server: its name, its addresses, a proxy before it, TLS in it, and what is said where it fails.

All of it is on the kernel's own sockets. A read is one wait and one ``recv``, over TLS too, without a stream of trio's
between, which halved its cost.
"""

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from typing import cast

import httpx
import trio

from codexd.upstream import tunnel
from codexd.upstream.proxies import Origin, Proxy
from codexd.upstream.tunnel import CannotConnect

CONNECT_SECONDS = 6.0
"""For a connection: name, addresses, proxy and TLS together. Tried twice, it still ends before the first keep-alive is
sent to a client (15 s), so that the status line can still say that it failed."""

READ_SIZE = 64 * 1024

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


async def connect(origin: Origin, proxy: Proxy | None, context: ssl.SSLContext | None) -> "Connection":
    """A connection that is ready for a request; ``context`` where TLS is spoken. Raises CannotConnect."""
    scheme, host, port = origin
    try:
        with trio.fail_after(CONNECT_SECONDS):
            if proxy is None:
                connection = await _open(host, port)
            else:
                connection = await _through(proxy, host, port, context)
            return connection if scheme == "http" else await _secure(connection, host, proxy, context)
    except trio.TooSlowError as error:
        raise _too_slow(host, port, proxy) from error


async def _through(proxy: Proxy, host: str, port: int, context: ssl.SSLContext | None) -> "Connection":
    """A connection to that host and port, made by the proxy."""
    connection = await _open(proxy.host, proxy.port, proxy)
    if proxy.scheme == "https":
        connection = await _secure(connection, proxy.host, proxy, context)
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


async def _secure(
    connection: "Connection", host: str, proxy: Proxy | None, context: ssl.SSLContext | None
) -> "Connection":
    """TLS inside that connection, which is closed when there is none to be had."""
    assert context is not None  # noqa: S101 - the transport makes it before a connection with TLS
    try:
        tls = connection.wrap(context, host)
        connection = TlsConnection(tls)
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


async def _open(host: str, port: int, proxy: Proxy | None = None) -> "Connection":
    """A connection of TCP, to whichever of the host's addresses answers first (RFC 8305). Raises CannotConnect."""
    try:
        stream = await trio.open_tcp_stream(host, port)
    except (OSError, UnicodeError) as error:
        # The second is a name that cannot be one.
        raise _unreachable(error, host, port, proxy) from error
    raw = socket.socket(fileno=stream.socket.detach())
    raw.setblocking(False)
    _watch_over(raw)
    return Connection(raw)


def _watch_over(opened: socket.socket) -> None:
    with contextlib.suppress(OSError):
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if (option := getattr(socket, name, None)) is not None:
            # A kernel may know the name alone, and a connection may have ended already: the next read tells.
            with contextlib.suppress(OSError):
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


# --- what is said


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


# --- connections


class Connection:
    """One connection, plain. ``read`` gives what one wait brought, and nothing at the end."""

    __slots__ = ("_fd", "_socket", "idle_since", "over")

    def __init__(self, opened: "socket.socket | TlsInTls") -> None:
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

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def wrap(self, context: ssl.SSLContext, host: str) -> "ssl.SSLSocket | TlsInTls":
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
        if not self.closed:
            trio.lowlevel.notify_closing(self._fd)
            self._socket.close()


class TlsConnection(Connection):
    """The same over TLS, where one wait may bring several records, and the last of them is not the last of the data."""

    __slots__ = ()

    def wrap(self, context: ssl.SSLContext, host: str) -> "TlsInTls":
        return TlsInTls(cast("ssl.SSLSocket", self._socket), context, host)

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
        if size >= READ_SIZE and isinstance(self._socket, TlsInTls):
            # No epoll tells of what is buffered above the kernel's socket.
            found += self._socket.buffered()
        if len(found) == 1:
            return found[0]
        return b"".join(found) if found else None


class TlsInTls:
    """TLS inside of TLS, as behind a proxy that speaks TLS itself: what ``Connection`` uses of a socket."""

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

    def buffered(self) -> Iterator[bytes]:
        """What can be decrypted without the outer connection. An end is for the next ``recv``, which meets it again."""
        with contextlib.suppress(ssl.SSLError):
            while data := self._tls.read(READ_SIZE):
                yield data

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
