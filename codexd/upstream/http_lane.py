"""The HTTP lane: one request and its event stream over HTTP."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, cast

import httpx
import trio

from codexd import errors
from codexd.protocol import codings, sse
from codexd.telemetry.trace import Timings
from codexd.upstream.transport import ResponseBody

MAX_ERROR_BODY = 256 * 1024
"""Bytes of an error's body to read at most."""


MAX_STREAM = 512 * 1024 * 1024
"""Bytes of an answer, including what does not belong to an event, such as comments."""


class PlainResponse(NamedTuple):
    """An uncompressed response, without the cost of an httpx.Response."""

    headers: Mapping[str, str]
    stream: ResponseBody
    status_code: int = 200

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        return aiter(self.stream)

    async def aclose(self) -> None:
        await self.stream.aclose()


class EventStream:
    """A response with status 200, as events."""

    __slots__ = ("_bytes", "_decoder", "_push", "headers")

    def __init__(self, response: httpx.Response | PlainResponse) -> None:
        self.headers: Mapping[str, str] = response.headers
        self._decoder = sse.EventDecoder()
        self._bytes = 0
        if isinstance(response, PlainResponse):
            self._push = response.stream.push
        else:
            self._push = partial(_push, _chunks(response))

    @property
    def pending(self) -> int:
        return self._decoder.pending

    async def push(self, step: Callable[[Sequence[bytes]], bool]) -> bool:
        """Calls ``step`` as the relay's ``UpstreamSource`` says. Raises ApiError for an event that is too large."""
        feed = self._decoder.feed

        def take(data: bytes) -> bool:
            self._bytes += len(data)
            if self._bytes > MAX_STREAM:
                raise errors.answer_too_large(MAX_STREAM)
            return step(feed(data))

        try:
            return await self._push(take)
        except sse.EventTooLarge as error:
            raise errors.stream_ended() from error


def _chunks(response: httpx.Response | PlainResponse) -> AsyncIterator[bytes]:
    """Returns the body piece by piece, decompressed if a proxy has compressed it. Raises httpx.DecodingError."""
    if isinstance(response, PlainResponse):
        return response.aiter_bytes()
    coding = response.headers.get("content-encoding", "")
    if not coding:
        return aiter(cast("httpx.AsyncByteStream", response.stream))
    return _Expanded(response.aiter_raw(), coding)


async def _push(chunks: AsyncIterator[bytes], step: Callable[[bytes], bool]) -> bool:
    async for data in chunks:
        if not step(data):
            return False
        await trio.lowlevel.checkpoint()  # one read may become any number of pieces
    return True


class _Expanded:
    """Decodes a body in bounded pieces; httpx's own decoders have no bound.

    Not a generator, because the garbage collector would finalise an unfinished one with a warning.
    """

    def __init__(self, chunks: AsyncIterator[bytes], coding: str) -> None:
        self._chunks = chunks
        self._pieces: Iterator[bytes] = iter(())
        try:
            self._expander = codings.Expander(coding)
        except LookupError as error:
            raise httpx.DecodingError(f"an unknown content-encoding: {coding[:40]}") from error

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            while (piece := next(self._pieces, None)) is None:
                self._pieces = self._expander.feed(await anext(self._chunks))
        except codings.Undecodable as error:
            raise httpx.DecodingError(str(error)) from error
        return piece


class BodyTooLarge(Exception):
    """An answer's body has more bytes than its limit."""


async def read(response: httpx.Response | PlainResponse, limit: int, *, cut: bool = False) -> bytes:
    """Returns the body, and closes the response. ``cut``: only the first ``limit`` bytes, or a piece more.

    Raises BodyTooLarge, and httpx's exceptions.
    """
    body = bytearray()
    try:
        async for data in _chunks(response):
            body += data
            if len(body) > limit:
                if not cut:
                    raise BodyTooLarge
                break
    finally:
        await response.aclose()
    return bytes(body)


async def read_error(response: httpx.Response | PlainResponse) -> bytes:
    """Returns the body of an error, cut off at MAX_ERROR_BODY, and closes the response."""
    return await read(response, MAX_ERROR_BODY, cut=True)


def note(timings: Timings, status: int, headers: Mapping[str, str]) -> None:
    timings.status, timings.head = status, trio.current_time()
    timings.request_id = headers.get("x-request-id") or headers.get("x-oai-request-id")
