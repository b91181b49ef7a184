"""Hypercorn, made safe: the cures for faults of hypercorn 0.18.0 under trio, and listening sockets of our own.

As released, one odd request of one client ends the whole daemon, idle connections live for ever, ``Connection: close``
is not honoured, and a client that does not read blocks shutdown without limit. Each cure below is a few lines round a
private name, which is why the version is pinned; each has a test with the hostile bytes themselves, and goes when the
version that carries the upstream fix is taken.
"""

import contextlib
import logging
import math
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast
from urllib.parse import unquote

import h11
import hypercorn.protocol
import hypercorn.trio
import hypercorn.trio.run
import structlog
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import TrioSingleTask
from hypercorn.typing import ASGIFramework

from codexd import errors
from codexd.lowlevel import timers
from codexd.server.request import Lane, ServerRequest
from codexd.server.sockets import BACKLOG, WRITE_TIMEOUT
from codexd.system.peer import peer_of

KEEP_ALIVE_TIMEOUT = 75.0
"""Seconds that an idle connection is kept; longer than nginx's own 60, so that nginx is the one that closes."""

REFUSAL_SECONDS = 1.0
READ_SIZE = 64 * 1024
UPGRADE = b"x-upgrade"
"""The name under which an ``Upgrade`` header reaches the app."""

log = structlog.get_logger()


class Websockets(NamedTuple):
    """Which paths are served over websockets, and how large a message may be; asked each time."""

    serves: Callable[[str], bool]
    max_message_bytes: Callable[[], int]


NO_WEBSOCKETS = Websockets(lambda _: False, lambda: 0)
NO_LANE = Lane(lambda method, path: None, lambda: 0)


class Admission(NamedTuple):
    """Who may connect; asked for each. No ``users`` is all whom the socket's mode lets in."""

    max_connections: Callable[[], int]
    users: Callable[[], frozenset[int]]


OPEN = Admission(lambda: sys.maxsize, frozenset)


