"""Handshakes with proxies: HTTP CONNECT (RFC 9110 section 9.3.6) and SOCKS5 (RFC 1928, RFC 1929). No I/O.

Both are generators that yield bytes to send and are sent the bytes received, empty at the connection's end. When one
returns, the connection leads to the requested host.
"""

import base64
import http
import ipaddress
from collections.abc import Generator

import httpx

from codexd.upstream.http1 import MAX_HEAD, Fields, parse_head
from codexd.upstream.proxies import Proxy

Handshake = Generator[bytes, bytes, None]


class CannotConnect(httpx.ConnectError):
    """A connection failed. ``what`` happened, ``advice`` says what to do; ``code`` is for the API's error object."""

    def __init__(self, what: str, advice: str, code: str = "upstream_unreachable", *, again: bool = True) -> None:
        super().__init__(f"{what}. {advice}")
        self.what = what
        self.advice = advice
        self.code = code
        self.again = again
        """Whether another attempt may succeed without a change of settings."""


def named(proxy: Proxy) -> str:
    return f"the proxy {proxy.address} ({proxy.source})"


def handshake(proxy: Proxy, host: str, port: int) -> Handshake:
    """Returns the handshake that connects the proxy to that host and port. It raises CannotConnect."""
    return (_socks if proxy.scheme.startswith("socks") else _connect)(proxy, host, port)


# --- CONNECT


def _connect(proxy: Proxy, host: str, port: int) -> Handshake:
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.username is not None:
        secret = base64.b64encode(proxy.username + b":" + proxy.password).decode()
        lines.append(f"Proxy-Authorization: Basic {secret}")
    received = yield "\r\n".join([*lines, "", ""]).encode("ascii")
    data = received
    while True:
        while (end := data.find(b"\r\n\r\n")) < 0:
            if not received or len(data) > MAX_HEAD:
                raise _no_answer(proxy, data)
            received = yield b""
            data += received
        try:
            status, fields, _ = parse_head(data[:end])
        except httpx.RemoteProtocolError as error:
            raise _no_answer(proxy, data) from error
        data = data[end + 4 :]
        if status >= 200:
            break
    if status >= 300:
        raise _refused(proxy, authority, status, fields)
    if data:
        raise _no_answer(proxy, data)


def _no_answer(proxy: Proxy, data: bytes) -> CannotConnect:
    what = "closed the connection" if not data else "does not answer as an HTTP proxy does"
    advice = f"Check that {proxy.source} names an HTTP proxy and its port; for SOCKS write socks5://."
    return CannotConnect(f"{named(proxy)} {what}", advice, "proxy_failed")


def _refused(proxy: Proxy, authority: str, status: int, fields: Fields) -> CannotConnect:
    if status == 407:
        return _unauthorized(proxy, fields)
    phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else ""
    if status < 500:
        what = f"refuses to connect to {authority} ({f'{status} {phrase}'.strip()})"
        advice = "Ask its administrator to allow chatgpt.com and auth.openai.com."
    else:
        what = f"could not connect to {authority} ({f'{status} {phrase}'.strip()})"
        advice = "Try again later; the proxy's log says why."
    return CannotConnect(f"{named(proxy)} {what}", advice, "proxy_failed", again=status >= 500)


def _unauthorized(proxy: Proxy, fields: Fields) -> CannotConnect:
    offered = [value.decode("latin-1") for name, value in fields if name == b"proxy-authenticate"]
    schemes = {part.split()[0].lower() for value in offered for part in [*value.split(","), value] if part.strip()}
    if offered and "basic" not in schemes:
        wanted = ", ".join(value.split()[0] for value in offered if value.strip())
        what = f"asks for {wanted} authentication (407), but codexd supports only Basic"
        advice = f"Run a helper such as cntlm or px, and set {proxy.source} to the helper's address."
    elif proxy.username is None:
        what = "asks for a user name and a password (407)"
        advice = f"Put them in {proxy.source}: {_form(proxy)}."
    else:
        what = "does not accept the user name and the password (407)"
        advice = f"Correct them in {proxy.source}: {_form(proxy)}."
    return CannotConnect(f"{named(proxy)} {what}", advice, "proxy_failed", again=False)


