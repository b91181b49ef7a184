"""Locks between processes, by flock(2): the kernel releases them when the process ends, even after a crash.

Only one daemon uses a state directory at a time; two would overwrite each other's keys, catalogue and responses. The
lock is on ``daemon.lock`` and is released when the drain begins, so a successor may start while old streams finish.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codexd.state.files import Unsafe

NAME = "daemon.lock"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class InUse(Exception):
    """Another process holds the lock. ``holder`` is its process id if known."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class DirectoryLock:
    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def lock_directory(directory: Path) -> Iterator[DirectoryLock]:
    """Holds the directory's lock. Raises InUse, and Unsafe for a lock that is a symbolic link.

    A directory that is not writable gets no lock, as it needs none.
    """
    descriptor = None
    if (directory / NAME).is_symlink():
        raise Unsafe(f"{directory / NAME} is a symbolic link, which codexd does not follow: remove it")
    with suppress(OSError):
        descriptor = os.open(directory / NAME, _FLAGS, 0o600)
    held = DirectoryLock(descriptor)
    try:
        if descriptor is not None:
            _lock(descriptor)
        yield held
    finally:
        held.release()


def holder_of(directory: Path) -> str | None:
    """Returns who holds the directory's lock, such as ``process 17``; None if nobody does or it cannot be told."""
    try:
        descriptor = os.open(directory / NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _named(descriptor: int) -> str:
    holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return f"process {holder}" if holder.isdecimal() else "another process"


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InUse(_named(descriptor)) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)


def try_lock(path: Path) -> int | None:
    """Tries to lock ``NAME.lock`` beside a file; returns the descriptor, or None while another process holds the lock.

    The caller closes the descriptor. Raises OSError when the lock file cannot be created.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f"{path.name}.lock"), _FLAGS, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
