"""Hypercorn's HTTP/1.1 protocol, made safe, and all that codexd uses of Hypercorn beyond its public names.

As released, Hypercorn 0.18.0 under trio lets one odd request end the whole daemon, keeps idle connections for ever,
ignores ``Connection: close``, and lets a client that does not read block shutdown. Its accept loop and its connection
are therefore not used: ``codexd.server.serve`` and ``codexd.server.connection`` take their place. What remains are its
protocol objects, which know nothing of sockets. B0 to B7 name the faults in comments and tests.
"""

import logging
from typing import Any, cast
from urllib.parse import unquote

import h11
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState

from codexd.errors import CannotStart
from codexd.server.request import Address, ConnectionWriter, Dispatch, ServerRequest

VERSION = "0.18.0"
"""The version that this file is written for, as pinned in ``pyproject.toml``."""

PRIVATE = {
    H11Protocol: ("_check_protocol", "_create_stream", "_maybe_recycle"),
    TaskGroup: ("spawn", "spawn_app"),
    WorkerContext: ("mark_request",),
}
"""Names that Hypercorn does not document and this file overrides or calls."""


def check() -> None:
    """Raises CannotStart when the installed Hypercorn or h11 lacks a name that this file relies on."""
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
    """An ASGI application with what Hypercorn's protocol objects want to know beside it."""

    def __init__(self, app: ASGIFramework) -> None:
        self.app = ASGIWrapper(app)
        self.context = WorkerContext(None)
        self.config = Config()
        self.config.accesslog = None
        self.config.errorlog = logging.getLogger("hypercorn.error")
        self.config.include_server_header = False
        self.config.keep_alive_max_requests = 1_000_000


class Http1(H11Protocol):
    """HTTP/1.1 on one connection. Requests that ``dispatch`` finds a handler for do not go through ASGI.

    States, by h11: idle, a request's head and body are coming, an answer goes out, done; then idle again, or closed.
    The connection moves it by ``handle``: bytes that came, or the end. A request moves it by ``finish``.
    """

    _closed = False

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
        # Past the protocol: what a request writes goes to the connection at once.
        self.send_now = connection.send_now
        self.send_data = connection.send_data

    async def handle(self, event: Event) -> None:
        if isinstance(event, Closed):
            self._closed = True
            await super().handle(event)
            # B6: with bytes behind the request h11 pauses, and the reader waits for the answer's end to read on. When
            # there is none, it waited for ever, and its connection with it. A new h11 has nothing to give.
            self.connection = h11.Connection(h11.SERVER)
            await self.can_read.set()
        elif not self._closed:
            await super().handle(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        """On plaintext Hypercorn always offers HTTP/2, and no option stops that (B0: it ends the daemon)."""

    async def _create_stream(self, request: h11.Request) -> None:
        raw, _, query = request.target.partition(b"?")
        path, method = unquote(raw.decode("latin-1")), request.method.decode("ascii")
        if method == "GET" and self._dispatch.serves_websocket(path):
            self.config.websocket_max_message_size = self._dispatch.max_body_bytes()
            await super()._create_stream(request)
            return
        # The protocol that the client offers to speak is not taken up. h11 would read nothing until that is answered,
        # and so not notice that the client leaves.
        cast("Any", self.connection)._cstate.pending_switch_proposals.clear()  # noqa: SLF001 - h11 has no other way
        if (handler := self._dispatch.find(method, path)) is None:
            await super()._create_stream(request)
            return
        stream = ServerRequest(self, request, path, query, self._dispatch.max_body_bytes())
        self.stream = cast("HTTPStream", stream)
        self.task_group.spawn(stream.run, handler)

    # --- for ServerRequest

    def common_fields(self) -> list[tuple[bytes, bytes]]:
        return self.config.response_headers("h11")

    async def finish(self) -> None:
        await self._maybe_recycle()

    async def close(self) -> None:
        await self.send(Closed())
