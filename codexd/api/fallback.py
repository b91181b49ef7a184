"""The answer of another model when the one that was asked for is at its limit (``models.fallback``).

Only an answer that has not begun can be another model's: as long as its relay raises instead of writing a frame.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog

from codexd.api.exchange import Document
from codexd.api.record import Record
from codexd.errors import ApiError
from codexd.protocol.adjustments import Adjustment
from codexd.relay.fanout import Fanout
from codexd.relay.relay import Client, Header, Relay

LIMITS = frozenset({"usage_limit_reached", "usage_not_included"})
"""Codes of a 429 that is the model's, and not codexd's own."""

log = structlog.get_logger()


class Opened(NamedTuple):
    """An answer that was prepared for one model. ``join`` makes one document of several, for a fanout."""

    model: str
    body: Relay | Fanout
    join: Callable[[Sequence[bytes]], bytes]

    async def document(self) -> Document:
        """Returns the complete answer. Raises ApiError."""
        if isinstance(self.body, Relay):
            return Document(*await self.body.collect())
        documents, headers = await self.body.collect()
        return Document(self.join(documents), headers)


class FallbackAnswer:
    """The answer of the first model that is not at its limit. ``others`` open the answers of the others, in order."""

    def __init__(self, record: Record, first: Opened, others: list[Callable[[], Awaitable[Opened]]]) -> None:
        self._record = record
        self._opened = first
        self._others = others
        self._error: ApiError | None = None

    @property
    def error(self) -> ApiError | None:
        return self._opened.body.error

    @property
    def done(self) -> bool:
        return self._opened.body.done

    async def stream(self, client: Client) -> None:
        """Streams the answer to the client. Raises ApiError only if the status line has not been sent."""
        while True:
            try:
                await self._opened.body.stream(_Starting(client, self._others.clear))
            except ApiError as error:
                await self._next(error)
            else:
                return

    async def document(self) -> Document:
        """Returns the complete answer. Raises ApiError."""
        while True:
            try:
                return await self._opened.document()
            except ApiError as error:
                await self._next(error)

    async def _next(self, error: ApiError) -> None:
        """Opens the next model's answer. Raises the first model's error if there is none, or another one's own."""
        self._error = self._error or error
        body = self._opened.body
        begun = isinstance(body, Relay) and body.first_at is not None
        if begun or error.error.code not in LIMITS:
            raise error
        while self._others:
            try:
                opened = await self._others.pop(0)()
            except ApiError as refused:
                log.warning("a model in models.fallback cannot be used", reason=refused.error.message)
                continue
            before = self._opened.model
            log.warning("the model is at its usage limit; trying another one", limited=before, model=opened.model)
            self._record.fell_back(before, opened.model)
            self._record.adjust(Adjustment("model", opened.model))
            self._opened = opened
            return
        raise self._error


class _Starting:
    """The client of an answer. ``started`` is called with the first byte, to release what could open another answer."""

    __slots__ = ("_start", "_started", "end", "write_now", "write_rest")

    def __init__(self, client: Client, started: Callable[[], None]) -> None:
        self._start, self._started = client.start, started
        self.write_now, self.write_rest, self.end = client.write_now, client.write_rest, client.end

    async def start(self, headers: Sequence[Header]) -> None:
        self._started()
        await self._start(headers)
