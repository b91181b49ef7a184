"""Addresses in the configuration: ``host:port``, ``[ipv6]:port`` and ``unix:/path``."""

import ipaddress
from functools import lru_cache

from codexd.errors import ConfigError

MAX_PORT = 65535


def split_bind(bind: str) -> str | tuple[str, int]:
    """Returns the path of ``unix:/path``, or host and port of ``host:port``. Raises ConfigError.

    ``resolve_bind`` makes a relative path absolute.
    """
    if bind.startswith("unix:"):
        return bind.removeprefix("unix:")
    host, _, port = bind.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal():
        raise ConfigError(f'use host:port or unix:/path, not "{bind}"')
    if int(port) > MAX_PORT:
        raise ConfigError(f'the port in "{bind}" is out of range; use 0 to {MAX_PORT}')
    return host, int(port)


def is_beyond_loopback(bind: str) -> bool:
    address = split_bind(bind)
    return not isinstance(address, str) and not is_loopback(address[0])


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Returns whether a host is this machine's loopback. A name such as ``127.example`` is not."""
    if host.rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
