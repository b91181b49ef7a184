"""Users: the peer of a unix socket, as reported by the kernel, and user ids by name."""

import array
import ctypes
import os
import pwd
import socket
import struct
from functools import lru_cache
from typing import NamedTuple

_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_OPTION_BYTES = 1024
"""The size that Python reads of a socket option: enough for 256 groups."""


class UnknownUser(Exception):
    """No user on this machine has the name in the message."""


class Peer(NamedTuple):
    """The peer of a unix socket. ``pid`` is None where the system does not report it."""

    pid: int | None
    uid: int
    gids: frozenset[int]


def peer_of(connection: socket.socket) -> Peer:
    """Returns the peer: ``SO_PEERCRED`` on Linux (unix(7)), getpeereid(3) on macOS and BSD. Raises OSError."""
    if hasattr(socket, "SO_PEERCRED"):
        pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer(pid, uid, frozenset({gid, *_groups_of(connection, uid, gid)}))
    uid, gid = _getpeereid(connection)
    return Peer(None, uid, frozenset({gid, *_known_groups(uid, gid)}))


@lru_cache(maxsize=8)
def user_ids(names: tuple[str, ...]) -> frozenset[int]:
    """Returns the ids of users given by name or number. Raises UnknownUser."""
    ids = set()
    for name in names:
        try:
            ids.add(int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid)
        except KeyError as error:
            raise UnknownUser(name) from error
    return frozenset(ids)


def _groups_of(connection: socket.socket, uid: int, gid: int) -> list[int]:
    """Returns the supplementary groups of the process; if there are too many, those in the user database."""
    groups = array.array("I")
    try:
        groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _OPTION_BYTES))
    except OSError:
        return _known_groups(uid, gid)
    return list(groups)


def _known_groups(uid: int, gid: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except (KeyError, OSError):
        return []


def _getpeereid(connection: socket.socket) -> tuple[int, int]:
    uid, gid = ctypes.c_uint(), ctypes.c_uint()
    try:
        call = ctypes.CDLL(None, use_errno=True).getpeereid
    except (OSError, AttributeError) as error:
        raise OSError("this system does not report the user at the other end of a unix socket") from error
    if call(connection.fileno(), ctypes.byref(uid), ctypes.byref(gid)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return uid.value, gid.value
