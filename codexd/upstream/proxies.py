"""Which proxy a connection goes through, by the environment's variables. Pure: the environment is an argument.

The variables are curl's: ``https_proxy`` or ``http_proxy`` by the scheme of the address, then ``all_proxy``, each also
in capitals, and ``no_proxy`` for what is reached directly. Users write them by hand, so they are read liberally: a
password may hold any character, and an entry of ``no_proxy`` may be a name, a suffix, an address or a network. What
cannot be used raises BadProxy when a connection needs it, and never at start.
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes
from urllib.request import getproxies

PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
"""The schemes that are supported, with the ports that they mean when none is given."""

Origin = tuple[str, str, int]
"""Scheme, host (IPv6 without brackets), port."""


class BadProxy(Exception):
    """A proxy variable cannot be used. ``source`` is its name as in ``$HTTPS_PROXY``; no password is in the text."""

    def __init__(self, source: str, why: str) -> None:
        super().__init__(f"{source}: {why}")
        self.source = source
        self.why = why


class Proxy(NamedTuple):
    """``source`` is where it is set, as in ``$HTTPS_PROXY``. The credentials are decoded."""

    scheme: str
    host: str
    port: int
    username: bytes | None
    password: bytes
    source: str

    @property
    def address(self) -> str:
        """For people: without the credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def __repr__(self) -> str:
        return f"Proxy({self.address}, {self.source})"


class ProxyRoute(NamedTuple):
    """How an origin is reached: through ``proxy``, or directly. ``why`` says which variable decided it."""

    proxy: Proxy | None
    why: str


def route(environ: Mapping[str, str], origin: Origin) -> ProxyRoute:
    """Raises BadProxy."""
    scheme, host, port = origin
    found = _setting(environ, f"{scheme}_proxy") or _setting(environ, "all_proxy") or _of_the_system(scheme)
    if found is None:
        return ProxyRoute(None, "no proxy variable is set")
    source, value = found
    if (excluded := _setting(environ, "no_proxy")) is not None:
        name, text = excluded
        if (entry := _matching(text, host, port)) is not None:
            return ProxyRoute(None, f"{entry!r} in {name}")
    return ProxyRoute(parse(value, source), source)


def problems(environ: Mapping[str, str]) -> list[BadProxy]:
    """Every variable that is set and cannot be used, whether or not it is needed."""
    found = []
    for name in ("https_proxy", "http_proxy", "all_proxy"):
        if (setting := _setting(environ, name)) is not None:
            try:
                parse(setting[1], setting[0])
            except BadProxy as error:
                found.append(error)
    return found


def _setting(environ: Mapping[str, str], name: str) -> tuple[str, str] | None:
    """The variable as ``$NAME`` and its value. As in curl the lower case counts first; an empty value is none."""
    for each in (name, name.upper()):
        if value := environ.get(each, "").strip():
            return f"${each}", value
    return None


def _of_the_system(scheme: str) -> tuple[str, str] | None:
    """On macOS, what the network settings say; elsewhere this is the environment again, which was read already."""
    import sys

    if sys.platform != "darwin":
        return None
    value = getproxies().get(scheme)
    return ("the network settings", value) if value else None


def parse(text: str, source: str) -> Proxy:
    """``[scheme://][user[:password]@]host[:port][/]``. Raises BadProxy.

    The last ``@`` ends the credentials, and what looks percent-encoded is decoded, so that a password with ``#``, ``/``
    or ``@`` in it works as it is.
    """
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower() if separator else "http"
    if scheme not in PORTS:
        # What is no scheme may be a password.
        shown = f' "{scheme}"' if re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) else ""
        raise BadProxy(source, f"unsupported proxy scheme{shown}. Use http://, https://, socks5:// or socks5h://.")
    if not separator and re.match(r"[A-Za-z0-9+.-]+:/", text):
        raise BadProxy(source, "a slash is missing behind the scheme. Use the form http://HOST:PORT.")
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
    """Bytes that are no UTF-8 come out of the environment as surrogates, and go back as they were."""
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))


# --- no_proxy


def _matching(text: str, host: str, port: int) -> str | None:
    """The entry that covers this host, if one does."""
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
    """``host:port``, ``[address]:port``, or without a port; a bare IPv6 address is none with a port."""
    if found := re.fullmatch(r"\[([^\]]*)\](?::(\d{1,5}))?(/\d+)?", entry):
        return found[1] + (found[3] or ""), int(found[2]) if found[2] else None
    if found := re.fullmatch(r"([^:]+):(\d{1,5})", entry):
        return found[1], int(found[2])
    return entry, None
