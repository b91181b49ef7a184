"""``n`` answers to one request: ``n`` concurrent requests to the backend, combined into one answer with ``n`` choices.

The backend has no parameter ``n``. If one of the answers fails, the others are cancelled and the request fails.
"""

from collections.abc import Callable, Sequence

import trio

from codexd.errors import ApiError
from codexd.protocol.conversion import DONE
from codexd.relay.relay import Client, Header, Relay, write

MAX_N = 8


class Fanout:
    """The relays of one request, combined into one body.

    ``usage`` returns the chunk with the total usage, or nothing. Conversions must not write that or ``[DONE]``.
    """

    def __init__(self, relays: Sequence[Relay], usage: Callable[[], bytes]) -> None:
        self._relays = relays
        self._usage = usage
        self._started = False
        self._lock = trio.Lock()
        self.error: ApiError | None = None

    @property
    def done(self) -> bool:
        return all(relay.done for relay in self._relays)

    async def stream(self, client: Client) -> None:
        """Streams all answers to the client. Raises ApiError only if the status line has not been sent."""
        reported = False
        async with trio.open_nursery() as nursery:

            async def stream_one(relay: Relay) -> None:
                nonlocal reported
                try:
                    await relay.stream(_Branch(self, client))
                except ApiError as error:
                    self.error = self.error or error
                if relay.error is not None:
                    # A relay that had started has sent its error to the client.
                    reported = reported or self.error is None
                    self.error = self.error or relay.error
                    nursery.cancel_scope.cancel()

            for relay in self._relays:
                nursery.start_soon(stream_one, relay)
        if self.error is None:
            await write(client, self._usage() + DONE)
        elif not self._started:
            raise self.error
        elif not reported:
            await write(client, b"data: %b\n\n" % self.error.body())
        await client.end()

    async def start(self, client: Client, headers: Sequence[Header]) -> None:
        """Starts the answer when the first relay starts; later calls do nothing."""
        async with self._lock:
            if not self._started:
                await client.start(headers)
                self._started = True

    async def write(self, client: Client, data: bytes) -> None:
        async with self._lock:
            await write(client, data)

    async def collect(self) -> tuple[list[bytes], Sequence[Header]]:
        """Returns all documents in order, and the headers of the one that ended last. Raises ApiError."""
        documents: list[bytes] = [b""] * len(self._relays)
        headers: Sequence[Header] = ()
        async with trio.open_nursery() as nursery:

            async def collect(index: int, relay: Relay) -> None:
                nonlocal headers
                try:
                    documents[index], headers = await relay.collect()
                except ApiError as error:
                    self.error = self.error or error
                    nursery.cancel_scope.cancel()

            for index, relay in enumerate(self._relays):
                nursery.start_soon(collect, index, relay)
        if self.error is not None:
            raise self.error
        return documents, headers


class _Branch:
    """The client for one relay. ``write_now`` writes nothing, because another relay may be writing."""

    def __init__(self, fanout: Fanout, client: Client) -> None:
        self._fanout = fanout
        self._client = client

    async def start(self, headers: Sequence[Header]) -> None:
        await self._fanout.start(self._client, headers)

    def write_now(self, data: bytes) -> bytes:
        return data

    async def write_rest(self, rest: memoryview | bytes) -> None:
        await self._fanout.write(self._client, bytes(rest))

    async def end(self) -> None:
        pass
