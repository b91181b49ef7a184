"""Selection of the proxy for a connection from environment variables. Pure: the environment is an argument.

The variables are curl's: ``https_proxy`` or ``http_proxy`` by the scheme of the address, then ``all_proxy``, each also
in capitals, and ``no_proxy`` for direct connections. Users write them by hand, so parsing is lenient: a password may
contain any character, and an entry of ``no_proxy`` may be a name, a suffix, an address or a network. An invalid value
raises BadProxy when a connection needs it, not at start.
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes
from urllib.request import getproxies

from codexd.reasons import quoted

PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
"""The supported schemes and their default ports."""

Origin = tuple[str, str, int]
"""Scheme, host (IPv6 without brackets), port."""


class BadProxy(Exception):
    """A proxy variable is invalid. ``source`` is its name, such as ``$HTTPS_PROXY``. The text contains no password."""

    def __init__(self, source: str, why: str) -> None:
        super().__init__(f"{source}: {why}")
        self.source = source
        self.why = why


class Proxy(NamedTuple):
    """A proxy. ``source`` is where it is set, such as ``$HTTPS_PROXY``. The credentials are decoded."""

    scheme: str
    host: str
    port: int
    username: bytes | None
    password: bytes
    source: str

    @property
    def address(self) -> str:
        """The URL for messages, without the credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def __repr__(self) -> str:
        return f"Proxy({self.address}, {self.source})"


class ProxyRoute(NamedTuple):
    """The route to an origin: through ``proxy``, or direct. ``why`` names the variable that decided."""

    proxy: Proxy | None
    why: str


def route(environ: Mapping[str, str], origin: Origin) -> ProxyRoute:
    """Returns the route to an origin. Raises BadProxy."""
    scheme, host, port = origin
    found = _setting(environ, f"{scheme}_proxy") or _setting(environ, "all_proxy") or _of_the_system(scheme)
    if found is None:
        return ProxyRoute(None, "no proxy variable is set")
    source, value = found
    if (excluded := _setting(environ, "no_proxy")) is not None:
        name, text = excluded
        if (entry := _matching(text, host, port)) is not None:
            return ProxyRoute(None, f"{quoted(entry)} in {name}")
    return ProxyRoute(parse(value, source), source)


def problems(environ: Mapping[str, str]) -> list[BadProxy]:
    """Returns every variable that is set and invalid, needed or not."""
    found = []
    for name in ("https_proxy", "http_proxy", "all_proxy"):
        if (setting := _setting(environ, name)) is not None:
            try:
                parse(setting[1], setting[0])
            except BadProxy as error:
                found.append(error)
    return found


def _setting(environ: Mapping[str, str], name: str) -> tuple[str, str] | None:
    """Returns ``$NAME`` and its value. As in curl, lower case comes first and an empty value counts as unset."""
    for each in (name, name.upper()):
        if value := environ.get(each, "").strip():
            return f"${each}", value
    return None


def _of_the_system(scheme: str) -> tuple[str, str] | None:
    """Returns the proxy of macOS's network settings. Elsewhere getproxies() reads the environment, as done above."""
    import sys

    if sys.platform != "darwin":
        return None
    value = getproxies().get(scheme)
    return ("the network settings", value) if value else None


def parse(text: str, source: str) -> Proxy:
    """Parses ``[scheme://][user[:password]@]host[:port][/]``. Raises BadProxy.

    The last ``@`` ends the credentials, and percent-encoding is decoded, so a password may contain ``#``, ``/`` and
    ``@`` unencoded.
    """
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower() if separator else "http"
    if scheme not in PORTS:
        # Text that is not a scheme may be a password, so it is not shown.
        shown = f' "{scheme}"' if re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) else ""
        raise BadProxy(source, f"unsupported proxy scheme{shown}. Use http://, https://, socks5:// or socks5h://.")
    if not separator and re.match(r"[A-Za-z0-9+.-]+:/", text):
        raise BadProxy(source, "a slash is missing after the scheme. Use the form http://HOST:PORT.")
    userinfo, at, place = (rest if separator else text).rpartition("@")
    place = re.split(r"[/?#]", place, maxsplit=1)[0]
    found = re.fullmatch(r"\[([0-9A-Fa-f:.]+(?:%[^\]]+)?)\]:?(\d{0,9})|([^:\[\]\s]+):?(\d{0,9})", place)
    if found is None or not place.isascii():
        raise BadProxy(source, "no host and port in it. Use the form http://HOST:PORT.")
    host, port = found[1] or found[3], found[2] or found[4]
    number = int(port) if port else PORTS[scheme]
    if not 0 < number < 65536:
        raise BadProxy(source, f"port {port} is out of range. Use a port from 1 to 65535.")
    username, _, password = userinfo.partition(":")
    return Proxy(scheme, host, number, _decoded(username) if at else None, _decoded(password), source)


def _decoded(text: str) -> bytes:
    """Decodes percent-encoding. Non-UTF-8 bytes, which are surrogates in the environment, become bytes again."""
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))


# --- no_proxy


def _matching(text: str, host: str, port: int) -> str | None:
    """Returns the entry that covers this host, or None."""
    for entry in re.split(r"[,\s]+", text):
        if entry and _covers(entry, host.rstrip(".").lower(), port):
            return entry
    return None


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    name, only = _split_port(entry.lower())
    if only is not None and only != port:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        suffix = name.removeprefix("*").strip(".")
        return bool(suffix) and (host == suffix or host.endswith(f".{suffix}"))
    try:
        network = ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address in network or (mapped is not None and mapped in network)


def _split_port(entry: str) -> tuple[str, int | None]:
    """Splits ``host:port`` or ``[address]:port``; the port is optional. A bare IPv6 address has no port."""
    if found := re.fullmatch(r"\[([^\]]*)\](?::(\d{1,5}))?(/\d+)?", entry):
        return found[1] + (found[3] or ""), int(found[2]) if found[2] else None
    if found := re.fullmatch(r"([^:]+):(\d{1,5})", entry):
        return found[1], int(found[2])
    return entry, None
