"""One upstream stream to one client: drive it, keep it alive, cancel it.

The task of the request is the driver: it reads from the upstream, feeds the bytes to a synchronous conversion and
writes what comes out, one write per read: while a write is pending nothing is read, so a slow client slows the upstream
down. A timer sends a keep-alive into a silence and ends what stalls. When the client leaves, the host cancels the task,
and leaving the upstream's context closes its connection. Three tasks joined by channels would read nicer and were
measured: a hop costs 6 µs and two scheduler passes per event. Once the answer flows, even the driver only waits, and
its step is run by the process's reactor, until there is something to wait for.

The status line is held back until the answer has begun, so that a failure before that has its own status and the one
retry that is safe. It is not held back longer than a keep-alive interval: proxies lose patience.
"""

import contextvars
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog
import trio

from codexd import errors
from codexd.errors import ApiError
from codexd.lowlevel import timers
from codexd.protocol.codex.events import Usage
from codexd.protocol.dialect import Conversion

KEEPALIVE_INTERVAL = 15.0
RETRY_PAUSE = 0.3
"""Seconds before the one retry, give or take half of it."""

DRAIN_PATIENCE = 0.5
"""Seconds to wait for the upstream's end of stream after its last event, so that the connection can be used again."""

Header = tuple[str, str]

log = structlog.get_logger()


class Source(Protocol):
    """An upstream response whose status was 200."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def chunks(self) -> AsyncIterator[bytes]: ...

    @property
    def push(self) -> Callable[[Callable[[bytes], bool]], Awaitable[None]] | None:
        """Calls back with each piece, synchronously, until that returns False or the body ends; None: not here."""


class Direct(Protocol):
    """A way to write without waiting. ``chunk_now`` returns what is left, for ``write_rest`` before anything else."""

    def chunk_now(self, data: bytes) -> memoryview | bytes: ...

    async def write_rest(self, rest: memoryview | bytes) -> None: ...


class Client(Protocol):
    """The client's side of one answer. ``start`` sends the status line once; ``end`` completes the body."""

    @property
    def direct(self) -> Direct | None: ...

    async def start(self, headers: Sequence[Header]) -> None: ...

    async def write(self, data: bytes) -> None: ...

    async def end(self) -> None: ...


class Deadlines(Protocol):
    """The two configured limits, in seconds."""

    @property
    def first_event_timeout(self) -> float: ...

    @property
    def idle_timeout(self) -> float: ...


