"""The HTTP lane: one request and its event stream over HTTP."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, cast

import httpx
import trio

from codexd import errors
from codexd.protocol import sse, zstd
from codexd.telemetry.trace import Timings
from codexd.upstream.transport import ResponseBody

MAX_ERROR_BODY = 256 * 1024
"""Bytes of an error's body to read at most."""


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

    __slots__ = ("_decoder", "_push", "headers")

    def __init__(self, response: httpx.Response | PlainResponse) -> None:
        self.headers: Mapping[str, str] = response.headers
        self._decoder = sse.EventDecoder()
        if isinstance(response, PlainResponse):
            self._push = response.stream.push
        else:
            self._push = partial(_push, _chunks(response))

    async def push(self, step: Callable[[Sequence[bytes]], bool]) -> bool:
        """Calls ``step`` as the relay's ``UpstreamSource`` says. Raises ApiError for an event that is too large."""
        feed = self._decoder.feed
        try:
            return await self._push(lambda data: step(feed(data)))
        except sse.EventTooLarge as error:
            raise errors.stream_ended() from error


def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    """Returns the body piece by piece, decompressed if a proxy has compressed it."""
    match response.headers.get("content-encoding", "").strip().lower():
        case "":
            return aiter(cast("httpx.AsyncByteStream", response.stream))
        case "zstd":
            return _Unzstd(response.aiter_raw())
        case _:
            return response.aiter_bytes()


async def _push(chunks: AsyncIterator[bytes], step: Callable[[bytes], bool]) -> bool:
    async for data in chunks:
        if not step(data):
            return False
    return True


class _Unzstd:
    """Decodes a zstd body, which httpx can do only with another package.

    Not a generator, because the garbage collector would finalise an unfinished one with a warning.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._decoder = zstd.ZstdDecoder()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return self._decoder.feed(await anext(self._chunks))
        except zstd.Undecodable as error:
            raise httpx.DecodingError(str(error)) from error


async def read_error(response: httpx.Response | PlainResponse) -> bytes:
    """Returns the body of an error, cut off at MAX_ERROR_BODY, and closes the response."""
    body = b""
    try:
        async for data in response.aiter_bytes():
            body += data
            if len(body) > MAX_ERROR_BODY:
                break
    finally:
        await response.aclose()
    return body


def note(timings: Timings, status: int, headers: Mapping[str, str]) -> None:
    timings.status, timings.head = status, trio.current_time()
    timings.request_id = headers.get("x-request-id") or headers.get("x-oai-request-id")
