"""systemd integration: notifications, the watchdog, inherited sockets, credentials.

All of it is controlled by environment variables, and does nothing without them.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import sdnotify
import structlog
import trio

FIRST_FD = 3
CONTROL = "control"
"""``FileDescriptorName=`` of the control socket; sockets with other names are for the API."""

log = structlog.get_logger()


class Notifier:
    """Sends messages to ``$NOTIFY_SOCKET``, or nowhere if it is unset."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={_ascii(status)}")

    def reloading(self) -> None:
        """Announces a reload; ``ready`` ends it. systemd needs the time to tell it from reloads requested later."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def status(self, status: str) -> None:
        """Sets the line that ``systemctl status`` shows."""
        self._send(f"STATUS={_ascii(status)}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=draining")

    def close(self) -> None:
        if self._notifier.socket is not None:
            self._notifier.socket.close()

    def _send(self, state: str) -> None:
        self._notifier.notify(state)


def _ascii(text: str) -> str:
    # sdnotify encodes as Latin-1 and swallows the error if it cannot; the whole message would be lost.
    return text.encode("ascii", "replace").decode().replace("\n", " ")


# --- sockets


class Inherited(NamedTuple):
    name: str
    socket: socket.socket


def inherited(environ: Mapping[str, str]) -> list[Inherited]:
    """Returns the listening sockets that a ``.socket`` unit opened for this process. Raises OSError for the user."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(environ.get("LISTEN_FDS", "0"))
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: list[Inherited] = []
    for number in range(count):
        fd = FIRST_FD + number
        os.set_inheritable(fd, False)
        listener = socket.socket(fileno=fd)
        name = names[number] if number < len(names) else ""
        if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(
                f"systemd passed {name or fd!r}, which is not a listening socket: use ListenStream= and Accept=no"
            )
        found.append(Inherited(name, listener))
    return found


# --- the watchdog


def watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Returns how long systemd waits for a keep-alive; None when the watchdog is off."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
    if not usec.isdecimal() or int(usec) == 0 or pid not in (None, str(os.getpid())):
        return None
    return int(usec) / 1e6


async def keep_alive(notifier: Notifier, seconds: float, listener: socket.socket) -> None:
    """Sends a keep-alive three times in ``seconds``, as long as this process answers on its own listener.

    A running event loop is not enough: the check is that a request gets an answer. Runs until cancelled.
    """
    while True:
        with trio.move_on_after(seconds / 3):
            if await answers(listener):
                notifier.alive()
            await trio.sleep_forever()


async def answers(listener: socket.socket) -> bool:
    """Returns whether a request to this process's own listener is answered; logs the reason if not."""
    try:
        async with await _connect(listener) as stream:
            await stream.send_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            answer = bytes(await stream.receive_some(64))
    except PermissionError:
        # Only other users may use this socket. The event loop runs, and nothing more can be checked.
        return True
    except (OSError, trio.BrokenResourceError) as error:
        if listener.fileno() < 0:
            # Closed by a drain that has just begun; systemd expects no more keep-alives then.
            return True
        log.warning("codexd does not answer its own requests", reason=str(error))
        return False
    # A refusal of codexd's own, of this user or because there are too many connections, is a sign of life too.
    if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 403", b"HTTP/1.1 503")):
        log.warning(
            "codexd does not answer its own requests", answer=answer.partition(b"\r")[0].decode(errors="replace")
        )
        return False
    return True


async def _connect(listener: socket.socket) -> trio.SocketStream:
    name = listener.getsockname()
    connection = trio.socket.socket(listener.family, socket.SOCK_STREAM)
    try:
        if not isinstance(name, str):
            anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here, but asked for
            name = (anywhere.get(name[0], name[0]), *name[1:])
        await connection.connect(name)
        return trio.SocketStream(connection)
    except BaseException:
        connection.close()
        raise


# --- credentials


def credential(environ: Mapping[str, str], name: str) -> bytes | None:
    """Returns the contents of ``LoadCredential=NAME:…``; None when it is missing or empty. Raises OSError."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    try:
        return (Path(directory) / name).read_bytes() or None
    except FileNotFoundError:
        return None
