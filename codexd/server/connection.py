"""One client connection: reads, writes with a deadline, an idle timeout. No failure in it reaches the server.

    state    | left by                                                                         | to
    ---------|---------------------------------------------------------------------------------|----------------
    new      | ``Connections.enter``                                                           | idle or refused
    idle     | ``Updated`` of the protocol: a request has begun                                | busy
    busy     | ``Updated``: the answer is complete                                             | idle
    idle     | the timer; the connection limit; a stop                                         | closed
    any      | ``Closed`` of the protocol, the client's end, a write that took WRITE_TIMEOUT   | closed

A timer runs while a connection is idle.
"""

import contextlib
import math
import os
import socket
import sys
from collections.abc import Callable
from os import getpid
from typing import NamedTuple, cast

import h11
import structlog
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.task_group import TaskGroup

from codexd import errors
from codexd.lowlevel import timers
from codexd.server.hypercorn import Application, Http1
from codexd.server.request import Address, Dispatch
from codexd.server.sockets import WRITE_TIMEOUT
from codexd.system.peer import peer_of
from codexd.telemetry.log import Repeated

KEEP_ALIVE_TIMEOUT = 75.0
"""Seconds that an idle connection is kept. Longer than nginx's own 60, so that nginx closes first."""

CLOSE_SECONDS = 1.0
REFUSAL_SECONDS = 1.0
READ_SIZE = 64 * 1024

log = structlog.get_logger()


class Admission(NamedTuple):
    """The current limits on new connections. With an empty set of users (uids) only the socket's mode decides.

    ``evict`` ends a silent websocket, if there is one.
    """

    max_connections: Callable[[], int]
    users: Callable[[], frozenset[int]]
    evict: Callable[[], bool] = lambda: False


OPEN = Admission(lambda: sys.maxsize, frozenset)


