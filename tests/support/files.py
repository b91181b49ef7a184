"""Waiting for what another process writes: the kernel tells of it (inotify), and no clock is asked."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

_MODIFY, _CLOSE_WRITE, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x8, 0x80, 0x100, 0x200
_LIBC = ctypes.CDLL(None, use_errno=True)

Found = TypeVar("Found")


async def written(path: Path, found: Callable[[], Found]) -> Found:
    """The first true value of ``found``, which is asked again when the file, or what the folder holds, has changed."""
    descriptor = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    try:
        events = _MODIFY | _CLOSE_WRITE | _MOVED_TO | _CREATE | _DELETE
        assert _LIBC.inotify_add_watch(descriptor, os.fsencode(path), events) >= 0, os.strerror(ctypes.get_errno())
        while not (value := found()):
            await trio.lowlevel.wait_readable(descriptor)
            os.read(descriptor, 65536)
        return value
    finally:
        os.close(descriptor)
