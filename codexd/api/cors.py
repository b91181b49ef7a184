"""Web pages of other origins: which are allowed, and the headers for browsers (CORS, in the Fetch standard).

``vary`` is in every answer to such a page, so that a cache does not give one page's answer to another.
"""

import re
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from codexd.api.exchange import Document
from codexd.relay.relay import Header

MAX_AGE = 7200
"""Seconds for which a browser may cache a preflight; Chromium's own limit."""

_EXPOSED = ", ".join(
    [
        "retry-after",
        "x-request-id",
        "x-codexd-adjusted",
        "x-codexd-fallback",
        "x-codexd-window",
        *(f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")),
    ]
)
_NAMES = re.compile(r"[a-z0-9-]+(,\s?[a-z0-9-]+)*", re.IGNORECASE)


class Headers(Protocol):
    """Header fields by lower-case name: a dict, or Werkzeug's headers."""

    def get(self, name: str, default: str, /) -> str: ...


def is_allowed(origin: str, allowed: Sequence[str]) -> bool:
    return origin in allowed or ("*" in allowed and origin.isprintable())


def is_own(origin: str, headers: Headers) -> bool:
    """Returns whether the page comes from the host that it sends the request to."""
    try:
        return urlsplit(origin).netloc == headers.get("host", "") != ""
    except ValueError:
        return False


def fields(origin: str) -> list[Header]:
    return [
        ("access-control-allow-origin", origin),
        ("access-control-expose-headers", _EXPOSED),
        ("vary", "origin"),
    ]


def preflight(headers: Headers, methods: Sequence[str]) -> Document:
    """Returns the answer to a preflight, which browsers send before a request and without the page's key."""
    asked = headers.get("access-control-request-headers", "")
    answer = [
        ("access-control-allow-methods", ", ".join(methods)),
        ("access-control-allow-headers", asked if _NAMES.fullmatch(asked) else "*"),
        ("access-control-max-age", f"{MAX_AGE}"),
    ]
    if headers.get("access-control-request-private-network", "") == "true":
        # Chromium's Private Network Access: sent before a page of the internet reaches a private address.
        answer.append(("access-control-allow-private-network", "true"))
    return Document(b"", answer, content_type="text/plain")