class Connections:
    """All connections of a server: admits new ones and closes idle ones."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._waiting: dict[ClientConnection, None] = {}
        self._ending = False
        self._open = 0
        self.repeated = Repeated()

    def enter(self, peer: socket.socket) -> bytes | None:
        """Returns None if the connection is admitted (it must call ``leave``), else the answer that refuses it."""
        users = self._admission.users()
        if peer.family == socket.AF_UNIX and peer_of(peer).pid == getpid():
            # The watchdog's own question: if it were refused, systemd would kill a healthy daemon.
            self._open += 1
            return None
        if users and peer.family == socket.AF_UNIX and (uid := peer_of(peer).uid) not in users:
            self._tell("a user who is not in server.allowed_users was refused", uid=uid)
            return _NOT_ALLOWED
        if self._open >= self._admission.max_connections():
            if self._waiting:
                # Close the one that has been idle for longest.
                next(iter(self._waiting)).close_idle()
            elif not self._admission.evict():
                self._tell("a connection was refused: server.max_connections is reached", open=self._open)
                return _FULL
        self._open += 1
        return None

    def _tell(self, what: str, **facts: int) -> None:
        if (more := self.repeated.due(what)) is not None:
            log.warning(what, **facts, **({"more": more} if more else {}))

    def leave(self) -> None:
        self._open -= 1

    def wait(self, waiting: "ClientConnection") -> float:
        """Adds an idle connection; returns the time (trio's clock) at which to close it."""
        self._waiting[waiting] = None
        return -math.inf if self._ending else trio.current_time() + KEEP_ALIVE_TIMEOUT

    def discard(self, waiting: "ClientConnection") -> None:
        self._waiting.pop(waiting, None)

    def end(self) -> None:
        """Closes idle connections, now and as others become idle."""
        self._ending = True
        for waiting in list(self._waiting):
            waiting.close_idle()


def _refusal(error: errors.ApiError) -> bytes:
    fields = {"content-type": "application/json", "connection": "close", **error.all_headers()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    body = error.body()
    return f"HTTP/1.1 {error.status} \r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


_FULL = _refusal(errors.too_many_connections())
_NOT_ALLOWED = _refusal(errors.user_not_allowed())


class ClientConnection:
    """One client connection. ``all_`` holds the connections of its server."""

    def __init__(
        self, stream: trio.SocketStream, application: Application, dispatch: Dispatch, all_: Connections
    ) -> None:
        self._stream = stream
        self._application = application
        self._dispatch = dispatch
        self._all = all_
        self._send_lock = trio.Lock()
        self._sending = 0
        self._idle_timer: timers.Timer | None = None
        self._group: TaskGroup
        self._protocol: Http1

    async def run(self) -> None:
        entered = False
        try:
            if (refusal := self._all.enter(cast("socket.socket", self._stream.socket))) is not None:
                await self._refuse(refusal)
                return
            entered = True
            await self._serve()
        except* (h11.ProtocolError, UnicodeError) as group:
            if (more := self._all.repeated.due("not HTTP")) is not None:
                log.info("a client sent something that is not HTTP", reason=str(group.exceptions[0])[:200], more=more)
        except* Exception as group:
            # B0: no exception that a client can cause may end the server.
            log.error("a connection failed; the others continue", exc_info=group)
        finally:
            self._stop_waiting()
            if entered:
                self._all.leave()

    async def _refuse(self, answer: bytes) -> None:
        with trio.move_on_after(REFUSAL_SECONDS), contextlib.suppress(trio.BrokenResourceError):
            await self._stream.send_all(answer)
            await self._stream.send_eof()
            # If the socket were closed with the request unread, the kernel would reset it and the answer would be lost.
            await self._stream.receive_some(READ_SIZE)
        await self._stream.aclose()

    async def _serve(self) -> None:
        try:
            client, server = _address(self._stream.socket.getpeername()), _address(self._stream.socket.getsockname())
            async with TaskGroup() as self._group:
                self._protocol = Http1(self._application, self, self._group, self._dispatch, client, server)
                self._wait_for_request()
                await self._read()
        except OSError:
            pass  # the connection broke before it was served
        finally:
            with trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS, shield=True):
                await self._close()

    async def _read(self) -> None:
        with contextlib.suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            while data := await self._stream.receive_some(READ_SIZE):
                await self._protocol.handle(RawData(bytes(data)))
            await self._protocol.handle(RawData(b""))
        await self._protocol.handle(Closed())
        # B4: otherwise the descriptor would stay open until the timer expires, although the peer has closed.
        self._stop_waiting()

    async def protocol_send(self, event: Event) -> None:
        """Handles an event of Hypercorn's protocol."""
        if isinstance(event, RawData):
            await self.send_data(event.data)
        elif isinstance(event, Closed):
            # B2: quart-trio cancels this task when the response is complete, before this event is handled.
            with trio.CancelScope(shield=True):
                await self._close()
                await self._protocol.handle(event)
        elif isinstance(event, Updated):
            # B1: for the same reason this branch must not wait.
            if event.idle:
                self._wait_for_request()
            else:
                self._stop_waiting()

    # --- writing

    async def send_data(self, data: memoryview | bytes) -> None:
        """Writes all of the data. Waits only for what the kernel does not accept at once, which is rare."""
        if rest := self.send_now(data):
            await self._send_waiting(rest)

    def send_now(self, data: memoryview | bytes) -> memoryview | bytes:
        """Writes what the kernel accepts at once; returns the rest, which the caller passes to ``send_data``.

        Never waits. If a task is sending it has a rest to write first, so nothing is written. Errors are ignored:
        ``send_data`` raises them again.
        """
        if self._sending:
            return data
        try:
            sent = os.write(self._stream.socket.fileno(), data)
        except OSError:
            return data
        return memoryview(data)[sent:] if sent < len(data) else b""

    async def _send_waiting(self, data: memoryview | bytes) -> None:
        # B3: Hypercorn shields this write without a deadline, so a client that does not read would block a shutdown.
        # Here cancellation can interrupt a write. Nothing else may be written after that, so the socket is closed.
        self._sending += 1
        try:
            async with self._send_lock:
                with trio.fail_after(WRITE_TIMEOUT):
                    await self._stream.send_all(data)
        except trio.TooSlowError:
            log.info("a client stopped reading", seconds=WRITE_TIMEOUT)
            self._stream.socket.close()
            await self._protocol.handle(Closed())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._protocol.handle(Closed())
        except trio.Cancelled:
            self._stream.socket.close()
            raise
        finally:
            self._sending -= 1

    async def _close(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.BusyResourceError, trio.ClosedResourceError):
            await self._stream.send_eof()
        await self._stream.aclose()

    # --- idleness

    def _wait_for_request(self) -> None:
        self._stop_waiting()
        self._idle_timer = timers.call_at(self._all.wait(self), self.close_idle)

    def _stop_waiting(self) -> None:
        self._all.discard(self)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def close_idle(self) -> None:
        """Closes this connection, unless its task group has not started or is ending."""
        self._all.discard(self)
        with contextlib.suppress(AttributeError, RuntimeError):
            self._group.spawn(self._end_idle)

    async def _end_idle(self) -> None:
        with trio.CancelScope(shield=True):
            await self._protocol.handle(Closed())
            await self._stream.aclose()


def _address(name: object) -> Address | None:
    """Returns host and port; None for a unix socket."""
    return (name[0], name[1]) if isinstance(name, tuple) and len(name) >= 2 else None
