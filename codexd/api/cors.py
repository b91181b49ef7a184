"""Web pages of other origins: who may come, and what browsers are told (the Fetch standard's CORS protocol).

``vary`` is on every answer to such a page, because a cache between must not give one page's answer to another.
"""

import re
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from codexd.api.exchange import Document
from codexd.relay.relay import Header

MAX_AGE = 7200
"""Seconds for which a browser need not ask again; Chromium's own limit."""

_EXPOSED = ", ".join(
    [
        "retry-after",
        "x-request-id",
        "x-codexd-adjusted",
        *(f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")),
    ]
)


_NAMES = re.compile(r"[a-z0-9-]+(,\s?[a-z0-9-]+)*", re.IGNORECASE)


class Headers(Protocol):
    """Header fields by their names in lower case: a dict, or Werkzeug's headers."""

    def get(self, name: str, default: str, /) -> str: ...


def is_allowed(origin: str, allowed: Sequence[str]) -> bool:
    return origin in allowed or ("*" in allowed and origin.isprintable())


def is_own(origin: str, headers: Headers) -> bool:
    """Whether the page came from the very address that it asks."""
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
    """The answer to what a browser asks before a request, which it asks without the page's key."""
    asked = headers.get("access-control-request-headers", "")
    answer = [
        ("access-control-allow-methods", ", ".join(methods)),
        ("access-control-allow-headers", asked if _NAMES.fullmatch(asked) else "*"),
        ("access-control-max-age", f"{MAX_AGE}"),
    ]
    if headers.get("access-control-request-private-network", "") == "true":
        # Chromium asks so before a page of the internet reaches this machine or its network.
        answer.append(("access-control-allow-private-network", "true"))
    return Document(b"", answer, content_type="text/plain")
