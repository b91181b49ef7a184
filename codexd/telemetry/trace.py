"""Traces of the last requests and their steps, in memory and bounded; bodies only if configured."""

from collections import deque
from typing import Literal

from msgspec import Struct

from codexd.telemetry.tokens import Tokens

KEPT = 200
"""Number of requests that are kept."""

KEPT_ERRORS = 20

SELFTEST = "selftest-"
"""How the ids of ``codexctl selftest`` begin. It makes wrong requests on purpose; these are not failures to look at."""

MAX_BODY = 32 * 1024
"""Bytes kept of each body, if bodies are kept at all."""


Lane = Literal["websocket", "http"]


class Spans(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Milliseconds from the request's arrival to the end of each step; None for a step that did not happen.

    ``asked``: body read and converted. ``token``: access token available. ``connected``: connection open. ``head``:
    backend's status and headers received. ``first``: first event with part of the answer. ``end``: everything.
    """

    asked: int | None = None
    token: int | None = None
    connected: int | None = None
    head: int | None = None
    first: int | None = None
    end: int | None = None


class Timings:
    """Times of the steps of one request to the backend, filled in as it proceeds.

    Times are in seconds of trio's clock; None for a step that has not happened. After several tries the times are those
    of the last one, except ``asked``. ``ready``: an idle connection was reused. ``request_id`` is the backend's.

    ``lane``: websocket or http. ``kept``: the websocket had answered before; ``delta``: only new items were sent.
    ``sent``: bytes of the request. ``fallback``: why HTTP was used instead of a websocket. ``only``: the lane to use,
    whatever is configured. ``key_kept``: whether the backend took the prompt cache key; None if it did not say.
    ``hosted``: calls of hosted tools that codexd has run, of which ``hosted_failed`` failed.
    """

    __slots__ = (
        "asked", "connected", "delta", "fallback", "first", "handshakes", "head", "hosted", "hosted_failed",
        "hosted_seconds", "kept",
        "key_kept", "lane", "only", "ready", "request_id", "resent", "sent", "status", "token", "tries",
    )  # fmt: skip

    def __init__(self) -> None:
        self.tries = 0
        self.resent = False
        self.handshakes = 0
        self.hosted = self.hosted_failed = 0
        self.hosted_seconds = 0.0
        self.lane: Lane | None = None
        self.kept = self.delta = False
        self.sent = 0
        self.only: Lane | None = None
        self.key_kept: bool | None = None
        self.fallback: str | None = None
        self.asked: float | None = None
        self.token: float | None = None
        self.connected: float | None = None
        self.head: float | None = None
        self.first: float | None = None
        self.ready: bool | None = None
        self.status: int | None = None
        self.request_id: str | None = None

    def resend(self) -> bool:
        """Returns whether the request may be sent again after its connection ended: only once. Counts it as a try."""
        again, self.resent = not self.resent, True
        self.tries += again
        return again


class Trace(Struct, frozen=True, kw_only=True):
    """One request. ``at`` is in Unix seconds. ``status`` is None while in progress, 499 if the client disconnected.

    ``events`` counts the backend's events, about one for each token. ``body`` (from the client) and ``sent`` (to the
    backend) are redacted, and present only with ``logging.enable_request_logging``.

    ``lane`` is how the request was sent. ``websocket_kept``: on a websocket that had answered before; ``delta``: only
    its new items. ``fallback``: why HTTP was used and not a websocket. ``sent_bytes``: the request's size.

    ``hosted_calls`` are searches and images of the answer that codexd has made itself, with ``hosted_failures``;
    ``hosted_ms`` is how long they took. The other times are those of the request before the first of them.
    ``limited_model``: what was asked for, if it was at its limit and ``model`` answered.
    """

    id: str
    at: float
    method: str
    endpoint: str
    status: int | None
    streamed: bool
    spans: Spans
    model: str | None = None
    limited_model: str | None = None
    key: str | None = None
    client: str | None = None
    error: str | None = None
    message: str | None = None
    adjusted: tuple[str, ...] = ()
    events: int = 0
    tokens: Tokens | None = None
    tries: int = 0
    connection_ready: bool | None = None
    lane: Lane | None = None
    websocket_kept: bool = False
    delta: bool = False
    handshakes: int = 0
    fallback: str | None = None
    sent_bytes: int = 0
    hosted_calls: int = 0
    hosted_failures: int = 0
    hosted_ms: int = 0
    backend_status: int | None = None
    backend_request_id: str | None = None
    body: str | None = None
    sent: str | None = None


class Recent:
    """The last traces and the last failed ones, the newest last."""

    def __init__(self) -> None:
        self._traces: deque[Trace] = deque(maxlen=KEPT)
        self._errors: deque[Trace] = deque(maxlen=KEPT_ERRORS)

    def add(self, trace: Trace) -> None:
        self._traces.append(trace)
        if trace.error is not None and not trace.id.startswith(SELFTEST):
            self._errors.append(trace)

    def find(self, id: str) -> Trace | None:  # noqa: A002 - the header's own word
        """Returns the newest trace with that id, else with an id that starts with it."""
        found = [trace for trace in (*self._errors, *self._traces) if trace.id.startswith(id)]
        exact = [trace for trace in found if trace.id == id]
        return max(exact or found, key=lambda trace: trace.at, default=None)

    def errors(self) -> list[Trace]:
        return list(self._errors)

    def all(self) -> list[Trace]:
        return list(self._traces)
