"""A minimal HTTP/1.1 server for loopback: h11 on trio, one handler, streamed replies.

It serves the browser's return after a sign-in, and the simulated ChatGPT, which so shares no HTTP code with the API.
"""

import email.utils
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

import h11
import structlog
import trio

log = structlog.get_logger()

Header = tuple[str, str]


class Request(NamedTuple):
    """A whole request. ``headers`` have lower-case names; the last one of a name counts."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


class Reply:
    """The answer to one request: either ``send``, or ``start``, ``write`` … and ``end``, or ``upgrade``.

    ``watch`` waits until the client leaves; ``upgrade`` ends that, because the handler reads from then on.
    """

    def __init__(self, stream: trio.SocketStream, connection: h11.Connection, *, head: bool) -> None:
        self._stream = stream
        self._connection = connection
        self._head = head
        self._watching = trio.CancelScope()
        self._watched = trio.Event()

    async def watch(self) -> bool:
        """Waits until the client sends or closes; returns False if the connection was upgraded."""
        with self._watching:
            await trio.lowlevel.wait_readable(self._stream.socket)
        self._watched.set()
        return not self._watching.cancelled_caught

    async def upgrade(self, headers: Iterable[Header]) -> tuple[trio.SocketStream, bytes]:
        """Answers 101; returns the connection and the bytes that were read behind the request."""
        self._watching.cancel()
        await self._watched.wait()
        await self._push(h11.InformationalResponse(status_code=101, headers=list(headers)))
        return self._stream, self._connection.trailing_data[0]

    async def send(self, status: int, body: bytes, headers: Iterable[Header] = ()) -> None:
        await self.start(status, [*headers, ("content-length", str(len(body)))])
        await self.write(body)
        await self.end()

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        date = ("date", email.utils.formatdate(usegmt=True))
        await self._push(h11.Response(status_code=status, headers=[date, *headers]))

    async def write(self, data: bytes) -> None:
        if not self._head:
            await self._push(h11.Data(data=data))

    async def end(self) -> None:
        await self._push(h11.EndOfMessage())

    async def _push(self, event: h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage) -> None:
        data = self._connection.send(event)
        if data:
            await self._stream.send_all(data)


Handler = Callable[[Request, Reply], Awaitable[None]]


async def _serve_connection(handler: Handler, max_body: int, patience: float, stream: trio.SocketStream) -> None:
    connection = h11.Connection(h11.SERVER)
    try:
        async with stream:
            while True:
                request = None
                with trio.move_on_after(patience):
                    request = await _read(stream, connection, max_body)
                if request is None:
                    return
                reply = Reply(stream, connection, head=request.method == "HEAD")
                await _serve_request(handler, request, reply)
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return
                connection.start_next_cycle()
    except* (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
        pass
    except* Exception as group:
        log.error("a request on loopback failed; the others continue", exc_info=group)


async def _serve_request(handler: Handler, request: Request, reply: Reply) -> None:
    """Runs the handler; cancels it when the client closes the connection."""
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            if await reply.watch():
                nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await handler(request, reply)
        nursery.cancel_scope.cancel()


async def _read(stream: trio.SocketStream, connection: h11.Connection, max_body: int) -> Request | None:
    """Returns the next request; None if the client has closed or the body is larger than ``max_body``."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_body:
                return None
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            target = urlsplit(head.target.decode())
            headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
            return Request(head.method.decode(), target.path, target.query, headers, bytes(body))
        else:
            return None


async def serve(
    handler: Handler,
    listeners: list[trio.SocketListener],
    *,
    max_body: int,
    patience: float,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until cancelled. ``patience``: seconds for a client to send a request, including idle time."""
    task_status.started()
    await trio.serve_listeners(partial(_serve_connection, handler, max_body, patience), listeners)
