"""Files that survive a crash.

A save writes a temporary file, syncs it, renames it over the old one and syncs the directory. At any moment the file is
completely the old one or completely the new one.
"""

import contextlib
import os
import stat
import threading
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Replaces a file, with mode 0600; after a crash it is the old one or the new one. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Unsafe(Exception):
    """A directory is not safe for secrets. The message says why and what to do."""


def check_private(directory: Path) -> None:
    """Raises Unsafe for a directory that others can write to, and so replace any file in. Raises OSError."""
    status = directory.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & stat.S_IWOTH:
        raise Unsafe(
            f"everyone can write to the state directory {directory} (mode {mode:04o}): run `chmod 0700 {directory}`"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise Unsafe(
            f"the state directory {directory} belongs to another user (uid {status.st_uid}), who can replace its "
            "files: chown it, or set storage.dir to another one"
        )


class Newest:
    """Writes of one file's contents from several threads, of which the newest stay."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given = self._written = 0
        self._closed = False

    def close(self) -> None:
        """Writes nothing any more: a successor may own the file."""
        with self._lock:
            self._closed = True

    def number(self) -> int:
        """Returns a higher number with each call: that of the contents that are made now."""
        self._given += 1
        return self._given

    def write(self, number: int, path: Path, data: bytes) -> None:
        """Writes durably, unless newer contents were. Raises OSError."""
        with self._lock:
            if number > self._written and not self._closed:
                write_durably(path, data)
                self._written = number


def set_aside(path: Path) -> Path | None:
    """Gives an unusable file a second name, ``NAME.bad``, which no save overwrites; returns that path.

    Returns None when the file does not exist. Raises OSError.
    """
    aside = path.with_suffix(f"{path.suffix}.bad")
    try:
        aside.unlink(missing_ok=True)
        aside.hardlink_to(path)
    except FileNotFoundError:
        return None
    return aside


def delete(path: Path) -> None:
    """Removes the file and temporary files of saves that a crash interrupted. Raises OSError."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