class Relay:
    """One answer on its way. After ``stream`` or ``collect``, ``usage`` and ``error`` tell how it went.

    ``first_at`` is when the backend sent the first event with something of the answer, in trio's time.

    ``open`` gives a fresh upstream stream, ``convert`` a fresh conversion: the retry needs both anew. ``headers_of``
    turns the upstream's headers into those that the client gets. ``forget`` is called when a streamed answer has begun:
    nothing is tried again from there, and a request of megabytes need not stay for as long as its answer takes.
    """

    def __init__(
        self,
        open: Callable[[], AbstractAsyncContextManager[Source]],  # noqa: A002 - it opens
        convert: Callable[[], Conversion],
        headers_of: Callable[[Source], Sequence[Header]],
        deadlines: Deadlines,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._open = open
        self._convert: Callable[[], Conversion] | None = convert
        self._forget = forget
        self._headers_of = headers_of
        self._deadlines = deadlines
        self._conversion = convert()
        self.first_at: float | None = None
        self._headers: Sequence[Header] = ()
        self._client: Client | None = None
        self._started = False
        self._held = b""
        self._writing = False
        self._tick: trio.Event | None = None
        self._heard = False
        self._tick_scope = trio.CancelScope()
        self._tick_fault: Exception | None = None
        self._aborted: ApiError | None = None
        self._scope = trio.CancelScope()
        now = trio.current_time()
        self._waiting_since = now
        self._last_write = now
        self.error: ApiError | None = None
        self.running = False

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self._conversion.state.done

    @property
    def events(self) -> int:
        """Those that the backend has sent so far."""
        return self._conversion.events

    @property
    def usage(self) -> Usage | None:
        return self._conversion.state.usage

    async def stream(self, client: Client) -> None:
        """Relay to a client that streams. Raises ApiError only while the status is still the caller's to choose."""
        self._client = client
        await self._run(client)
        error = self.error
        if error is not None:
            if not self._started:
                raise self._with_headers(error)
            log.warning("the answer failed on its way", code=error.error.code, reason=error.error.message)
            await client.write(self._conversion.failure(error))
        await client.end()

    async def collect(self) -> tuple[bytes, Sequence[Header]]:
        """The whole answer as one document, and its headers. Raises ApiError."""
        await self._run(None)
        if self.error is not None:
            raise self._with_headers(self.error)
        return self._conversion.document(), self._headers

    def abort(self, error: ApiError) -> None:
        """End the answer with this error, unless it is complete already."""
        if self.running and not self._conversion.state.done:
            self._aborted = error
            self._scope.cancel()

    def _with_headers(self, error: ApiError) -> ApiError:
        """A failure inside a 200 tells the limits as well."""
        error.headers = error.headers or list(self._headers)
        return error

    async def _run(self, client: Client | None) -> None:
        self.running = True
        self._context = contextvars.copy_context()
        self._look_after()
        try:
            with self._scope:
                try:
                    await self._drive(client)
                except ApiError as error:
                    self.error = error
                await self._no_tick()
        finally:
            self.running = False
            self._timer.cancel()
            if self._tick is not None:
                self._tick_scope.cancel()
                with trio.CancelScope(shield=True):
                    await self._tick.wait()  # cancelled as it is, it waits for nothing
        if self._tick_fault is not None:
            raise self._tick_fault
        self.error = self._aborted or self.error

    # --- the driver

    async def _drive(self, client: Client | None) -> None:
        error = await self._first_attempt(client)
        if error is None:
            return
        log.info("trying once more", after=error.error.code)
        await trio.sleep(RETRY_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311 - a pause is no secret
        if self._convert is None:
            raise error  # a keep-alive has begun the answer meanwhile
        self._conversion, self._held = self._convert(), b""
        self._waiting_since, self._heard = trio.current_time(), False
        await self._attempt(client)

    async def _first_attempt(self, client: Client | None) -> ApiError | None:
        """The failure after which it may be tried once more, if there was one. Raises the others."""
        try:
            await self._attempt(client)
        except ApiError as error:
            if not error.retryable or self._convert is None or self._conversion.state.begun:
                raise
            return error
        return None

    async def _attempt(self, client: Client | None) -> None:
        try:
            await self._pump(client, self._conversion)
        except ApiError:
            if not self._conversion.state.done:
                raise
            # The connection broke when all was said.

    async def _pump(self, client: Client | None, conversion: Conversion) -> None:
        async with self._open() as source:
            self._headers = self._headers_of(source)
            chunks = source.chunks()
            async for data in chunks:
                self._waiting_since = trio.current_time()
                self._heard = True
                out = conversion.feed(data)
                if self.first_at is None and conversion.state.begun:
                    self.first_at = self._waiting_since
                if client is not None:
                    if out:
                        await self._pass_on(client, out)
                    if self._started and self.first_at is not None:
                        await self._flow(source, client, conversion)
                if conversion.state.error is not None:
                    raise conversion.state.error
                if conversion.state.done:
                    break
            conversion.state.eof()
            if conversion.state.error is not None:
                raise conversion.state.error
            # The client has its last event; its end of body waits for the upstream's, because the host cancels this
            # task with it, and a connection whose end was not read cannot be used again.
            # What was cut short here would go on: that connection is closed instead.
            if not conversion.state.cut_short:
                with trio.move_on_after(DRAIN_PATIENCE):
                    async for _ in chunks:
                        pass

    async def _flow(self, source: Source, client: Client, conversion: Conversion) -> None:
        """The way of nearly all events, once the answer has begun: read, converted and written where they are met.

        It ends where something has to be waited for, or has happened.
        """
        push, direct, state = source.push, client.direct, conversion.state
        if push is None or direct is None or state.done or state.error is not None:
            return
        feed, write = conversion.feed, direct.chunk_now
        left: memoryview | bytes = b""
        held = b""

        def step(data: bytes) -> bool:
            nonlocal left, held
            if self._aborted is not None:
                return False  # the task that waits here has its end on the way
            self._waiting_since = now = trio.current_time()
            if out := feed(data):
                if self._tick is not None:
                    held = out
                    return False
                self._last_write = now
                left = write(out)
                if left:
                    return False
            return not state.done and state.error is None

        await push(step)
        if held:
            await self._pass_on(client, held)
        elif left:
            self._writing = True
            await direct.write_rest(left)
            self._writing = False
            self._waiting_since = self._last_write = trio.current_time()

    async def _pass_on(self, client: Client, out: bytes) -> None:
        if not self._started and not self._conversion.state.begun:
            self._held += out
            return
        self._writing = True
        await self._no_tick()
        await self._write(client, out)
        self._writing = False
        # The upstream was not read meanwhile: its silence starts now.
        self._waiting_since = self._last_write

    async def _no_tick(self) -> None:
        """Let a keep-alive end that is being written. A lock would say the same and costs 4 µs for each chunk."""
        while self._tick is not None:
            await self._tick.wait()

    async def _write(self, client: Client, data: bytes) -> None:
        """Write, after the status line and what was held back with it if they have not gone out yet."""
        if not self._started:
            # Cancelled in here, the status is still the caller's to choose.
            await client.start(self._headers)
            self._started, self._convert = True, None
            self._forget()
            data, self._held = self._held + data, b""
        await client.write(data)
        self._last_write = trio.current_time()

    # --- the timer

    def _look_after(self) -> None:
        """End what stalls, or send a keep-alive into a silence; then wait for the next moment when that may be due."""
        now = trio.current_time()
        limit = self._deadlines.idle_timeout if self._heard else self._deadlines.first_event_timeout
        # While a write is pending the upstream is not read: its silence is ours, and the client is not idle.
        busy = self._writing or self._tick is not None
        stall_at = now + limit if busy else self._waiting_since + limit
        if now >= stall_at:
            self.abort(self._stall_error())
            return
        next_look = stall_at
        if self._client is not None:
            # Reads without output (the upstream's own pings) are silence to the client.
            if busy:
                self._last_write = now
            elif now >= self._last_write + KEEPALIVE_INTERVAL:
                self._last_write = now
                self._tick, self._tick_scope = trio.Event(), trio.CancelScope()
                # Not in the driver's task, which waits for the upstream.
                trio.lowlevel.spawn_system_task(self._keep_alive, self._client, self._tick, context=self._context)
            next_look = min(stall_at, self._last_write + KEEPALIVE_INTERVAL)
        self._timer = timers.call_at(next_look, self._look_after)

    async def _keep_alive(self, client: Client, over: trio.Event) -> None:
        with self._tick_scope:
            try:
                await self._write(client, self._conversion.keepalive())
            except Exception as error:  # noqa: BLE001 - it is raised where the answer is
                self._tick_fault = error
                self._scope.cancel()
        self._tick = None
        over.set()

    def _stall_error(self) -> ApiError:
        if self._heard:
            return errors.upstream_timeout("nothing more", self._deadlines.idle_timeout, "backend.idle_timeout")
        return errors.upstream_timeout("no event", self._deadlines.first_event_timeout, "backend.first_event_timeout")
