"""The accept loop: accepts connections until a stop, then drains them."""

import socket
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from hypercorn.typing import ASGIFramework

from codexd.server.connection import OPEN, Admission, ClientConnection, Connections
from codexd.server.hypercorn import Application
from codexd.server.request import Dispatch

ASGI_ALONE = Dispatch(lambda method, path: None, lambda path: False, lambda: 0)


async def serve(
    app: ASGIFramework,
    sockets: list[socket.socket],
    *,
    drain_seconds: Callable[[], float],
    stop: Callable[[], Awaitable[None]],
    dispatch: Dispatch = ASGI_ALONE,
    admission: Admission = OPEN,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves on listening sockets until ``stop`` returns, then drains. ``task_status`` reports that all accept.

    ``drain_seconds`` is called when the drain begins, because a reload may have changed the setting.
    """
    application, connections = Application(app), Connections(admission)
    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(each)) for each in sockets]

    async def connected(stream: trio.SocketStream) -> None:
        await ClientConnection(stream, application, dispatch, connections).run()

    async with trio.open_nursery() as handlers:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(partial(trio.serve_listeners, connected, listeners, handler_nursery=handlers))
            task_status.started()
            await stop()
            accepting.cancel_scope.cancel()
        await application.context.terminated.set()
        connections.end()
        handlers.cancel_scope.deadline = trio.current_time() + drain_seconds()
