"""Addresses as the configuration writes them: ``host:port``, ``[ipv6]:port`` and ``unix:/path``."""

import ipaddress
from functools import lru_cache

from codexd.errors import ConfigError


def split_bind(bind: str) -> str | tuple[str, int]:
    """``unix:/path`` as the path, ``host:port`` as a pair. Raises ConfigError.

    A path that is not absolute is resolved by ``resolve_bind``.
    """
    if bind.startswith("unix:"):
        return bind.removeprefix("unix:")
    host, _, port = bind.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"server.bind: expected host:port or unix:/path, got {bind!r}")
    return host, int(port)


def is_beyond_loopback(bind: str) -> bool:
    address = split_bind(bind)
    return not isinstance(address, str) and not is_loopback(address[0])


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether this names the machine itself. A name that only looks so (``127.example``) is somebody else's."""
    if host.rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
