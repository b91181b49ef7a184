"""One HTTP exchange with a client, from request id to log line; with ``api`` and ``server`` all that knows the host.

Each request has a ``Record`` (who, what, how it went), which the end of the exchange logs. Streamed answers do not go
through Quart's response bodies, which are async generators, where a nursery would be illegal: ``HttpConnection`` lets
``relay`` write to the client from its own task.
"""

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import msgspec
import structlog
import trio
from hypercorn.typing import ASGISendCallable
from quart import Response, request
from quart.wrappers import Request
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest
from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestEntityTooLarge

from codexd import errors, observe
from codexd.config import is_loopback
from codexd.errors import ApiError
from codexd.protocol.responses import Usage
from codexd.relay import Client, Direct, Header
from codexd.server import CHUNKS

MAX_LOGGED_PATH = 200

STREAM_HEADERS: Sequence[Header] = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache, no-transform"),
    ("x-accel-buffering", "no"),
)

log = structlog.get_logger()

_T = TypeVar("_T")
_ADDRESS = re.compile(r"[0-9a-fA-F:.]{3,45}")


class Route(NamedTuple):
    """One endpoint. ``path`` is Werkzeug's pattern; ``api``: it lies under /v1, and under nothing.

    ``failure`` makes the document of an error, in the shape of the endpoint's API.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[Response]]
    api: bool = True
    failure: Callable[[ApiError], bytes] = ApiError.body


class Record:
    """One request, for the log: filled in as it is understood."""

    __slots__ = (
        "adjusted", "client", "complete", "error", "failure", "id", "key", "model", "started", "status", "streamed",
        "usage",
    )  # fmt: skip

    def __init__(self, request_id: str) -> None:
        self.id = request_id
        self.started = trio.current_time()
        self.status = 0
        self.streamed = False
        self.complete = False
        self.adjusted: list[str] = []
        self.key: str | None = None
        self.client: str | None = None
        self.model: str | None = None
        self.error: str | None = None
        self.failure: Callable[[ApiError], bytes] = ApiError.body
        self.usage: Callable[[], Usage | None] = lambda: None

    def finish(self, method: str, path: str) -> None:
        """Log the end of the request. 499 is a client that left, in nginx's word for it."""
        fields: dict[str, Any] = {
            "status": self.status if self.complete else 499,
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


def client_of(scope: Mapping[str, Any], headers: Headers) -> str | None:
    """The address of a client on another machine, for the log.

    Through a unix socket it is what the proxy says: who may write there is settled by its mode. What a TCP client says
    of itself counts for nothing.
    """
    peer = scope.get("client")
    address = peer[0] if peer else headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    return address if _ADDRESS.fullmatch(address) and not is_loopback(address) else None


@lru_cache(maxsize=64)
def name_in(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def foreign_host(scope: Mapping[str, Any], headers: Headers, own: Sequence[str] = ()) -> str | None:
    """The name that a request over loopback is addressed to, when it is not this machine's. Browsers always send one.

    Over a unix socket it is the proxy that was addressed, and beyond loopback a machine has many names.
    """
    server = scope.get("server")
    host = headers.get("host")  # empty where HTTP/1.0 sent none
    if not server or not is_loopback(server[0]) or not host:
        return None
    name = name_in(host)
    return None if is_loopback(name) or name in own else name


def _level_for(path: str) -> Callable[..., None]:
    """Probes come every few seconds and say nothing."""
    return cast("Callable[..., None]", log.debug if path.endswith("/health") else log.info)


class ApiRequest(TrioRequest):
    """Quart's request, with our record of it."""

    record: Record


class Body(Protocol):
    """What writes the body of a streamed response: a relay. ``error`` is how it went."""

    error: ApiError | None

    @property
    def done(self) -> bool:
        """Whether the answer is complete; a client may leave as soon as it has the last event."""

    async def stream(self, client: Client) -> None: ...


class Streamed(Response):
    """A response whose body a relay writes."""

    def __init__(self, relay: Body) -> None:
        super().__init__(b"", 200)
        self.relay = relay


class _AsgiClient:
    """The client's side of a relay, over ASGI."""

    def __init__(self, scope: Mapping[str, Any], send: ASGISendCallable, record: Record) -> None:
        self._send = send
        self._record = record
        chunked = scope["http_version"] == "1.1" and scope["method"] != "HEAD"
        self.direct: Direct | None = scope.get("state", {}).get(CHUNKS) if chunked else None

    async def start(self, headers: Sequence[Header]) -> None:
        # What was adjusted is known now and not before: a second try may leave something out.
        all_headers = [*STREAM_HEADERS, *_trace_headers(self._record), *headers]
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in all_headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": encoded})

    async def write(self, data: bytes) -> None:
        if self.direct is not None and data:
            if rest := self.direct.chunk_now(data):
                await self.direct.write_rest(rest)
        else:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class HttpConnection(TrioASGIHTTPConnection):
    """One request on its way through Quart: the request id, the log lines, and streamed answers."""

    async def handle_request(  # type: ignore[override]  # quart-trio's own signature differs from Quart's
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        made = f"req_{secrets.token_hex(16)}"
        record = Record(observe.request_id(request.headers.get("x-request-id"), made))
        record.client = client_of(self.scope, request.headers)
        cast("ApiRequest", request).record = record
        structlog.contextvars.bind_contextvars(request_id=record.id)
        path = request.path[:MAX_LOGGED_PATH]
        _level_for(path)("request started", method=request.method, path=path)

        async def noting(message: Any) -> None:
            # The host cancels this task as soon as the last message is out, so what comes after may never run.
            record.complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            response: Response | None = cast("Response", await self.app.handle_request(request))
            if isinstance(response, Streamed):
                response = await self._stream(noting, response, record)
            if response is not None:
                record.status = response.status_code
                response.headers.update(_trace_headers(record))
                await self._send_response(noting, response)
        except BaseException as error:
            if not _is_leaving(error):
                record.status, record.complete = 500, True
            raise
        finally:
            record.finish(request.method, path)
        nursery.cancel_scope.cancel()

    async def _stream(self, send: ASGISendCallable, response: Streamed, record: Record) -> Response | None:
        """Relay; a failure from before the first byte comes back as an ordinary response."""
        relay = response.relay
        record.status = 200
        try:
            await relay.stream(_AsgiClient(self.scope, send, record))
        except ApiError as error:
            return error_response(error, record)
        finally:
            record.complete |= relay.done
            if relay.error is not None:
                record.error = relay.error.error.code
        return None


def _is_leaving(error: BaseException) -> bool:
    """Whether this is the client's leaving, alone or in a nursery's group, and no fault."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)


def _trace_headers(record: Record) -> list[Header]:
    headers = [("x-request-id", record.id), ("request-id", record.id)]  # OpenAI's name for it, and Anthropic's
    if record.adjusted:
        headers.append(("x-codexd-adjusted", ", ".join(record.adjusted)))
    return headers


def error_response(error: ApiError, record: Record) -> Response:
    record.error = error.error.code or error.error.type
    response = Response(record.failure(error), error.status, content_type="application/json")
    response.headers.update(error.all_headers())
    return response


# --- for the endpoints


def record_of_request() -> Record:
    return cast("ApiRequest", request).record


async def read_body() -> bytes:
    """The request's body, decompressed. Raises ApiError 400, 413 or 415."""
    data = cast("bytes", await request.get_data(cache=False))
    match request.headers.get("content-encoding", "identity").lower():
        case "" | "identity":
            return data
        case "zstd":
            return _unzstd(data, request.max_content_length or 0)
        case encoding:
            raise ApiError(
                415,
                f"Request bodies in {encoding!r} encoding are not understood; send the JSON as it is, or in zstd.",
                code="unsupported_encoding",
            )


def _unzstd(data: bytes, limit: int) -> bytes:
    # Few clients compress: the library's memory is for them.
    import zstandard

    log.debug("the request is compressed", body_encoding="zstd", size=len(data))

    try:
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            body = reader.read(limit + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise errors.bad_request(f"The request body is not zstd that can be read: {error}") from error
    if len(body) > limit:
        raise RequestEntityTooLarge
    return body


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


def document(content: bytes, headers: Sequence[Header]) -> Response:
    """A JSON document that is encoded already."""
    response = Response(content, 200, content_type="application/json")
    for name, value in headers:
        response.headers[name] = value
    return response


def json(value: object) -> Response:
    return Response(msgspec.json.encode(value), 200, content_type="application/json")
