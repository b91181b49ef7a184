"""Access control of the API: client keys, origins of web pages, host names."""

import base64
import contextlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from codexd import errors
from codexd.api import cors
from codexd.api.cors import Headers
from codexd.api.record import Record
from codexd.config.addresses import is_loopback
from codexd.config.model import Server
from codexd.errors import ApiError
from codexd.state.keys import Keys

HEALTH = ("/health", "/v1/health")
"""Paths that need no key, because probes have none."""

_LOCAL = ("/metrics", "/auth/login")
"""Endpoints that refuse proxies themselves, with or without a key."""

_OF_PROXIES = (
    "forwarded",
    "via",
    "x-forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "x-client-ip",
    "cf-connecting-ip",
    "true-client-ip",
)
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{0,5})?")
_ADDRESS = re.compile(r"[0-9a-fA-F:.]{3,45}")


class AccessControl:
    """Admits requests or refuses them with an ApiError."""

    def __init__(self, keys: Keys, config: Server) -> None:
        self._keys = keys
        self.configure(config)

    def configure(self, config: Server) -> None:
        self._config = config

    def admit(
        self, headers: Headers, server: Sequence[Any] | None, path: str, record: Record, *, keyless: bool = False
    ) -> None:
        """Admits a request; sets the key's name and the CORS headers in the record. Raises ApiError 401 or 403."""
        self.admit_page(headers, record)
        if not self._keys.required:
            # An address that nobody can guess may be in any page.
            if not keyless and not record.cors and headers.get("sec-fetch-site", "") in ("cross-site", "same-site"):
                # Any web page can post to loopback; without a key it could spend the account.
                raise errors.cross_site()
            self._admit_host(headers, server)
            if not keyless and path not in HEALTH and record.endpoint not in _LOCAL:
                self._admit_forwarded(headers)
        if keyless or path in HEALTH:
            return
        try:
            # Basic only for the status page: a browser repeats these credentials whichever page caused the request.
            record.key = self._key(headers, basic=path == "/")
        except ApiError as error:
            if path == "/":
                # The browser then asks its user for any name, and for the key as the password.
                error.headers.append(("www-authenticate", 'Basic realm="codexd: use a client key as the password"'))
            raise

    def admit_websocket(self, headers: Headers, server: Sequence[Any] | None) -> str | None:
        """Returns the name of the client's key; None if no key is required. Raises ApiError 401 or 403."""
        # A page of any origin can open a websocket to loopback: browsers send no preflight for it.
        self.admit_page(headers, Record(""))
        if not self._keys.required:
            self._admit_host(headers, server)
            self._admit_forwarded(headers)
        return self._key(headers)

    def admit_page(self, headers: Headers, record: Record) -> None:
        """Sets the CORS headers for an allowed page. Raises ApiError 403 for a foreign one if no key is required."""
        origin, by_key = headers.get("origin", ""), self._keys.required
        if not origin:
            return
        allowed = self._config.allowed_origins
        # "*" applies only if a key is required: anyone may have written such a page.
        if cors.is_allowed(origin, allowed if by_key else [each for each in allowed if each != "*"]):
            record.cors = cors.fields(origin)
        elif not by_key and not cors.is_own(origin, headers):
            raise errors.foreign_origin(origin)

    def _admit_host(self, headers: Headers, server: Sequence[Any] | None) -> None:
        if (name := foreign_host(server, headers, self._config.hosts)) is not None:
            raise errors.foreign_host(name)

    def _admit_forwarded(self, headers: Headers) -> None:
        """Raises ApiError 403 for a request through a proxy, which makes loopback and unix sockets public."""
        if is_forwarded(headers) and not self._config.allow_unauthenticated:
            raise errors.proxy_without_key()

    def _key(self, headers: Headers, *, basic: bool = False) -> str | None:
        """Returns the name of the client's key; None if no key is required. Raises ApiError 401."""
        if not self._keys.required:
            return None
        given = _given(headers, basic=basic)
        name = self._keys.check(given)
        if name is None:
            raise errors.key_required(given=bool(given), any_known=self._keys.any, fault=self._keys.fault)
        return name


def _given(headers: Headers, *, basic: bool) -> str:
    """Returns the key of a request: a bearer token (OpenAI), a Basic password (browsers) or x-api-key (Anthropic)."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    if basic and scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(token.strip(), validate=True).decode().partition(":")[2]
    return headers.get("x-api-key", "")


def client_of(peer: Sequence[Any] | None, headers: Headers) -> str | None:
    """Returns the address of a remote client, for the log; over a unix socket that in X-Forwarded-For.

    The mode of the socket restricts who can set that header. Over TCP it is ignored.
    """
    address = peer[0] if peer else headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    return address if _ADDRESS.fullmatch(address) and not is_loopback(address) else None


def is_forwarded(headers: Headers) -> bool:
    """Returns whether a proxy forwards the request. Values are not used, and may be empty: a client can forge them."""
    return any(headers.get(name, "absent") != "absent" for name in _OF_PROXIES)


@lru_cache(maxsize=64)
def name_in(host: str) -> str:
    """Returns the name in a Host header (RFC 9110, section 7.2), without the port; all of it if it is not valid."""
    found = _HOST.fullmatch(host)
    return host if found is None else (found[1] or found[2]).lower()


def foreign_host(server: Sequence[Any] | None, headers: Headers, own: Sequence[str] = ()) -> str | None:
    """Returns the Host name of a request over loopback if it is foreign (DNS rebinding), otherwise None.

    Not checked over a unix socket, where the name is the proxy's, nor beyond loopback, where a machine has many names.
    """
    host = headers.get("host", "")  # empty if HTTP/1.0 sent none
    if not server or not is_loopback(server[0]) or not host:
        return None
    name = name_in(host)
    return None if is_loopback(name) or name in own else name
