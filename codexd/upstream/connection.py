"""Connections to a server: name resolution, TCP, proxy, TLS, and the messages for failures.

States: TCP (``_open``), the proxy's handshake (``_through``), TLS (``_secure``), ready; a failure or CONNECT_SECONDS
before that closes it. When a read of a ready connection also finds its end, it is ``over``; the next read reports that.
A read is one wait and one ``recv`` on the socket, over TLS too; without trio's streams it costs half as much.
"""

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from typing import cast

import httpx
import trio

from codexd.reasons import reason_of
from codexd.upstream import tunnel
from codexd.upstream.proxies import Origin, Proxy
from codexd.upstream.tunnel import CannotConnect

CONNECT_SECONDS = 6.0
"""Seconds for name, TCP, proxy and TLS together. Two attempts end before the first keep-alive is sent to a client
(15 s), so that a failure can still be reported in the status line."""

READ_SIZE = 64 * 1024

PROBE_SECONDS = 30
"""Seconds of silence after which the kernel sends three probes; it closes the connection after the same time again.
Needed when a router has dropped a connection or the machine was suspended: no other sign arrives."""

_PROBES = {
    "TCP_KEEPIDLE": PROBE_SECONDS,
    "TCP_KEEPALIVE": PROBE_SECONDS,  # the name on macOS
    "TCP_KEEPINTVL": PROBE_SECONDS // 3,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 2 * PROBE_SECONDS * 1000,
}
"""Options of the socket. A system may lack some of them."""


async def connect(origin: Origin, proxy: Proxy | None, context: ssl.SSLContext | None) -> "Connection":
    """Returns a connection that is ready for a request. ``context`` is required for TLS. Raises CannotConnect."""
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
    """Returns a connection to that host and port through the proxy. Raises CannotConnect."""
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
                received = b""  # a reset counts as an end; the handshake raises the error
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
    """Returns TLS inside that connection, which is closed on failure. Raises CannotConnect."""
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
    """Returns a TCP connection to the address of the host that answers first (RFC 8305). Raises CannotConnect."""
    try:
        stream = await trio.open_tcp_stream(host, port)
    except (OSError, UnicodeError) as error:
        # UnicodeError: an invalid host name.
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
            # The kernel may lack the option, or the connection may have ended, which the next read reports.
            with contextlib.suppress(OSError):
                opened.setsockopt(socket.IPPROTO_TCP, option, value)


def _why(error: BaseException) -> str:
    """Returns the first root cause of a failed connection: trio tries several addresses and reports all of them."""
    while (cause := error.__cause__) is not None:
        error = cause
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno).lower()
    return reason_of(error)


# --- messages


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
        f"{what}, which is {tunnel.named(proxy)}", f"Check that it runs, or correct {proxy.source}.", "proxy_failed"
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
            advice = f"If the proxy itself does not use TLS, write http:// in {proxy.source}."
        return CannotConnect(f"the TLS handshake with {host}{via} failed: {why}", advice)
    what = f"the certificate of {host} is not trusted{via}: {error.verify_message}"
    if error.verify_code in _CLOCK:
        advice = "Check the clock of this machine (timedatectl)."
    elif error.verify_code in _WRONG_NAME:
        advice = "Something else answers under that name: check the proxy, the DNS and backend.url."
    else:
        advice = (
            "If a company's proxy inspects TLS, install its CA (update-ca-certificates), or name the CA's file in "
            "backend.ca_file."
        )
    return CannotConnect(what, advice, "certificate_not_trusted", again=False)


_CLOCK = (9, 10)
_WRONG_NAME = (62, 64)
"""X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED; _HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH."""


# --- connections


class Connection:
    """A plain connection. ``read`` returns what one wait brought, empty at the end, or raises ReadError."""

    __slots__ = ("_fd", "_socket", "idle_since", "over")

    def __init__(self, opened: "socket.socket | TlsInTls") -> None:
        self._socket = opened
        self.over = False  # the end was read with other data; epoll does not report it, the next read does
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

    def send_now(self, data: bytes) -> None:
        """Sends a few bytes without waiting. Raises WriteError if the kernel does not take all of them."""
        try:
            sent = self._socket.send(memoryview(data))
        except OSError as error:
            raise httpx.WriteError(_why(error)) from error
        if sent < len(data):
            raise httpx.WriteError("the other side does not read")

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def wrap(self, context: ssl.SSLContext, host: str) -> "ssl.SSLSocket | TlsInTls":
        """Returns TLS on this connection, before its handshake. This object cannot be used any more."""
        # An end without TLS's close_notify may be forged by an attacker, so it is an error.
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
        """Returns the bytes available now; None if there are none yet. Raises ReadError."""
        try:
            return self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            raise httpx.ReadError(_why(error)) from error

    def quiet(self) -> bool:
        """Returns whether nothing, neither an end nor unexpected bytes, has come since the last response."""
        try:
            # Over TLS this also processes the session tickets after a handshake, which are not data.
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
    """A connection over TLS. A read collects all records that one wait brought; a ``recv`` returns only one."""

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
                # It wants to write only after a key update; the next write does that too.
                break
            except OSError as error:
                if found:
                    self.over = True  # the next read raises it again
                    break
                raise httpx.ReadError(_why(error)) from error
            found.append(data)
            size += len(data)
            if not data:
                self.over = True
                break
        if size >= READ_SIZE and isinstance(self._socket, TlsInTls):
            # epoll does not report bytes that are buffered above the socket.
            found += self._socket.buffered()
        if len(found) == 1:
            return found[0]
        return b"".join(found) if found else None


class TlsInTls:
    """TLS inside TLS, for a proxy with an https URL. Has the methods that ``Connection`` uses of a socket."""

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
        """Yields what can be decrypted without reading the outer connection. The next ``recv`` reports an end."""
        with contextlib.suppress(ssl.SSLError):
            while data := self._tls.read(READ_SIZE):
                yield data

    def send(self, data: memoryview) -> int:
        """Returns the bytes sent, after their encrypted form was written. Until then the caller repeats the data."""
        self._flush()
        if not self._owed:
            self._owed = self._tls.write(data)
            self._flush()
        sent, self._owed = self._owed, 0
        return sent

    def close(self) -> None:
        self._outer.close()

    def _flush(self) -> None:
        """Writes all encrypted bytes. Raises SSLWantWriteError if not all could be written."""
        while True:
            if not self._unsent:
                self._unsent = memoryview(self._out.read())
            if not self._unsent:
                return
            self._unsent = self._unsent[self._outer.send(self._unsent) :]

    def _fill(self) -> None:
        """Reads encrypted bytes. Raises SSLWantReadError if there are none."""
        data = self._outer.recv(READ_SIZE)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()
