"""One upstream stream to one client: drive it, keep it alive, cancel it.

States of an answer, and what moves it:

    state    | left by                                                        | to
    ---------|----------------------------------------------------------------|----------
    waiting  | an event with something of the answer, or a keep-alive is due   | started
    waiting  | a failure that may pass, once                                   | waiting
    waiting  | any other failure                                               | failed, with a status of its own
    started  | the last event                                                  | done
    started  | a failure, a silence beyond the limit, ``abort``                | failed, with one error frame
    any      | the client leaves                                               | cancelled

The task of the request is the driver. The backend's bytes are pushed through a synchronous conversion to the client,
one write for each read, by the process's reactor (``codexd.lowlevel.reactor``) for as long as nothing has to be waited
for: the step then returns False, and the driver does the waiting. While a write is pending nothing is read, so a slow
client slows the backend down. Three tasks joined by channels would read nicer and were measured: a hop costs 6 µs and
two scheduler passes for each event.

A timer asks ``Pacing`` what is due. A keep-alive is written by a child of the relay's nursery, because the driver is
waiting for the backend; meanwhile the step holds its output back. When the client leaves, the server cancels the task,
and leaving the upstream's context closes its connection.

The status line is held back until the answer has begun, so that a failure before that has its own status and the one
retry that is safe. It is not held back longer than a keep-alive interval: proxies lose patience.
"""

import contextvars
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Protocol

import structlog
import trio

from codexd import errors
from codexd.errors import ApiError
from codexd.lowlevel import timers
from codexd.protocol.codex.events import Usage
from codexd.protocol.conversion import Conversion
from codexd.relay.pacing import Deadlines, Pacing

DRAIN_PATIENCE = 0.5
"""Seconds to wait for the upstream's end of stream after its last event, so that the connection can be used again."""

Header = tuple[str, str]

log = structlog.get_logger()


class UpstreamSource(Protocol):
    """An upstream response whose status was 200."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def push(self) -> Callable[[Callable[[bytes], bool]], Awaitable[bool]]:
        """Calls a step with each piece of the body, until it returns False or the body ends; whether it has ended.

        The step must neither wait nor block. Called again, it goes on where it has stopped.
        """


class Client(Protocol):
    """The client's side of one answer. ``start`` sends the status line once; ``end`` completes the body."""

    async def start(self, headers: Sequence[Header]) -> None: ...

    @property
    def write_now(self) -> Callable[[bytes], memoryview | bytes]:
        """Writes without waiting, never nothing; returns what is left, for ``write_rest`` before anything else."""

    async def write_rest(self, rest: memoryview | bytes) -> None: ...

    async def end(self) -> None: ...


async def write(client: Client, data: bytes) -> None:
    if data and (rest := client.write_now(data)):
        await client.write_rest(rest)


