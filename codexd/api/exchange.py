"""One HTTP exchange with a client, from the request's body to the written reply.

    state      | left by                                         | to
    -----------|-------------------------------------------------|----------
    no head    | a document, also for an ApiError or a bug       | complete
    no head    | the head of a stream (``_StreamClient.start``)  | streaming
    streaming  | the last byte, also that of an error event      | complete
    any        | the client disconnects                          | incomplete

``Record.complete`` says whether the exchange ended as complete.
"""

import sys
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec
import structlog
import trio

from codexd import errors
from codexd.api.record import Record
from codexd.errors import ApiError
from codexd.lowlevel import workers
from codexd.protocol import bounds, codings, decoding
from codexd.protocol.decoding import TooDeep
from codexd.reasons import quoted
from codexd.relay.relay import Client, Header
from codexd.server.request import BODY_TIMEOUT, BodyTimeout, BodyTooLarge, NoMemory, ServerRequest
from codexd.system.memory import Hold

STREAM_HEADERS: Sequence[Header] = (
    ("cache-control", "no-cache, no-transform"),
    ("x-accel-buffering", "no"),
)

log = structlog.get_logger()

TOO_DEEP = (RecursionError, TooDeep)
"""Raised for deeply nested JSON. It may pass one decoder and fail in a later one, which runs deeper in the stack."""

_T = TypeVar("_T")


class Document(NamedTuple):
    """A complete reply."""

    body: bytes
    headers: Sequence[Header] = ()
    status: int = 200
    content_type: str = "application/json"


class StreamedBody(Protocol):
    """Writes the body of a streamed reply, such as a relay. ``error`` is set if it failed."""

    @property
    def error(self) -> ApiError | None: ...

    @property
    def done(self) -> bool:
        """Whether the answer is complete; a client may disconnect as soon as it has the last event."""

    async def stream(self, client: Client) -> None: ...


Reply = Document | StreamedBody


class Exchange:
    """The argument of an endpoint: the request, its record, and the names in its path."""

    __slots__ = (
        "_max_body",
        "_max_items",
        "_request",
        "headers",
        "memory",
        "method",
        "names",
        "path",
        "record",
        "server",
    )

    def __init__(
        self, request: ServerRequest, record: Record, names: dict[str, str], max_body: int, max_items: int
    ) -> None:
        self._request = request
        self._max_body = max_body
        self._max_items = max_items
        self.record = record
        self.names = names
        self.headers = request.headers
        self.method = request.method
        self.path = request.path
        self.server = request.server
        self.memory = record.memory = request.memory

    @property
    def client(self) -> tuple[str, int] | None:
        return self._request.client

    @property
    def query(self) -> dict[str, str]:
        """The last value of each name."""
        return dict(parse_qsl(self._request.query.decode("latin-1"), keep_blank_values=True))

    async def body(self, *, form: bool = False) -> bytes:
        """Returns the request's body, decompressed. Raises ApiError 400, 408, 413, 415 or 503.

        ``form``: it will be read as a form, and not as JSON, whose values are counted before anything is built of them.
        """
        try:
            data = await self._request.body()
        except BodyTooLarge as error:
            raise errors.too_large(self._max_body) from error
        except BodyTimeout as error:
            raise errors.body_timeout(BODY_TIMEOUT) from error
        except NoMemory as error:
            raise errors.no_memory(self.memory.room.size) from error
        coding = self.headers.get("content-encoding", "")
        if coding:
            # A small compressed body may expand to many bytes.
            data = await workers.run(sys.maxsize, partial(_decoded, coding, data, self._max_body))
        self.record.weight = len(data)
        await take(self.memory, data, 0 if form else self._max_items)
        return data


BYTES, VALUES = 5, 450
"""What a request takes at its highest, its body included: bytes for each byte and for each value, measured."""


MODEST = 64
"""The part of the free memory up to which a request may be charged for more values than it has."""


