"""Hypercorn's HTTP/1.1 protocol with workarounds, and all that codexd uses of Hypercorn's private names.

In Hypercorn 0.18.0 under trio one malformed request can end the whole daemon, idle connections are kept forever,
``Connection: close`` is ignored, and a client that does not read blocks shutdown. So ``codexd.server.serve`` and
``codexd.server.connection`` replace its accept loop and its connection; only its protocol objects, which use no
sockets, remain. Comments and tests call these faults B0 to B7.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import FrameTooLargeError, WebsocketBuffer
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState

from codexd.errors import CannotStart
from codexd.lowlevel import timers
from codexd.server.request import BODY_TIMEOUT, Address, ConnectionWriter, Dispatch, ServerRequest
from codexd.system.memory import Hold

if TYPE_CHECKING:
    from wsproto.events import Message

VERSION = "0.18.0"
"""The version that this file was written for, pinned in ``pyproject.toml``."""

PRIVATE = {
    H11Protocol: ("_check_protocol", "_create_stream", "_maybe_recycle"),
    TaskGroup: ("spawn", "spawn_app"),
    WorkerContext: ("mark_request",),
    WebsocketBuffer: ("extend", "clear"),
}
"""Undocumented names of Hypercorn that this file overrides or calls."""


def check() -> None:
    """Checks the installed Hypercorn and h11. Raises CannotStart if a name that this file uses is missing."""
    missing = [
        f"{kind.__name__}.{name}" for kind, names in PRIVATE.items() for name in names if not hasattr(kind, name)
    ]
    if not hasattr(getattr(h11.Connection(h11.SERVER), "_cstate", None), "pending_switch_proposals"):
        missing.append("h11.Connection._cstate.pending_switch_proposals")
    if missing:
        raise CannotStart(
            f"The installed hypercorn lacks {', '.join(missing)}. Install the version that codexd needs, {VERSION}."
        )


class Application:
    """An ASGI application, with the context and configuration that Hypercorn's protocol objects require."""

    def __init__(self, app: ASGIFramework) -> None:
        self.app = ASGIWrapper(app)
        self.context = WorkerContext(None)
        self.config = Config()
        self.config.accesslog = None
        self.config.errorlog = logging.getLogger("hypercorn.error")
        self.config.include_server_header = False
        self.config.keep_alive_max_requests = 1_000_000


_NOT_OFFERED = (b"sec-websocket-extensions", b"sec-websocket-protocol")


class _CountedBuffer(WebsocketBuffer):
    """A websocket message that arrives: in memory that is counted, and in a time that has an end.

    ``expire`` is called BODY_TIMEOUT after its first piece. After a message that is too large nothing is kept, because
    Hypercorn reads on.
    """

    def __init__(self, max_length: int, memory: Hold, expire: Callable[[], None]) -> None:
        super().__init__(max_length)
        self._memory = memory
        self._expire = expire
        self._timer: timers.Timer | None = None
        self._over = False

    def extend(self, event: "Message[Any]") -> None:
        size = len(event.data)
        if self._over or self.length + size > self.max_length or not self._memory.take(size):
            self.clear()
            self._over = True
            raise FrameTooLargeError
        if self._timer is None:
            self._timer = timers.call_at(trio.current_time() + BODY_TIMEOUT, self._expire)
        super().extend(event)

    def clear(self) -> None:
        self._memory.release()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().clear()


class Http1(H11Protocol):
    """HTTP/1.1 on one connection. Requests for which ``dispatch`` has a handler bypass ASGI.

    h11 holds the states: idle, receiving a request, sending an answer, done, then idle again or closed. The connection
    calls ``handle`` with received bytes or the end of the connection; a request calls ``finish`` after its answer.
    """

    _closed = False
    _message: _CountedBuffer | None = None

    def __init__(
        self,
        application: Application,
        connection: ConnectionWriter,
        task_group: TaskGroup,
        dispatch: Dispatch,
        client: Address | None,
        server: Address | None,
    ) -> None:
        super().__init__(
            application.app,
            application.config,
            application.context,
            task_group,
            ConnectionState({}),
            False,
            client,
            server,
            connection.protocol_send,
        )
        self._dispatch = dispatch
        # Requests write directly to the connection, not through the protocol.
        self.send_now = connection.send_now
        self.send_data = connection.send_data

    async def handle(self, event: Event) -> None:
        if isinstance(event, Closed):
            self._closed = True
            if self._message is not None:
                self._message.clear()
            await super().handle(event)
            # B6: if bytes follow the request, h11 pauses and the reader waits for the end of the answer. Without an
            # answer the reader and its connection would wait forever. A new h11 connection has no such bytes.
            self.connection = h11.Connection(h11.SERVER)
            await self.can_read.set()
        elif not self._closed:
            await super().handle(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Does nothing. Hypercorn would switch to HTTP/2, and no option prevents that (B0: it can end the daemon)."""

    async def _create_stream(self, request: h11.Request) -> None:
        raw, _, query = request.target.partition(b"?")
        path, method = unquote(raw.decode("latin-1")), request.method.decode("ascii")
        if method == "GET" and self._dispatch.serves_websocket(path):
            self.config.websocket_max_message_size = self._dispatch.max_body_bytes()
            # With permessage-deflate a frame of some bytes could become any number of them; subprotocols are not used,
            # and one that is not ASCII fails in Hypercorn.
            fields = [(name, value) for name, value in request.headers if name not in _NOT_OFFERED]
            await super()._create_stream(
                h11.Request(method=request.method, target=request.target, headers=fields, http_version=b"1.1")
                if len(fields) < len(request.headers)
                else request
            )
            memory = self._dispatch.memory.hold()
            self._message = _CountedBuffer(self._dispatch.max_body_bytes(), memory, self._expire)
            cast("Any", self.stream).buffer = self._message
            return
        # An upgrade that the client offers is not accepted. Until it is answered h11 would stop reading, and a client
        # that disconnects would not be noticed.
        cast("Any", self.connection)._cstate.pending_switch_proposals.clear()  # noqa: SLF001 - h11 has no public way
        if (handler := self._dispatch.find(method, path)) is None:
            await super()._create_stream(request)
            return
        memory = self._dispatch.memory.hold()
        stream = ServerRequest(self, request, path, query, self._dispatch.max_body_bytes(), memory)
        self.stream = cast("HTTPStream", stream)
        self.task_group.spawn(stream.run, handler)

    # --- for ServerRequest

    def common_fields(self) -> list[tuple[bytes, bytes]]:
        return self.config.response_headers("h11")

    async def finish(self) -> None:
        await self._maybe_recycle()

    async def close(self) -> None:
        await self.send(Closed())

    def _expire(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is ending already
            self.task_group.spawn(self.close)