# --- SOCKS5

_SOCKS_REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "no answer in time",
}
_BY_ADDRESS = {1: 4, 4: 16}
"""Bytes of the address in a reply, by its type. A name (3) has a length byte before it."""


def _socks(proxy: Proxy, host: str, port: int) -> Handshake:
    """SOCKS5. The proxy resolves the name, because behind a proxy the local resolver often cannot.

    The library socksio was rejected: it needs replies in one piece and has had no release since 2020.
    """
    reader = _Reader(proxy)
    method = 0 if proxy.username is None else 2
    version, chosen = yield from reader.read(bytes([5, 1, method]), 2)
    if version != 5:
        raise reader.alien()
    if chosen != method:
        raise _no_credentials(proxy)
    if proxy.username is not None:
        if max(len(proxy.username), len(proxy.password)) > 255:
            advice = f"Shorten the user name and the password in {proxy.source}."
            raise CannotConnect(
                f"{named(proxy)} accepts a user name and a password of at most 255 bytes each",
                advice,
                "proxy_failed",
                again=False,
            )
        secret = b"".join(bytes([len(part)]) + part for part in (proxy.username, proxy.password))
        _, status = yield from reader.read(b"\x01" + secret, 2)
        if status != 0:
            raise _no_credentials(proxy)
    reply = yield from reader.read(b"\x05\x01\x00" + _socks_address(host) + port.to_bytes(2, "big"), 4)
    if reply[0] != 5 or reply[3] not in (1, 3, 4):
        raise reader.alien()
    length = _BY_ADDRESS.get(reply[3]) or (yield from reader.read(b"", 1))[0]
    yield from reader.read(b"", length + 2)
    if reply[1] != 0:
        why = _SOCKS_REPLIES.get(reply[1], f"code {reply[1]}")
        what = f"{named(proxy)} could not connect to {host}:{port} ({why})"
        if reply[1] == 2:
            advice = "Ask its administrator to allow chatgpt.com and auth.openai.com."
        else:
            advice = "Try again later; the proxy's log says why."
        raise CannotConnect(what, advice, "proxy_failed", again=reply[1] != 2)
    if reader.rest:
        raise reader.alien()


def _socks_address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("ascii")[:255]  # DNS names are shorter; a longer one is not found anyway
        return bytes([3, len(name)]) + name
    return bytes([1 if address.version == 4 else 4]) + address.packed


class _Reader:
    """Reads exact numbers of bytes from pieces of any size."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.rest = b""

    def read(self, send: bytes, size: int) -> Generator[bytes, bytes, bytes]:
        while send or len(self.rest) < size:
            received = yield send
            send = b""
            if not received:
                raise self._failed("closed the connection")
            self.rest += received
        found, self.rest = self.rest[:size], self.rest[size:]
        return found

    def alien(self) -> CannotConnect:
        return self._failed("does not answer as a SOCKS5 proxy does")

    def _failed(self, what: str) -> CannotConnect:
        advice = f"Check that {self._proxy.source} names a SOCKS5 proxy and its port; for an HTTP proxy write http://."
        return CannotConnect(f"{named(self._proxy)} {what}", advice, "proxy_failed")


def _no_credentials(proxy: Proxy) -> CannotConnect:
    if proxy.username is None:
        what, verb = "asks for a user name and a password", "Put them in"
    else:
        what, verb = "does not accept the user name and the password", "Correct them in"
    advice = f"{verb} {proxy.source}: {_form(proxy)}."
    return CannotConnect(f"{named(proxy)} {what}", advice, "proxy_failed", again=False)


def _form(proxy: Proxy) -> str:
    return f"{proxy.scheme}://USER:PASSWORD@{proxy.address.partition('://')[2]}"
