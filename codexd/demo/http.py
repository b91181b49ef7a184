"""Just enough of an HTTP/1.1 server for the simulated ChatGPT: h11 on trio, one handler, streamed replies.

It is not the server that codexd itself runs on, and that is its use: what the two agree on is the protocol.
"""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import h11
import structlog
import trio

log = structlog.get_logger()

Header = tuple[str, str]


class Request(NamedTuple):
    """``headers`` with lower-case names; of a name that comes twice the last counts."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


class Reply:
    """The answer to one request: either ``send``, or ``start``, ``write`` … and ``end``."""

    def __init__(self, stream: trio.SocketStream, connection: h11.Connection) -> None:
        self._stream = stream
        self._connection = connection

    async def send(self, status: int, body: bytes, headers: Iterable[Header] = ()) -> None:
        await self.start(status, [*headers, ("content-length", str(len(body)))])
        await self.write(body)
        await self.end()

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        await self._push(h11.Response(status_code=status, headers=list(headers)))

    async def write(self, data: bytes) -> None:
        await self._push(h11.Data(data=data))

    async def end(self) -> None:
        await self._push(h11.EndOfMessage())

    async def _push(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        data = self._connection.send(event)
        if data:
            await self._stream.send_all(data)


Handler = Callable[[Request, Reply], Awaitable[None]]


async def _serve_connection(handler: Handler, stream: trio.SocketStream) -> None:
    connection = h11.Connection(h11.SERVER)
    try:
        async with stream:
            while (request := await _read(stream, connection)) is not None:
                await _serve_request(handler, request, Reply(stream, connection), stream)
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return
                connection.start_next_cycle()
    except* (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
        pass
    except* Exception as group:
        log.error("the simulated ChatGPT failed", exc_info=group)


async def _serve_request(handler: Handler, request: Request, reply: Reply, stream: trio.SocketStream) -> None:
    """Run the handler, and stop it when the client closes the connection meanwhile."""
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await trio.lowlevel.wait_readable(stream.socket)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await handler(request, reply)
        nursery.cancel_scope.cancel()


async def _read(stream: trio.SocketStream, connection: h11.Connection) -> Request | None:
    """The next request; None when the client has closed."""
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
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            target = urlsplit(head.target.decode())
            headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
            return Request(head.method.decode(), target.path, parse_qs(target.query), headers, bytes(body))
        else:
            return None


async def serve(
    handler: Handler, *, port: int = 0, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve on 127.0.0.1 until cancelled; started with the port."""
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(partial(_serve_connection, handler), listeners)