class Connections:
    """The connections of a server; of those that wait for a request, each has a timer.

    hypercorn has a task for each of them, started and cancelled with every request.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._waiting: dict[_IdleConnection, None] = {}
        self._ending = False
        self._open = 0

    def enter(self, peer: socket.socket) -> bytes | None:
        """Why this one is refused, as an answer; None when it is admitted, and then it must ``leave``."""
        users = self._admission.users()
        if users and peer.family == socket.AF_UNIX and (uid := peer_of(peer).uid) not in users:
            log.warning("a user who is not in server.allowed_users was refused", uid=uid)
            return _NOT_ALLOWED
        if self._open >= self._admission.max_connections():
            if not self._waiting:
                log.warning("a connection was refused: there are server.max_connections already", open=self._open)
                return _FULL
            # Who has waited for longest makes room.
            next(iter(self._waiting)).close()
        self._open += 1
        return None

    def leave(self) -> None:
        self._open -= 1

    def wait(self, waiting: "_IdleConnection") -> float:
        """Until when it may wait for a request."""
        self._waiting[waiting] = None
        return -math.inf if self._ending else trio.current_time() + KEEP_ALIVE_TIMEOUT

    def discard(self, waiting: "_IdleConnection") -> None:
        self._waiting.pop(waiting, None)

    def end(self) -> None:
        """No request will be taken any more."""
        self._ending = True
        for waiting in list(self._waiting):
            waiting.close()


def _refusal(error: errors.ApiError) -> bytes:
    fields = {"content-type": "application/json", "connection": "close", **error.all_headers()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    body = error.body()
    return f"HTTP/1.1 {error.status} \r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


_FULL = _refusal(errors.too_many_connections())
_NOT_ALLOWED = _refusal(errors.user_not_allowed())


class _IdleConnection:
    """In the place of hypercorn's ``TrioSingleTask``."""

    def __init__(self, all_: Connections, close: Callable[[], Awaitable[None]]) -> None:
        self._all = all_
        self._close = close
        self._timer: timers.Timer | None = None
        self._group: TaskGroup

    async def restart(self, group: TaskGroup, _: object) -> None:
        self.forget()
        self._group = group
        self._timer = timers.call_at(self._all.wait(self), self.close)

    async def stop(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._all.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        self._all.discard(self)
        # Unless it is ending by itself, its group with it.
        with contextlib.suppress(AttributeError, RuntimeError):
            self._group.spawn(self._shielded)

    async def _shielded(self) -> None:
        with trio.CancelScope(shield=True):
            await self._close()


class Connection(TCPServer):
    """One client connection, with a bulkhead round it and an end to every wait."""

    all: Connections

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._idleness = _IdleConnection(self.all, self._initiate_server_close)
        self.idle_task = cast("TrioSingleTask", self._idleness)

    async def run(self) -> None:
        entered = False
        try:
            if (refusal := self.all.enter(self.stream.socket)) is not None:
                await self._refuse(refusal)
                return
            entered = True
            await super().run()
        except* Exception as group:
            # B0: hypercorn catches OSError alone, and anything else ends serve() and so the daemon: three kinds of
            # h2c upgrade, websocket upgrades with a trailing byte (hypercorn issues 225, 329, 334, 365) and more.
            log.error("a connection failed; the others go on", exc_info=group)
        finally:
            self._idleness.forget()
            if entered:
                self.all.leave()

    async def _refuse(self, answer: bytes) -> None:
        with trio.move_on_after(REFUSAL_SECONDS), contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all(answer)
            await self.stream.send_eof()
            # Closed with the request unread, the kernel would take the answer back.
            await self.stream.receive_some(READ_SIZE)
        await self.stream.aclose()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self.send_data(event.data)
        elif isinstance(event, Closed | Updated):
            # B1, B2: quart-trio cancels its own task when the response is complete, just before these events are
            # acted upon: the idle timer was never armed again and Connection: close never closed.
            with trio.CancelScope(shield=True):
                await super().protocol_send(event)

    async def send_data(self, data: memoryview | bytes) -> None:
        """Write, at once what the kernel takes at once: nearly always that is all of it."""
        if rest := self.send_now(data):
            await self._send_waiting(rest)

    def send_now(self, data: memoryview | bytes) -> memoryview | bytes:
        """Hand to the kernel what it takes at once; the rest, which is for ``send_data``.

        Nothing waits here: no lock, no deadline, no pass of the scheduler. Whoever holds the lock is waiting to write
        the rest of something, so nothing may be put in between. A client that has gone is ``send_data``'s to notice.
        """
        if self.send_lock.locked() or not isinstance(self.stream, trio.SocketStream):
            return data
        try:
            sent = os.write(self.stream.socket.fileno(), data)
        except OSError:
            return data
        return memoryview(data)[sent:] if sent < len(data) else b""

    async def _send_waiting(self, data: memoryview | bytes) -> None:
        # B3: hypercorn shields this write without a deadline, so a client that does not read outlives every shutdown.
        # Unshielded it can be cut in the middle, or before the rest of what went out already; then nothing else may be
        # written, hence the close.
        try:
            async with self.send_lock:
                with trio.fail_after(WRITE_TIMEOUT):
                    await self.stream.send_all(data)
        except trio.TooSlowError:
            log.info("a client stopped reading", seconds=WRITE_TIMEOUT)
            self._tear()
            await self.protocol.handle(Closed())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.protocol.handle(Closed())
        except trio.Cancelled:
            self._tear()
            raise

    def _tear(self) -> None:
        transport = getattr(self.stream, "transport_stream", self.stream)
        transport.socket.close()

    async def _read_data(self) -> None:
        await super()._read_data()
        # B4: the descriptor of a peer that has closed stayed open until its idle timer ran out.
        await self.idle_task.stop()


class Http1(H11Protocol):
    """HTTP/1.1 without the ways out of it: on plaintext hypercorn always offers HTTP/2, and no option stops that.

    Requests of the lane are ``incoming``'s, and nobody asks ASGI.
    """

    websockets: Websockets
    lane: Lane
    _over = False

    async def handle(self, event: Event) -> None:
        if isinstance(event, Closed):
            self._over = True
            await super().handle(event)
            # B6: with bytes behind the request h11 pauses, and the reader waits for the answer's end to read on. When
            # there is none, it waited for ever, and its connection with it. Of a new h11 nothing is to be had.
            self.connection = h11.Connection(h11.SERVER)
            await self.can_read.set()
        elif not self._over:
            await super().handle(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        return

    async def _create_stream(self, request: h11.Request) -> None:
        raw, _, query = request.target.partition(b"?")
        path, method = unquote(raw.decode("latin-1")), request.method.decode("ascii")
        if method == "GET" and self.websockets.serves(path):
            self.config.websocket_max_message_size = self.websockets.max_message_bytes()
            await super()._create_stream(request)
            return
        # The protocol that the client offers to speak is not taken up. h11 would read nothing until that is answered,
        # and so not notice that the client leaves.
        cast("Any", self.connection)._cstate.pending_switch_proposals.clear()  # noqa: SLF001 - h11 has no other way
        if (handler := self.lane.find(method, path)) is not None:
            stream = ServerRequest(self, request, path, query, self.lane)
            self.stream = cast("HTTPStream", stream)
            self.task_group.spawn(stream.run, handler)
        else:
            # As plain requests other upgrades get a plain answer, 426.
            headers = [(UPGRADE if name == b"upgrade" else name, value) for name, value in request.headers]
            version, target = request.http_version, request.target
            await super()._create_stream(
                h11.Request(method=request.method, target=target, headers=headers, http_version=version)
            )

    # --- for ServerRequest

    def more_fields(self) -> list[tuple[bytes, bytes]]:
        return self.config.response_headers("h11")

    def send_now(self, data: bytes) -> memoryview | bytes:
        return self._connection.send_now(data)

    async def send_data(self, data: memoryview | bytes) -> None:
        await self._connection.send_data(data)

    async def recycle(self) -> None:
        await self._maybe_recycle()

    async def hang_up(self) -> None:
        await self.send(Closed())

    @property
    def _connection(self) -> Connection:
        return cast("Connection", self.send.__self__)  # type: ignore[attr-defined]


def _install(websockets: Websockets, lane: Lane, connections: Connections) -> None:
    # serve() builds the connections and the connections build the protocol, both by these module-level names.
    vars(hypercorn.trio.run)["TCPServer"] = type("Connection", (Connection,), {"all": connections})
    vars(hypercorn.protocol)["H11Protocol"] = type("Http1", (Http1,), {"websockets": websockets, "lane": lane})


async def serve(
    app: ASGIFramework,
    sockets: list[socket.socket],
    *,
    drain_seconds: Callable[[], float],
    stop: Callable[[], Awaitable[None]],
    websockets: Websockets = NO_WEBSOCKETS,
    lane: Lane = NO_LANE,
    admission: Admission = OPEN,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on listening sockets until ``stop`` returns, then drain. Started means that all of them accept.

    ``drain_seconds`` is asked when the drain begins.
    """
    _install(websockets, lane, connections := Connections(admission))
    settings = HypercornConfig()
    settings.accesslog = None
    settings.errorlog = logging.getLogger("hypercorn.error")
    settings.backlog = BACKLOG
    settings.include_server_header = False
    settings.keep_alive_max_requests = 1_000_000
    settings.alpn_protocols = ["http/1.1"]
    # The sockets are ours: port 0, modes of unix sockets and TCP options are settled before hypercorn sees them.
    settings.create_sockets = lambda: Sockets([], sockets, [])  # type: ignore[method-assign]

    async def triggered() -> None:
        await stop()
        # Read now: a reload may have changed it since the start.
        settings.graceful_timeout = drain_seconds()
        connections.end()

    await hypercorn.trio.serve(
        app,
        settings,
        shutdown_trigger=cast("Callable[..., Awaitable[None]]", triggered),
        task_status=task_status,
        mode="asgi",
    )
