"""One daemon for a state directory: two would overwrite each other's keys, catalogue and stored responses.

The claim is a lock of the kernel's on ``daemon.lock``, so a daemon that was killed has given it up. It is given up when
the drain begins too: a successor may start while old streams finish.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = "daemon.lock"


class Claimed(Exception):
    """``holder`` is the process that has the directory, as far as it can be told."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class Claim:
    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def claimed(directory: Path) -> Iterator[Claim]:
    """Raises Claimed when another process has it. In a directory that cannot be written nothing can be overwritten."""
    descriptor = None
    with suppress(OSError):
        descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    claim = Claim(descriptor)
    try:
        if descriptor is not None:
            _lock(descriptor)
        yield claim
    finally:
        claim.release()


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        raise Claimed(f"process {holder}" if holder.isdecimal() else "another process") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
