"""Relay of one upstream stream to one client: reading, writing, keep-alives, retry, cancellation.

    state    | left by                                                        | to
    ---------|----------------------------------------------------------------|----------
    waiting  | an event with content of the answer; a keep-alive is due        | started
    waiting  | a temporary failure, once                                       | waiting
    waiting  | any other failure, a silence above the limit, ``abort``         | failed, with an HTTP status
    started  | the last event                                                  | done
    started  | a failure, a silence above the limit, ``abort``                 | failed, with one error frame
    any      | the client leaves                                               | cancelled

The request's task is the driver. The process's reactor (``codexd.lowlevel.reactor``) calls a step for each read, which
converts the bytes and writes them to the client without waiting. When the step would have to wait, it returns False and
the driver waits. Nothing is read while a write is pending, so a slow client slows the backend down. Three tasks joined
by channels would be simpler, but cost 6 µs and two scheduler passes per event (measured).

A timer asks ``Pacing`` what is due. A task in the relay's nursery writes keep-alives, because the driver waits for the
backend; the step holds output back meanwhile. When the client leaves, the server cancels the driver, and leaving the
upstream's context closes its connection.

The status line is held back until the answer starts, so that an earlier failure can be retried or get its own status,
but at most for a keep-alive interval, because of proxies' timeouts.
"""

import contextvars
import random
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from typing import NoReturn, Protocol

import structlog
import trio

from codexd import errors
from codexd.errors import ApiError
from codexd.lowlevel import timers, workers
from codexd.lowlevel.workers import LARGE
from codexd.protocol import bounds
from codexd.protocol.codex.events import Usage
from codexd.protocol.conversion import Conversion
from codexd.relay.pacing import Deadlines, Pacing
from codexd.system.memory import UNBOUNDED, Hold

DRAIN_PATIENCE = 0.5
"""Seconds to wait for the end of the body after the last event, so that the connection can be reused."""

MAX_ANSWER = 256 * 1024 * 1024
"""Bytes of the events of one answer. The longest ones, with several images, have a tenth of it."""

FREE = 1024 * 1024
"""Bytes of an answer that is collected, up to which they are not counted as memory."""

COLLECTED, PENDING = 3, 2
"""Bytes that an answer takes for each of its events' bytes, until it is a document; and an event, until it is whole."""

MAX_VALUES = 100_000
"""JSON values of an event."""

Header = tuple[str, str]

log = structlog.get_logger()


