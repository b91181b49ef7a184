"""The record of one request, for the log, the metrics, ``codexctl explain`` and the answer's headers."""

import itertools
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import structlog
import trio

from codexd.errors import ApiError
from codexd.protocol.adjustments import Adjustment
from codexd.protocol.codex.events import Usage
from codexd.relay.relay import Header, Relay
from codexd.system.memory import UNBOUNDED
from codexd.telemetry.log import Repeated, redact, usable_request_id
from codexd.telemetry.tokens import Tokens
from codexd.telemetry.trace import MAX_BODY, Spans, Timings, Trace

EVENT_STREAM = "text/event-stream; charset=utf-8"

MAX_ADJUSTED = 4000
"""Characters of the x-codexd-adjusted header; a request may contain thousands of parameters."""

MAX_TRACED = 100
"""Adjustments that a trace keeps."""

MAX_LOGGED_PATH = 200
MAX_CODE, MAX_MESSAGE = 100, 1000
"""Characters of an error's code and message that are kept."""

REFUSALS = frozenset({401, 403, 404, 405, 413, 429, 503})
"""Statuses of codexd's own refusals, of which one that repeats is logged once a minute."""

_STEPS = ("asked", "token", "connected", "head", "first", "end")

log = structlog.get_logger()


class Record:
    """Filled in while the request is read and answered.

    ``endpoint`` is the route's pattern, empty if no route matches. ``received`` and ``sent`` are bodies, empty unless
    request logging is on. ``counted``: it counts towards the concurrent requests of the client's key. ``limited``
    is the model that was asked for, if it was at its limit and ``model`` answered instead. ``adjusted`` is an ordered
    set; ``weight`` the size of the request and of what it continues, in bytes; ``others`` the number of choices beside
    the first, and ``begun`` that of those whose request was let go.
    """

    __slots__ = (
        "adjusted", "begun", "client", "complete", "cors", "counted", "endpoint", "error", "failure", "id", "key",
        "limited", "memory", "message", "method", "model", "others", "path", "received", "relays", "sent", "started",
        "status", "stream_type", "streamed", "timings", "usage", "weight",
    )  # fmt: skip

    def __init__(self, request_id: str, method: str = "", path: str = "", endpoint: str = "") -> None:
        self.id = request_id
        self.method = method
        self.path = path[:MAX_LOGGED_PATH]
        self.endpoint = endpoint
        self.timings = Timings()
        self.relays: list[Relay] = []
        self.message: str | None = None
        self.received = b""
        self.sent = b""
        self.started = trio.current_time()
        self.status = 0
        self.streamed = False
        self.stream_type = EVENT_STREAM
        self.complete = False
        self.adjusted: dict[Adjustment, None] = {}
        self.weight = self.others = self.begun = 0
        self.memory = UNBOUNDED.hold()
        self.cors: Sequence[Header] = ()
        self.counted = False
        self.key: str | None = None
        self.client: str | None = None
        self.model: str | None = None
        self.limited: str | None = None
        self.error: str | None = None
        self.failure: Callable[[ApiError], bytes] = ApiError.body
        self.usage: Callable[[], Usage | None] = lambda: None

    @property
    def outcome(self) -> int:
        """The HTTP status; 499, as in nginx, if the client disconnected."""
        return self.status if self.complete else 499

    @property
    def caller(self) -> str:
        """Who asks: nobody continues another one's conversation with the backend."""
        return f"key {self.key}" if self.key is not None else f"peer {self.client}"

    def adjust(self, *adjustments: Adjustment) -> None:
        """Adds parameters that were not passed on unchanged, each once."""
        self.adjusted |= dict.fromkeys(adjustments)

    def fell_back(self, limited: str, model: str) -> None:
        """Notes that another model answers, because the one that was asked is at its limit."""
        self.limited, self.model = self.limited or limited, model

    def fail(self, error: ApiError) -> None:
        self.error = (error.error.code or error.error.type)[:MAX_CODE]
        # The message may quote any amount of what the client sent.
        self.message = redact(error.error.message[:MAX_MESSAGE])

    def headers(self) -> list[Header]:
        """Returns the headers of every answer: the request id (OpenAI's and Anthropic's name), adjustments, CORS."""
        headers = [("x-request-id", self.id), ("request-id", self.id)]
        if self.limited is not None:
            headers.append(("x-codexd-fallback", self.model or ""))
        if self.adjusted:
            headers.append(("x-codexd-adjusted", _in_header(self.adjusted)))
        return [*headers, *self.cors]

    def trace(self, now: float, *, over: bool, bodies: bool) -> Trace:
        """Returns the trace. ``now`` is in Unix seconds; ``over``: the request has ended."""
        timings, at = self.timings, trio.current_time()
        begun = [relay.first_at for relay in self.relays if relay.first_at is not None]
        first, end = min(begun, default=None), at if over else None
        steps = timings.asked, timings.token, timings.connected, timings.head, first, end
        milliseconds = [None if step is None else round((step - self.started) * 1000) for step in steps]
        return Trace(
            id=self.id,
            at=now - (at - self.started),
            method=self.method,
            endpoint=self.endpoint,
            status=self.outcome if over else None,
            streamed=self.streamed,
            spans=Spans(**dict(zip(_STEPS, milliseconds, strict=True))),
            model=self.model,
            limited_model=self.limited,
            key=self.key,
            client=self.client,
            error=self.error,
            message=self.message,
            adjusted=tuple(str(each)[:MAX_LOGGED_PATH] for each in itertools.islice(self.adjusted, MAX_TRACED)),
            events=sum(relay.events for relay in self.relays),
            tokens=_tokens(self.usage()),
            tries=timings.tries,
            connection_ready=timings.ready,
            lane=timings.lane,
            websocket_kept=timings.kept,
            delta=timings.delta,
            handshakes=timings.handshakes,
            fallback=timings.fallback,
            sent_bytes=timings.sent,
            hosted_calls=timings.hosted,
            hosted_failures=timings.hosted_failed,
            hosted_ms=round(timings.hosted_seconds * 1000),
            backend_status=timings.status,
            backend_request_id=timings.request_id,
            body=_kept(self.received) if bodies else None,
            sent=_kept(self.sent) if bodies else None,
        )

    def finish(self, repeated: Repeated) -> None:
        """Logs the end of the request; ``repeated`` knows the refusals that were told."""
        fields: dict[str, Any] = {
            "status": self.outcome,
            "key": self.key,
            "client": self.client,
            "model": self.model,
            "limited_model": self.limited,
            "error": self.error,
        }
        if (usage := self.usage()) is not None:
            cached = usage.input_tokens_details and usage.input_tokens_details.cached_tokens
            fields |= {"tokens_in": usage.input_tokens, "tokens_cached": cached, "tokens_out": usage.output_tokens}
        fields |= {"lane": self.timings.lane, "delta": self.timings.delta or None, "fallback": self.timings.fallback}
        fields |= {"hosted": self.timings.hosted or None, "hosted_failed": self.timings.hosted_failed or None}
        fields["adjusted"] = _in_header(self.adjusted) or None
        fields["ms"] = round((trio.current_time() - self.started) * 1000)
        shown = {key: value for key, value in fields.items() if value is not None}
        # Probes, and the page that refreshes itself, come every few seconds and would fill the log.
        often = self.path.endswith("/health") or (self.path == "/" and self.status == 200)
        level = cast("Callable[..., None]", log.debug if often else log.info)
        if self.status in REFUSALS and not self.timings.tries:
            # codexd's own, which a client can repeat at any rate.
            more = repeated.due((self.status, self.error, self.client, self.key, self.endpoint or self.path))
            if more is None:
                return
            shown |= {"more": more} if more else {}
        level("request finished", method=self.method, path=self.path, **shown)