class Relay:
    """One answer on its way. After ``stream`` or ``collect``, ``usage`` and ``error`` tell how it went.

    ``first_at`` is when the backend sent the first event with something of the answer, in trio's time.

    ``open`` gives a fresh upstream stream, ``convert`` a fresh conversion: the retry needs both again. ``headers_of``
    turns the upstream's headers into those that the client gets. ``forget`` is called when a streamed answer has begun:
    nothing is tried again from there, and a request of megabytes need not stay for as long as its answer takes.
    """

    def __init__(
        self,
        open: Callable[[], AbstractAsyncContextManager[UpstreamSource]],  # noqa: A002 - it opens
        convert: Callable[[], Conversion],
        headers_of: Callable[[UpstreamSource], Sequence[Header]],
        deadlines: Deadlines,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._open = open
        self._convert: Callable[[], Conversion] | None = convert
        self._forget = forget
        self._headers_of = headers_of
        self._deadlines = deadlines
        self._conversion = convert()
        self._headers: Sequence[Header] = ()
        self._started = False
        self._held = self._unwritten = b""
        self._rest: memoryview | bytes = b""
        self._keeping_alive: trio.Event | None = None
        self._scope = trio.CancelScope()
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
        """The number of events that the backend has sent so far."""
        return self._conversion.events

    @property
    def usage(self) -> Usage | None:
        return self._conversion.state.usage

    async def stream(self, client: Client) -> None:
        """Relays to a client that streams. Raises ApiError only while the status is still the caller's to choose."""
        with self._watched(client):
            async with trio.open_nursery() as self._nursery:
                await self._drive(client)
        self._settle()
        error = self.error
        if error is not None:
            if not self._started:
                raise self._with_headers(error)
            log.warning("the answer failed on its way", code=error.error.code, reason=error.error.message)
            await write(client, self._conversion.failure(error))
        await client.end()

    async def collect(self) -> tuple[bytes, Sequence[Header]]:
        """Returns the whole answer as one document, and its headers. Raises ApiError."""
        with self._watched(None):
            await self._drive(None)
        self._settle()
        if self.error is not None:
            raise self._with_headers(self.error)
        return self._conversion.document(), self._headers

    def abort(self, error: ApiError) -> None:
        """Ends the answer with this error, unless it is complete already."""
        if self.running and not self._conversion.state.done:
            self._aborted = error
            self._scope.cancel()

    def _settle(self) -> None:
        if self._fault is not None:
            raise self._fault
        self.error = self._aborted or self.error

    def _with_headers(self, error: ApiError) -> ApiError:
        """A failure inside a 200 tells the limits as well."""
        error.headers = error.headers or list(self._headers)
        return error

    # --- the driver

    async def _drive(self, client: Client | None) -> None:
        """Runs one attempt or two. What fails is kept: raised in a nursery it would come out as a group."""
        try:
            while (failure := await self._attempt(client)) is not None:
                safe = failure.retryable and self._convert is not None and not self._conversion.state.begun
                pause = self._pacing.retry(trio.current_time(), safe=safe, jitter=random.uniform(0.5, 1.5))  # noqa: S311 - a pause is no secret
                if pause is None:
                    raise failure
                log.info("trying once more", after=failure.error.code)
                await trio.sleep(pause)
                if self._convert is None:
                    raise failure  # a keep-alive has begun the answer meanwhile
                self._conversion, self._held = self._convert(), b""
        except ApiError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - ``_settle`` raises it
            self._fault = error

    async def _attempt(self, client: Client | None) -> ApiError | None:
        """Returns the failure that has ended it, if any."""
        state, step = self._conversion.state, self._step(client)
        try:
            async with self._open() as source:
                self._headers = self._headers_of(source)
                ended = False
                while not (ended or state.done or state.error is not None):
                    ended = await source.push(step)
                    if client is not None and (self._unwritten or self._rest):
                        await self._wait_to_write(client)
                state.eof()
                if state.error is not None:
                    raise state.error
                # The client has its last event; its end of body waits for the upstream's, because the server cancels
                # this task with it, and a connection whose end was not read cannot be used again. What was cut short
                # here would go on: that connection is closed instead.
                if not state.cut_short:
                    with trio.move_on_after(DRAIN_PATIENCE):
                        await source.push(lambda _: True)
        except ApiError as error:
            if not state.done:
                return error
            # The connection broke when all was said.
        return None

    def _step(self, client: Client | None) -> Callable[[bytes], bool]:
        """Returns what is done with each piece: the way of nearly all events, where nothing waits."""
        conversion, pacing, state = self._conversion, self._pacing, self._conversion.state
        feed, write_now = conversion.feed, None if client is None else client.write_now

        def step(data: bytes) -> bool:
            if self._aborted is not None:
                return False  # the task that waits here has its end on the way
            pacing.read_at = now = trio.current_time()
            out = feed(data)
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

    async def _wait_to_write(self, client: Client) -> None:
        """Writes what the step could not: the beginning, behind a keep-alive, or more than the kernel takes."""
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
        """Writes, after the status line and what was held back with it if they have not gone out yet."""
        if not self._started:
            # Cancelled in here, the status is still the caller's to choose.
            await client.start(self._headers)
            self._started, self._convert = True, None
            self._forget()
            data, self._held = self._held + data, b""
        await write(client, data)

    # --- the timer

    @contextmanager
    def _watched(self, client: Client | None) -> Iterator[None]:
        """Ends what stalls, and keeps a client alive through a silence, for as long as this is open."""
        self._pacing = Pacing(self._deadlines, trio.current_time(), streams=client is not None)
        self._context, self._client = contextvars.copy_context(), client
        self.running = True
        self._look()
        try:
            with self._scope:
                yield
        finally:
            self.running = False
            self._timer.cancel()

    def _look(self) -> None:
        """Does what is due, and asks to be called again when something may be next."""
        due = self._pacing.due(trio.current_time())
        if due.action == "give up":
            self.abort(self._stall_error())
            return
        if due.action == "keep alive" and self._client is not None:
            self._keeping_alive = trio.Event()
            # In the request's own context: what is logged there has its id.
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
