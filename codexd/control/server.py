"""The server of the control socket: permission, framing and deadlines. It is independent of the API, which may hang.

    state       | left by                                                      | to
    ------------|--------------------------------------------------------------|----------
    connected   | the peer may not use it, or no valid line in LINE_TIMEOUT    | refused
    connected   | a request line                                               | answering
    answering   | the handler's end; ``Done`` or ``Refused`` is the last line  | closed
    any         | disconnect, more data, or a reply unread in WRITE_TIMEOUT    | closed

An exception in one connection does not reach the others.
"""

import contextlib
import grp
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from codexd.control.wire import (
    MAX_LINE,
    Done,
    NotUnderstood,
    Refused,
    Reply,
    Request,
    decode_request,
    encode,
    how_to_join,
    refused,
)
from codexd.errors import ApiError
from codexd.system.peer import Peer, peer_of

LINE_TIMEOUT = 5.0
"""Seconds in which the request line must arrive."""

WRITE_TIMEOUT = 10.0
"""Seconds that a client may take to read a reply."""

log = structlog.get_logger()

Say = Callable[[Reply | bytes], Awaitable[None]]
"""Sends a reply, or lines that are already encoded."""

Handler = Callable[[Request, Say], Awaitable[None]]


def may(peer: Peer, *, service_uid: int, socket_gid: int) -> bool:
    """Returns whether the peer is root, the service's user, or a member of the socket's group."""
    return peer.uid in (0, service_uid) or socket_gid in peer.gids


async def serve(
    listener: socket.socket,
    handler: Handler,
    *,
    peer_of: Callable[[socket.socket], Peer] = peer_of,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until cancelled. ``listener`` is a listening unix socket; members of its group may use it."""
    path = Path(listener.getsockname())
    listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    task_status.started()
    connection = partial(_connection, handler, peer_of, path)
    await trio.serve_listeners(connection, [listening])


async def _connection(
    handler: Handler, peer_of: Callable[[socket.socket], Peer], path: Path, stream: trio.SocketStream
) -> None:
    try:
        async with stream:
            await _serve_one(handler, peer_of, path, stream)
    except* (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        pass  # the client has disconnected, or does not read
    except* Exception as group:
        log.error("a control connection failed; the others continue", exc_info=group)


async def _serve_one(
    handler: Handler, peer_of: Callable[[socket.socket], Peer], path: Path, stream: trio.SocketStream
) -> None:
    raw: Any = stream.socket

    async def say(reply: Reply | bytes) -> None:
        with trio.fail_after(WRITE_TIMEOUT):
            await stream.send_all(reply if isinstance(reply, bytes) else encode(reply))

    peer, group = peer_of(raw), _group_of(path)
    if not may(peer, service_uid=os.geteuid(), socket_gid=group):
        with contextlib.suppress(NotUnderstood):
            await read_line(stream)  # a close with unread data would reset the connection before the reply is read
        log.warning("control request refused", pid=peer.pid, uid=peer.uid)
        name = _group_name(group)
        message = f"Only root, the service's user and members of the group {name} may control codexd."
        await say(Refused(kind="refused", code="not_permitted", message=f"{message} {how_to_join(name)}"))
        return
    try:
        request = decode_request(await read_line(stream))
    except NotUnderstood as error:
        await say(error.refusal)
        return
    # What a request changes is logged where it is changed.
    log.debug("control request", verb=type(request).__struct_config__.tag, pid=peer.pid, uid=peer.uid)
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            # The client sends nothing after its line; readable means that it has disconnected.
            await trio.lowlevel.wait_readable(raw)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await say(await _answer(handler, request, say))
        nursery.cancel_scope.cancel()


async def _answer(handler: Handler, request: Request, say: Say) -> Reply:
    """Runs the handler and returns the last line."""
    try:
        await handler(request, say)
    except ApiError as error:
        return refused(error)
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        raise
    except Exception as error:
        log.error("internal error while handling a control request", exc_info=error)
        message = "Internal error in codexd. `codexctl log` shows the details."
        return Refused(kind="internal", code="internal_error", message=message)
    return Done()


async def read_line(stream: trio.SocketStream) -> bytes:
    """Returns the first line, without its end. Raises NotUnderstood."""
    data, received = bytearray(), b""
    with trio.move_on_after(LINE_TIMEOUT):
        while b"\n" not in received:
            received = await stream.receive_some(65536)
            data += received
            if not received or len(data) > MAX_LINE:
                break
        else:
            return bytes(data.partition(b"\n")[0])
        why = f"is longer than {MAX_LINE} bytes" if len(data) > MAX_LINE else "ended before the end of its line"
        raise NotUnderstood(Refused(kind="usage", code="request", message=f"the request {why}"))
    why = f"the request did not arrive within {LINE_TIMEOUT:g} seconds"
    raise NotUnderstood(Refused(kind="usage", code="request", message=why))


def _group_of(path: Path) -> int:
    return path.stat().st_gid


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
