"""One HTTP exchange with a client, from request id to log line; with ``api`` and ``server`` all that knows the host.

Each request has a ``Record`` (who, what, how it went), which the end of the exchange logs. What makes answers has a
fixed path and comes by ``take``, straight from the connection. Paths with a name in them, and those that are not there,
come through Quart.
"""

import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar, cast
from urllib.parse import parse_qsl, urlsplit

import msgspec
import structlog
import trio
from hypercorn.typing import ASGISendCallable
from quart import Response
from quart import request as quart_request
from quart.wrappers import Request
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest

from codexd import errors
from codexd.config.addresses import is_loopback
from codexd.errors import ApiError
from codexd.protocol import zstd
from codexd.protocol.responses import Usage
from codexd.relay.relay import (
    Client,
    Direct,
    Header,
    Relay,
)
from codexd.server.request import (
    BODY_TIMEOUT,
    Address,
    BodyTimeout,
    BodyTooLarge,
)
from codexd.telemetry.log import redact, usable_request_id
from codexd.telemetry.tokens import Tokens
from codexd.telemetry.trace import MAX_BODY, Spans, Timings, Trace

MAX_LOGGED_PATH = 200
MAX_ADJUSTED = 4000
"""Characters of the header that says what was adjusted: a request may name thousands of parameters."""

MAX_TRACED = 100
"""Adjustments that are remembered of a request."""

MAX_CODE, MAX_MESSAGE = 100, 1000
"""Characters of an error that are remembered."""

_STEPS = ("asked", "token", "connected", "head", "first", "end")

STREAM_HEADERS: Sequence[Header] = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache, no-transform"),
    ("x-accel-buffering", "no"),
)

log = structlog.get_logger()

_T = TypeVar("_T")
_ADDRESS = re.compile(r"[0-9a-fA-F:.]{3,45}")


class Document(NamedTuple):
    """A whole answer."""

    body: bytes
    headers: Sequence[Header] = ()
    status: int = 200
    content_type: str = "application/json"


class Body(Protocol):
    """What writes the body of a streamed answer: a relay. ``error`` is how it went."""

    error: ApiError | None

    @property
    def done(self) -> bool:
        """Whether the answer is complete; a client may leave as soon as it has the last event."""

    async def stream(self, client: Client) -> None: ...


class Streamed(NamedTuple):
    """An answer whose body a relay writes."""

    relay: Body


Reply = Document | Streamed


class Route(NamedTuple):
    """One endpoint of a fixed path. ``api``: it lies under /v1, and under nothing.

    ``failure`` makes the document of an error, in the shape of the endpoint's API.
    """

    method: str
    path: str
    handler: "Callable[[Exchange], Awaitable[Reply]]"
    api: bool = True
    failure: Callable[[ApiError], bytes] = ApiError.body