class UpstreamSource(Protocol):
    """An upstream response with status 200."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def pending(self) -> int:
        """Bytes of an event that has not come to its end."""

    @property
    def push(self) -> Callable[[Callable[[Sequence[bytes]], bool]], Awaitable[bool]]:
        """Calls a step with each read's events until it returns False or the stream ends; returns whether it ended.

        A read without a complete event calls it with none. The step must neither wait nor block. Another call continues
        where the last one stopped.
        """


class Client(Protocol):
    """Writer of one answer to the client. ``start`` sends the status line; ``end`` completes the body."""

    async def start(self, headers: Sequence[Header]) -> None: ...

    @property
    def write_now(self) -> Callable[[bytes], memoryview | bytes]:
        """Writes data, not empty, without waiting; returns the rest, to pass to ``write_rest`` before other writes."""

    async def write_rest(self, rest: memoryview | bytes) -> None: ...

    async def end(self) -> None: ...


def _convert_bounded(conversion: Conversion, events: Sequence[bytes]) -> bytes:
    """Converts large events, unless one would become too much; a small one cannot."""
    if any(bounds.exceeds(event, MAX_VALUES) for event in events):
        conversion.state.error = errors.upstream_unreadable(f"an event of its answer has over {MAX_VALUES} values")
        return b""
    return conversion.feed(events)


def _closed() -> NoReturn:
    raise ValueError("the answer has ended")


def _nothing() -> None:
    pass


async def write(client: Client, data: bytes) -> None:
    if data and (rest := client.write_now(data)):
        await client.write_rest(rest)


class Relay:
    """One answer. ``usage`` and ``error`` are set after ``stream`` or ``collect``.

    ``first_at`` is the time (trio's clock) of the first event with content of the answer.

    ``open`` and ``convert`` make an upstream stream and a conversion for each attempt. ``headers_of`` converts the
    upstream's headers to the client's. ``forget`` is called when a streamed answer has started: it will not be retried,
    so the request, which may be megabytes, can be released. ``memory``: of which a collected answer takes.
    """

    def __init__(
        self,
        open: Callable[[], AbstractAsyncContextManager[UpstreamSource]],  # noqa: A002 - it opens
        convert: Callable[[], Conversion],
        headers_of: Callable[[UpstreamSource], Sequence[Header]],
        deadlines: Deadlines,
        forget: Callable[[], object] = lambda: None,
        *,
        memory: Hold | None = None,
    ) -> None:
        self._open = open
        self._convert: Callable[[], Conversion] | None = convert
        self._forget = forget
        self._memory = memory or UNBOUNDED.hold()
        self._headers_of = headers_of
        self._deadlines = deadlines
        self._conversion = convert()
        self._headers: Sequence[Header] = ()
        self._started = False
        self._held = self._unwritten = b""
        self._large: Sequence[bytes] = ()
        self._received = self._pending = 0
        self._rest: memoryview | bytes = b""
        self._keeping_alive: trio.Event | None = None
        self._scope: trio.CancelScope
        self._aborted: ApiError | None = None
        self._fault: Exception | None = None
        self.first_at: float | None = None
        self.error: ApiError | None = None
        self.running = False

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self._conversion.state.done

    @property
    def events(self) -> int:
        """Number of events that the backend has sent."""
        return self._conversion.events

    @property
    def usage(self) -> Usage | None:
        return self._conversion.state.usage

    async def stream(self, client: Client) -> None:
        """Streams the answer to the client. Raises ApiError only if the status line has not been sent."""
        # Watched until the keep-alive has ended too: it may wait for a client that does not read.
        with self._watched(client):
            async with trio.open_nursery() as self._nursery:
                self._scope = self._nursery.cancel_scope
                await self._drive(client)
        self._settle()
        error = self.error
        if error is not None:
            if not self._started:
                raise self._with_headers(error)
            log.warning("the answer failed after it had started", code=error.error.code, reason=error.error.message)
            await write(client, self._conversion.failure(error))
        await client.end()

    async def collect(self) -> tuple[bytes, Sequence[Header]]:
        """Returns the whole answer as one document, and its headers. Raises ApiError."""
        with trio.CancelScope() as self._scope, self._watched(None):
            await self._drive(None)
        self._settle()
        if self.error is not None:
            raise self._with_headers(self.error)
        return await workers.run(self._received, self._conversion.document, events=True), self._headers

    def abort(self, error: ApiError) -> None:
        """Ends the answer with this error, unless it is complete."""
        if self.running and not self._conversion.state.done:
            self._aborted = error
            self._scope.cancel()

    def _settle(self) -> None:
        if self._fault is not None:
            raise self._fault
        self.error = (None if self.done else self._aborted) or self.error

    def _with_headers(self, error: ApiError) -> ApiError:
        """Adds the rate limit headers to a failure that came inside a 200."""
        error.headers = error.headers or list(self._headers)
        return error

    # --- the driver

    async def _drive(self, client: Client | None) -> None:
        """Runs one or two attempts. Stores a failure, because a nursery would raise it as an exception group."""
        try:
            while (failure := await self._attempt(client)) is not None:
                safe = failure.retryable and self._convert is not None and not self._conversion.state.begun
                pause = self._pacing.retry(trio.current_time(), safe=safe, jitter=random.uniform(0.5, 1.5))  # noqa: S311 - a pause is not a secret
                if pause is None:
                    raise failure
                log.info("trying again", after=failure.error.code)
                await trio.sleep(pause)
                if self._convert is None:
                    raise failure  # a keep-alive has started the answer
                self._conversion, self._held = self._convert(), b""
        except ApiError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - ``_settle`` raises it
            self._fault = error

    async def _attempt(self, client: Client | None) -> ApiError | None:
        """Runs one attempt; returns its failure, if any."""
        state = self._conversion.state
        try:
            async with self._open() as source:
                step = self._step(client, source)
                known, self._headers = source.headers, self._headers_of(source)
                ended = False
                while not (ended or state.done or state.error is not None):
                    ended = await source.push(step)
                    if self._large:
                        await self._convert_large()
                    if source.headers is not known:
                        # Over a websocket the limits come with the first events.
                        known, self._headers = source.headers, self._headers_of(source)
                    if client is not None and (self._unwritten or self._rest):
                        await self._wait_to_write(client)
                state.eof()
                if state.error is not None:
                    raise state.error
                # The client has its last event. Read the upstream's end before ending the client's body, which cancels
                # this task: a connection can be reused only if its end was read. An answer that codexd cut short would
                # continue, so its connection is closed instead.
                if not (ended or state.cut_short):
                    with trio.move_on_after(DRAIN_PATIENCE):
                        await source.push(lambda _: True)
        except ApiError as error:
            if not state.done:
                return error
            # The connection failed after the last event.
        return None

    async def _convert_large(self) -> None:
        """Converts a read that takes too long for the loop, such as an image."""
        events, self._large = self._large, ()
        conversion, pacing = self._conversion, self._pacing
        while self._keeping_alive is not None:
            await self._keeping_alive.wait()  # the conversion makes its frame
        pacing.writing = True
        out = await workers.run(sys.maxsize, partial(_convert_bounded, conversion, events), events=True)
        pacing.wrote(trio.current_time())
        self._heard()
        if self._client is not None:
            self._unwritten = out

    def _heard(self) -> None:
        if self.first_at is None:
            self._pacing.heard = True
            if self._conversion.state.begun:
                self.first_at = trio.current_time()

    def _step(self, client: Client | None, source: UpstreamSource) -> Callable[[Sequence[bytes]], bool]:
        """Returns the function that handles each read without waiting, as nearly all events allow."""
        conversion, pacing, state = self._conversion, self._pacing, self._conversion.state
        feed, write_now = conversion.feed, None if client is None else client.write_now
        current_time = trio.lowlevel.current_clock().current_time  # two calls less than trio's own for each event

        def step(events: Sequence[bytes]) -> bool:
            if self._aborted is not None:
                return False  # the driver has been cancelled
            pacing.read_at = now = current_time()
            size = sum(map(len, events))
            self._received += size
            if (size > LARGE or self._received > FREE) and not self._is_light(events, size):
                return False
            if not size and (pending := source.pending) > self._pending + FREE:
                # An event that comes in many reads is memory too, before it is an event.
                if not self._memory.take(PENDING * (pending - self._pending)):
                    state.error = errors.no_memory(self._memory.room.size)
                    return False
                self._pending = pending
            out = feed(events)
            if self.first_at is None:
                pacing.heard = True
                if state.begun:
                    self.first_at = now
            if out and write_now is not None:
                if not self._started or self._keeping_alive is not None:
                    self._unwritten = out
                    return False
                pacing.wrote_at = now
                if rest := write_now(out):
                    self._rest = rest
                    return False
            return not state.done and state.error is None

        return step

    def _is_light(self, events: Sequence[bytes], size: int) -> bool:
        """Returns whether a read of a large answer can be converted in the step; fails one that is too large."""
        state = self._conversion.state
        if self._received > MAX_ANSWER:
            state.error = errors.answer_too_large(MAX_ANSWER)
        elif self._client is None and self._received > FREE and not self._memory.take(COLLECTED * size):
            state.error = errors.no_memory(self._memory.room.size)
        elif size > LARGE:
            self._large = events
        else:
            return True
        return False

    async def _wait_to_write(self, client: Client) -> None:
        """Writes what the step could not write: the start, after a keep-alive, or what the kernel did not accept."""
        unwritten, rest = self._unwritten, self._rest
        self._unwritten = self._rest = b""
        if unwritten and not self._started and not self._conversion.state.begun:
            self._held += unwritten
            return
        self._pacing.writing = True
        while self._keeping_alive is not None:
            await self._keeping_alive.wait()
        if rest:
            await client.write_rest(rest)
        else:
            await self._write(client, unwritten)
        self._pacing.wrote(trio.current_time())

    async def _write(self, client: Client, data: bytes) -> None:
        """Writes data; sends the status line and held-back output before it if necessary."""
        if not self._started:
            # If this is cancelled, the caller can still choose the status.
            await client.start(self._headers)
            self._started, self._convert = True, None
            self._forget()
            self._forget = _nothing
            data, self._held = self._held + data, b""
        await write(client, data)

    # --- the timer

    @contextmanager
    def _watched(self, client: Client | None) -> Iterator[None]:
        """Runs the timer inside: it aborts a stalled answer and sends keep-alives."""
        self._pacing = Pacing(self._deadlines, trio.current_time(), streams=client is not None)
        self._context, self._client = contextvars.copy_context(), client
        self.running = True
        self._look()
        try:
            yield
        finally:
            self.running = False
            self._timer.cancel()
            # This object may be in a cycle and live on for a while; the request, which may be megabytes, need not.
            self._forget()
            self._open, self._convert, self._forget = _closed, None, _nothing

    def _look(self) -> None:
        """Does what is due, and sets the timer for its next call."""
        due = self._pacing.due(trio.current_time())
        if due.action == "give up":
            self.abort(self._stall_error())
            return
        if due.action == "keep alive" and self._client is not None:
            self._keeping_alive = trio.Event()
            # In the request's context, so that log lines have the request id.
            self._context.run(self._nursery.start_soon, self._keep_alive, self._client, self._keeping_alive)
        self._timer = timers.call_at(due.look_again_at, self._look)

    async def _keep_alive(self, client: Client, over: trio.Event) -> None:
        self._pacing.keeping_alive = True
        try:
            await self._write(client, self._conversion.keepalive())
        except Exception as error:  # noqa: BLE001 - ``_settle`` raises it
            self._fault = error
            self._scope.cancel()
        self._pacing.keeping_alive, self._keeping_alive = False, None
        self._pacing.wrote_at = trio.current_time()
        over.set()

    def _stall_error(self) -> ApiError:
        limit = self._pacing.limit
        if self._pacing.heard:
            return errors.upstream_timeout("nothing more", limit, "backend.idle_timeout")
        return errors.upstream_timeout("no event", limit, "backend.first_event_timeout")
