"""One request to the backend, and its retry without encrypted reasoning."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from codexd.errors import ApiError
from codexd.upstream.call import Call
from codexd.upstream.client import Upstream
from codexd.upstream.http_lane import EventStream
from codexd.upstream.websocket_lane import WebsocketStream

log = structlog.get_logger()


class Attempts:
    """The attempts at one request.

    ``without_reasoning`` returns the call without encrypted reasoning, None if it contains none. That reasoning belongs
    to an account and a model. If the backend cannot decrypt an item it refuses the request; the next attempt has none.
    """

    def __init__(self, upstream: Upstream, call: Call, without_reasoning: Callable[[], Call | None]) -> None:
        self._upstream = upstream
        self._call: Call | None = call
        self._without_reasoning = without_reasoning
        self._websockets = self._responses = 0

    @property
    def call(self) -> Call:
        """The request in the form in which it is sent next. Raises ValueError after ``forget``."""
        if self._call is None:
            raise ValueError("the request was forgotten")
        return self._call

    def forget(self) -> None:
        """Releases the request; it cannot be opened again."""
        self._call, self._without_reasoning = None, _nothing

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EventStream | WebsocketStream]:
        """Opens the backend's event stream as ``Upstream.open`` does. Raises ValueError after ``forget``."""
        timings = self.call.timings
        try:
            async with self._upstream.open(self.call, self._websockets) as source:
                yield source
        except ApiError as error:
            # A websocket that failed is followed by another one, that by HTTP; over HTTP there is one retry, or none
            # after websockets.
            if timings.lane == "websocket":
                self._websockets += 1
            else:
                error.retryable = error.retryable and not self._responses and self._websockets < 2
                self._responses += 1
            if error.error.code == "invalid_encrypted_content" and (call := self._without_reasoning()) is not None:
                log.info("the backend cannot decrypt the reasoning that was sent back; trying without it")
                self._call, self._without_reasoning = call, _nothing
                error.retryable = True
            raise


def _nothing() -> None:
    return None