class Page(NamedTuple):
    """One endpoint with a name in its path, which is Werkzeug's pattern and lies under /v1, and under nothing."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Document]]
    summary: str


class Record:
    """One request, for the log and all else that tells of it: filled in as it is understood.

    ``endpoint`` is the path without names in it. ``received`` and ``sent`` are bodies, where they are to be kept.
    """

    __slots__ = (
        "adjusted",
        "client",
        "complete",
        "cors",
        "counted",
        "endpoint",
        "error",
        "failure",
        "id",
        "key",
        "message",
        "method",
        "model",
        "received",
        "relays",
        "sent",
        "started",
        "status",
        "streamed",
        "timings",
        "usage",
    )  # fmt: skip

    def __init__(self, request_id: str, method: str = "", endpoint: str = "") -> None:
        self.id = request_id
        self.method = method
        self.endpoint = endpoint
        self.timings = Timings()
        self.relays: list[Relay] = []
        self.message: str | None = None
        self.received = b""
        self.sent = b""
        self.started = trio.current_time()
        self.status = 0
        self.streamed = False
        self.complete = False
        self.adjusted: list[str] = []
        self.cors: Sequence[Header] = ()
        self.counted = False
        self.key: str | None = None
        self.client: str | None = None
        self.model: str | None = None
        self.error: str | None = None
        self.failure: Callable[[ApiError], bytes] = ApiError.body
        self.usage: Callable[[], Usage | None] = lambda: None

    @property
    def outcome(self) -> int:
        """Its status; 499 is a client that left, in nginx's word for it."""
        return self.status if self.complete else 499

    def fail(self, error: ApiError) -> None:
        self.error = (error.error.code or error.error.type)[:MAX_CODE]
        # It quotes what the client sent, as much as that was.
        self.message = redact(error.error.message[:MAX_MESSAGE])

    def trace(self, now: float, *, over: bool, bodies: bool) -> Trace:
        """``now`` is in Unix seconds."""
        usage, timings, at = self.usage(), self.timings, trio.current_time()
        tokens = None
        if usage is not None:
            cached, reasoning = usage.input_tokens_details, usage.output_tokens_details
            tokens = Tokens(
                input=usage.input_tokens or 0,
                cached=(cached and cached.cached_tokens) or 0,
                output=usage.output_tokens or 0,
                reasoning=(reasoning and reasoning.reasoning_tokens) or 0,
            )
        begun = [relay.first_at for relay in self.relays if relay.first_at is not None]
        first, end = min(begun, default=None), at if over else None
        steps = timings.asked, timings.token, timings.connected, timings.head, first, end
        return Trace(
            id=self.id,
            at=now - (at - self.started),
            method=self.method,
            endpoint=self.endpoint,
            status=self.outcome if over else None,
            streamed=self.streamed,
            spans=Spans(**dict(zip(_STEPS, map(self._after, steps), strict=True))),
            model=self.model,
            key=self.key,
            client=self.client,
            error=self.error,
            message=self.message,
            adjusted=tuple(self.adjusted[:MAX_TRACED]),
            events=sum(relay.events for relay in self.relays),
            tokens=tokens,
            tries=timings.tries,
            connection_ready=timings.ready,
            backend_status=timings.status,
            backend_request_id=timings.request_id,
            body=_kept(self.received) if bodies else None,
            sent=_kept(self.sent) if bodies else None,
        )

    def _after(self, step: float | None) -> int | None:
        return None if step is None else round((step - self.started) * 1000)

    def finish(self, method: str, path: str) -> None:
        """Log the end of the request."""
        fields: dict[str, Any] = {
            "status": self.outcome,
            "key": self.key,
            "client": self.client,
            "model": self.model,
            "error": self.error,
        }
        if (usage := self.usage()) is not None:
            cached = usage.input_tokens_details and usage.input_tokens_details.cached_tokens
            fields |= {"tokens_in": usage.input_tokens, "tokens_cached": cached, "tokens_out": usage.output_tokens}
        fields["adjusted"] = ", ".join(self.adjusted) or None
        fields["ms"] = round((trio.current_time() - self.started) * 1000)
        shown = {key: value for key, value in fields.items() if value is not None}
        _level_for(path)("request finished", method=method, path=path, **shown)


class Fields(Protocol):
    """Header fields by their names in lower case: a dict, or Werkzeug's headers."""

    def get(self, name: str, default: str, /) -> str: ...


def client_of(peer: Sequence[Any] | None, headers: Fields) -> str | None:
    """The address of a client on another machine, for the log.

    Through a unix socket it is what the proxy says: who may write there is settled by its mode. What a TCP client says
    of itself counts for nothing.
    """
    address = peer[0] if peer else headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    return address if _ADDRESS.fullmatch(address) and not is_loopback(address) else None


def is_forwarded(headers: Fields) -> bool:
    """Whether a proxy asks for somebody: what it says of who that is may be the client's own words."""
    return any(headers.get(name, "") for name in ("forwarded", "x-forwarded-for", "x-real-ip"))