def _in_header(adjusted: Iterable[Adjustment]) -> str:
    text = ", ".join(map(str, itertools.islice(adjusted, MAX_ADJUSTED)))[:MAX_ADJUSTED]
    return text.encode("ascii", "replace").decode()


def begin(method: str, path: str, endpoint: str, headers: Mapping[str, str], client: str | None) -> Record:
    """Returns a request's record, under the client's id if that is usable, and binds the log to the id."""
    record = Record(usable_request_id(headers.get("x-request-id", ""), new_id()), method, path, endpoint)
    record.client = client
    structlog.contextvars.bind_contextvars(request_id=record.id)
    log.debug("request started", method=method, path=record.path)
    return record


def new_id() -> str:
    return f"req_{secrets.token_hex(16)}"


def _tokens(usage: Usage | None) -> Tokens | None:
    if usage is None:
        return None
    cached, reasoning = usage.input_tokens_details, usage.output_tokens_details
    return Tokens(
        input=usage.input_tokens or 0,
        cached=(cached and cached.cached_tokens) or 0,
        output=usage.output_tokens or 0,
        reasoning=(reasoning and reasoning.reasoning_tokens) or 0,
    )


def _kept(body: bytes) -> str | None:
    return redact(body[:MAX_BODY].decode(errors="replace")) if body else None
