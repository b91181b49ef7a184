"""The steps of each request and the traces of the last ones, in memory and bounded; with bodies only where wanted."""

from collections import deque

from msgspec import Struct

from codexd.telemetry.tokens import Tokens

KEPT = 200
"""Requests that are remembered."""

KEPT_ERRORS = 20

MAX_BODY = 32 * 1024
"""Bytes of a body that are kept, where bodies are kept at all."""


class Spans(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Milliseconds since the request came, until each step was done; None for what did not happen.

    ``asked``: its body was read and converted. ``token``: there was an access token. ``connected``: and a connection;
    ``head``: the backend's status and headers. ``first``: the first event with something of the answer. ``end``: all.
    """

    asked: int | None = None
    token: int | None = None
    connected: int | None = None
    head: int | None = None
    first: int | None = None
    end: int | None = None


class Timings:
    """When each step of one request to the backend was done; filled in on its way.

    Times are in seconds of trio's clock; None for a step that has not happened. Of several tries the last one counts,
    except for ``asked``. ``ready``: an idle connection was used. ``request_id`` is the backend's own.
    """

    __slots__ = ("asked", "connected", "first", "head", "ready", "request_id", "resent", "status", "token", "tries")

    def __init__(self) -> None:
        self.tries = 0
        self.resent = False
        self.asked: float | None = None
        self.token: float | None = None
        self.connected: float | None = None
        self.head: float | None = None
        self.first: float | None = None
        self.ready: bool | None = None
        self.status: int | None = None
        self.request_id: str | None = None

    def resend(self) -> bool:
        """Returns whether the request may be sent again after its connection had ended: once. It counts as a try."""
        again, self.resent = not self.resent, True
        self.tries += again
        return again


class Trace(Struct, frozen=True, kw_only=True):
    """One request. ``at`` is in Unix seconds; ``status`` None while it is under way, 499 for a client that left.

    ``events`` are those that the backend has sent: about one for each token. ``body`` and ``sent`` are what came and
    what went up, redacted, where ``logging.enable_request_logging`` is on.
    """

    id: str
    at: float
    method: str
    endpoint: str
    status: int | None
    streamed: bool
    spans: Spans
    model: str | None = None
    key: str | None = None
    client: str | None = None
    error: str | None = None
    message: str | None = None
    adjusted: tuple[str, ...] = ()
    events: int = 0
    tokens: Tokens | None = None
    tries: int = 0
    connection_ready: bool | None = None
    backend_status: int | None = None
    backend_request_id: str | None = None
    body: str | None = None
    sent: str | None = None


class Recent:
    """The newest are last."""

    def __init__(self) -> None:
        self._traces: deque[Trace] = deque(maxlen=KEPT)
        self._errors: deque[Trace] = deque(maxlen=KEPT_ERRORS)

    def add(self, trace: Trace) -> None:
        self._traces.append(trace)
        if trace.error is not None:
            self._errors.append(trace)

    def find(self, id: str) -> Trace | None:  # noqa: A002 - the header's own word
        """The newest with that id, or with an id that begins so."""
        found = [trace for trace in (*self._errors, *self._traces) if trace.id.startswith(id)]
        exact = [trace for trace in found if trace.id == id]
        return max(exact or found, key=lambda trace: trace.at, default=None)

    def errors(self) -> list[Trace]:
        return list(self._errors)

    def all(self) -> list[Trace]:
        return list(self._traces)