@lru_cache(maxsize=64)
def name_in(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def foreign_host(server: Sequence[Any] | None, headers: Fields, own: Sequence[str] = ()) -> str | None:
    """The name that a request over loopback is addressed to, when it is not this machine's. Browsers always send one.

    Over a unix socket it is the proxy that was addressed, and beyond loopback a machine has many names.
    """
    host = headers.get("host", "")  # empty where HTTP/1.0 sent none
    if not server or not is_loopback(server[0]) or not host:
        return None
    name = name_in(host)
    return None if is_loopback(name) or name in own else name


def _level_for(path: str) -> Callable[..., None]:
    """Probes come every few seconds and say nothing."""
    return cast("Callable[..., None]", log.debug if path.endswith("/health") else log.info)


def _kept(body: bytes) -> str | None:
    return redact(body[:MAX_BODY].decode(errors="replace")) if body else None


def _begin(headers: Fields, peer: Sequence[Any] | None, method: str, path: str, endpoint: str) -> Record:
    name = usable_request_id(headers.get("x-request-id", ""), f"req_{secrets.token_hex(16)}")
    record = Record(name, method, endpoint)
    record.client = client_of(peer, headers)
    structlog.contextvars.bind_contextvars(request_id=record.id)
    log.debug("request started", method=method, path=path)
    return record


def _is_leaving(error: BaseException) -> bool:
    """Whether this is the client's leaving, alone or in a nursery's group, and no fault."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)


def _trace_headers(record: Record) -> list[Header]:
    headers = [("x-request-id", record.id), ("request-id", record.id)]  # OpenAI's name for it, and Anthropic's
    if record.adjusted:
        headers.append(("x-codexd-adjusted", ", ".join(record.adjusted)[:MAX_ADJUSTED]))
    headers += record.cors
    return headers


def failed(error: ApiError, record: Record) -> Document:
    record.fail(error)
    return Document(record.failure(error), list(error.all_headers().items()), error.status)


def bug(error: Exception, record: Record) -> Document:
    log.error("a request met a fault of codexd itself", exc_info=error)
    return failed(errors.internal(record.id), record)


# --- fixed paths


class Incoming(Protocol):
    """A request and the way to answer it: ``codexd.server.request`` says how. ``begun``: its status has been chosen."""

    method: str
    path: str
    query: bytes
    headers: dict[str, str]
    client: Address | None
    server: Address | None
    begun: bool

    @property
    def direct(self) -> Direct | None: ...

    async def body(self) -> bytes: ...

    async def answer(self, status: int, fields: Sequence[Header], body: bytes) -> None: ...

    async def start(self, fields: Sequence[Header]) -> None: ...

    async def write(self, data: bytes) -> None: ...

    async def end(self) -> None: ...


class Exchange:
    """What an endpoint gets."""

    __slots__ = ("_incoming", "_max_body", "headers", "method", "path", "record", "server")

    def __init__(self, incoming: Incoming, record: Record, max_body: int) -> None:
        self._incoming = incoming
        self._max_body = max_body
        self.record = record
        self.headers = incoming.headers
        self.method = incoming.method
        self.path = incoming.path
        self.server = incoming.server

    @property
    def client(self) -> Address | None:
        return self._incoming.client

    @property
    def query(self) -> dict[str, str]:
        """Its last value for each name."""
        return dict(parse_qsl(self._incoming.query.decode("latin-1"), keep_blank_values=True))

    async def body(self) -> bytes:
        """The request's body, decompressed. Raises ApiError 400, 408, 413 or 415."""
        try:
            data = await self._incoming.body()
        except BodyTooLarge as error:
            raise errors.too_large(self._max_body) from error
        except BodyTimeout as error:
            raise errors.body_timeout(BODY_TIMEOUT) from error
        match self.headers.get("content-encoding", "identity").lower():
            case "" | "identity":
                return data
            case "zstd":
                return _unzstd(data, self._max_body)
            case encoding:
                raise ApiError(
                    415,
                    f"Request bodies in {encoding!r} encoding are not understood; send the JSON as it is, or in zstd.",
                    code="unsupported_encoding",
                )


async def take(
    incoming: Incoming,
    route: Route,
    before: Callable[[Exchange], None],
    after: Callable[[Record], None],
    max_body: int,
) -> None:
    """One exchange. ``before`` may refuse it with an ApiError; ``after`` is called in any case."""
    method, path = incoming.method, incoming.path[:MAX_LOGGED_PATH]
    record = _begin(incoming.headers, incoming.client, method, path, route.path)
    record.failure = route.failure
    try:
        reply = await _reply(Exchange(incoming, record, max_body), route, before)
        whole = await _stream(incoming, reply.relay, record) if isinstance(reply, Streamed) else reply
        if whole is not None:
            record.status = whole.status
            fields = [("content-type", whole.content_type), *whole.headers, *_trace_headers(record)]
            await incoming.answer(whole.status, fields, whole.body)
            record.complete = True
    except BaseException as error:
        if not _is_leaving(error):
            record.status, record.complete = 500, True
        raise
    finally:
        after(record)
        record.finish(method, path)


async def _reply(exchange: Exchange, route: Route, before: Callable[[Exchange], None]) -> Reply:
    try:
        before(exchange)
        return await route.handler(exchange)
    except ApiError as error:
        return failed(error, exchange.record)
    except Exception as error:  # noqa: BLE001 - it is logged
        return bug(error, exchange.record)


async def _stream(incoming: Incoming, relay: Body, record: Record) -> Document | None:
    """Relay; a failure from before the first byte comes back as an ordinary answer."""
    record.status = 200
    try:
        await relay.stream(_StreamClient(incoming, record))
        record.complete = True
    except ApiError as error:
        return failed(error, record)
    except Exception as error:
        if incoming.begun:
            raise
        return bug(error, record)
    finally:
        record.complete |= relay.done
        if relay.error is not None:
            record.fail(relay.error)
    return None


class _StreamClient:
    """The client's side of a relay."""

    __slots__ = ("_record", "_start", "direct", "end", "write")

    def __init__(self, incoming: Incoming, record: Record) -> None:
        self._record = record
        self._start = incoming.start
        self.direct = incoming.direct
        self.write = incoming.write
        self.end = incoming.end

    async def start(self, headers: Sequence[Header]) -> None:
        # What was adjusted is known now and not before: a second try may leave something out.
        await self._start([*STREAM_HEADERS, *_trace_headers(self._record), *headers])


def _unzstd(data: bytes, limit: int) -> bytes:
    log.debug("the request is compressed", body_encoding="zstd", size=len(data))
    try:
        body = zstd.decompress(data, limit)
    except zstd.Undecodable as error:
        raise errors.bad_request(f"The request body is not zstd that can be read: {error}") from error
    if len(body) > limit:
        raise errors.too_large(limit)
    return body


# --- paths of Quart's


class PageRequest(TrioRequest):
    """Quart's request, with our record of it."""

    record: Record


AFTER = "codexd.after"
"""Quart's extension that is called with each record when it is over."""


class HttpConnection(TrioASGIHTTPConnection):
    """One request on its way through Quart: the request id and the log lines."""

    async def handle_request(  # type: ignore[override]  # quart-trio's own signature differs from Quart's
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        method, path = request.method, request.path[:MAX_LOGGED_PATH]
        record = _begin(request.headers, self.scope.get("client"), method, path, "")
        cast("PageRequest", request).record = record

        async def noting(message: Any) -> None:
            # The host cancels this task as soon as the last message is out, so what comes after may never run.
            record.complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            response = cast("Response", await self.app.handle_request(request))
            record.status = response.status_code
            response.headers.update(_trace_headers(record))
            await self._send_response(noting, response)
        except BaseException as error:
            if not _is_leaving(error):
                record.status, record.complete = 500, True
            raise
        finally:
            if request.url_rule is not None:
                record.endpoint = request.url_rule.rule.removeprefix("/v1")
            self.app.extensions[AFTER](record)
            record.finish(method, path)
        nursery.cancel_scope.cancel()


def record_of_page() -> Record:
    return cast("PageRequest", quart_request).record


def response_of(document: Document) -> Response:
    response = Response(document.body, document.status, content_type=document.content_type)
    response.headers.update(dict(document.headers))
    return response


# --- for the endpoints


def decode(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    """Raises ApiError 400 naming the place."""
    try:
        if not body.isascii():
            body.decode()  # msgspec does not look into what it skips or only carries
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$")
        param = place.rstrip("`").removeprefix(".") or None
        if param is None and "`" in said and said.startswith("Object missing required field"):
            param = said.split("`")[1]
        raise errors.bad_request(f"{said}{f' at {param}' if place else ''}.", param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.bad_request(f"The request body is not JSON that can be read: {error}") from error


def json(value: object) -> Document:
    return Document(msgspec.json.encode(value))
