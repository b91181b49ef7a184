"""Listening sockets: addresses, modes, options, and the files of unix sockets."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from codexd.config.addresses import split_bind
from codexd.reasons import reason_of

WRITE_TIMEOUT = 60.0
"""Seconds for a client to read what was sent to it. After that its connection is closed."""

BACKLOG = 1024


class CannotListen(Exception):
    """A socket could not be opened. The message names the address and the reason."""


class AddressInUse(CannotListen):
    """Another process listens on the address."""


def listen(bind: str) -> socket.socket:
    """Returns a listening socket for ``host:port`` or ``unix:/path``. Raises CannotListen."""
    address = split_bind(bind)
    try:
        return _listen_unix(Path(address)) if isinstance(address, str) else _listen_tcp(*address)
    except socket.gaierror as error:
        why = f"{address[0]} is not an address of this machine ({error.strerror})"
        raise CannotListen(f"cannot listen on {bind}: {why}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = (
                "the address is already in use. Stop the other program, or set another address (server.bind or $PORT)."
            )
            raise AddressInUse(f"cannot listen on {bind}: {advice}") from error
        raise CannotListen(f"cannot listen on {bind}: {reason_of(error)}") from error


def _listen_tcp(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # A name such as localhost has IPv4 and IPv6 addresses. Clients that try only one try IPv4.
    family, kind, proto, _, target = min(found, key=lambda each: each[0] != socket.AF_INET)
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(target)
        listener.listen(BACKLOG)
        return adopt(listener)
    except OSError:
        listener.close()
        raise


def adopt(listener: socket.socket) -> socket.socket:
    """Sets the options that ``serve`` needs, also on a socket that another process opened."""
    if listener.family != socket.AF_UNIX:
        # Accepted sockets inherit both. Small events must not wait for acknowledgements, and a peer that lost its
        # network must not keep a stream open for 15 minutes, the kernel's default.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_TIMEOUT * 1000))
    listener.setblocking(False)
    return listener


def _listen_unix(path: Path) -> socket.socket:
    # B5: Hypercorn removes an existing socket file unchecked, even of a running daemon. So try to connect first.
    if path.exists() or path.is_symlink():
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise CannotListen(
                f"cannot listen on unix:{path}: a file with that name exists and is not a socket. "
                "Remove it, or set another path."
            )
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise AddressInUse(
                    f"cannot listen on unix:{path}: another process is serving on it. Stop it, or set another path."
                )
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    # Mode 0660: nginx and the daemon share a group; other users have no access.
    before = os.umask(0o117)
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def files_of(listeners: Iterable[socket.socket]) -> dict[Path, int]:
    """Returns the files of the unix sockets among them, with their inodes."""
    paths = [Path(name) for each in listeners if isinstance(name := each.getsockname(), str)]
    return {path: path.stat().st_ino for path in paths}


def remove(files: Mapping[Path, int]) -> None:
    """Removes unix sockets' files at the end, so nginx fails at once; not a successor's, which has another inode."""
    for path, inode in files.items():
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode:
                path.unlink()


def describe(listener: socket.socket) -> str:
    """Returns the listener's base URL, or ``unix:/path``."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