async def take(memory: Hold, data: bytes, max_items: int) -> None:
    """Takes the memory that a body will need, converted; ``max_items`` is 0 for a form. Raises ApiError 413 or 503."""
    values = 0
    if max_items:
        room = memory.room
        enough = (room.size - room.used) // MODEST // VALUES
        values = await workers.run(len(data), partial(bounds.measure, data, max_items, enough))
    needed = max(0, BYTES * len(data) + VALUES * values - memory.taken)
    if not memory.take(needed):
        size = memory.room.size
        raise errors.needs_more_memory(size) if needed + memory.taken > size else errors.no_memory(size)


async def answer(exchange: Exchange, request: ServerRequest, reply: Awaitable[Reply]) -> None:
    """Writes the reply: a document, or a stream. A stream that fails before its first byte becomes a document."""
    record = exchange.record
    try:
        whole = await _whole(request, reply, record)
        if whole is not None:
            record.status = whole.status
            fields = [("content-type", whole.content_type), *whole.headers, *record.headers()]
            await request.answer(whole.status, fields, whole.body)
            record.complete = True
    except BaseException as error:
        if not _is_cancellation(error):
            record.status, record.complete = 500, True
        raise


async def _whole(request: ServerRequest, reply: Awaitable[Reply], record: Record) -> Document | None:
    """Returns the document to send; None if the answer was streamed."""
    try:
        found = await reply
        if isinstance(found, Document):
            return found
        await _stream(request, found, record)
    except ApiError as error:
        return failed(error, record)
    except Exception as error:
        if request.begun:
            raise
        return failed(errors.too_deep(), record) if isinstance(error, TOO_DEEP) else bug(error, record)
    return None


async def _stream(request: ServerRequest, body: StreamedBody, record: Record) -> None:
    record.status = 200
    try:
        await body.stream(_StreamClient(request, record))
        record.complete = True
    finally:
        record.complete |= body.done
        if body.error is not None:
            record.fail(body.error)


class _StreamClient:
    """The client of a relay, over one HTTP request."""

    __slots__ = ("_record", "_start", "end", "write_now", "write_rest")

    def __init__(self, request: ServerRequest, record: Record) -> None:
        self._record = record
        self._start = request.start
        self.write_now = request.write_now
        self.write_rest = request.write_rest
        self.end = request.end

    async def start(self, headers: Sequence[Header]) -> None:
        # The adjustments are final only now: a second attempt may drop parameters.
        kind = ("content-type", self._record.stream_type)
        await self._start([kind, *STREAM_HEADERS, *self._record.headers(), *headers])


def _is_cancellation(error: BaseException) -> bool:
    """Returns whether an exception, or a group of them, is only a cancellation: the client has disconnected."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)


def _decoded(coding: str, data: bytes, limit: int) -> bytes:
    log.debug("the request is compressed", body_encoding=coding[:40], size=len(data))
    most = codings.most(len(data))
    expands, limit = most < limit, min(limit, most)
    try:
        body = codings.decompress(coding, data, limit)
    except LookupError as error:
        raise ApiError(
            415,
            f"Unsupported content-encoding {quoted(coding[:40])}. Send plain JSON, or use gzip, deflate, br or zstd.",
            code="unsupported_encoding",
        ) from error
    except codings.Undecodable as error:
        raise errors.bad_request(f"The request body is not valid {coding[:40]}: {error}") from error
    if len(body) > limit:
        raise errors.expands_too_much(codings.RATIO) if expands else errors.too_large(limit)
    return body


# --- documents


def failed(error: ApiError, record: Record) -> Document:
    record.fail(error)
    return Document(record.failure(error), list(error.all_headers().items()), error.status)


def bug(error: Exception, record: Record) -> Document:
    log.error("internal error while handling a request", exc_info=error)
    return failed(errors.internal(record.id), record)


def json(value: object) -> Document:
    return Document(msgspec.json.encode(value))


def decode(decoder: decoding.Decoder[_T], body: bytes) -> _T:
    """Decodes a small body. Raises ApiError 400, which names the invalid member."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise errors.wrong_shape(error) from error
    except msgspec.DecodeError as error:
        raise errors.not_json(error) from error
