"""Files that survive a crash.

A save writes a temporary file, syncs it, renames it over the old one and syncs the directory. At any moment the file is
completely the old one or completely the new one.
"""

import contextlib
import os
import threading
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Replaces a file, with mode 0600; after a crash it is the old one or the new one. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
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


class Newest:
    """Writes of one file's contents from several threads, of which the newest stay."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given = self._written = 0

    def number(self) -> int:
        """Returns a higher number with each call: that of the contents that are made now."""
        self._given += 1
        return self._given

    def write(self, number: int, path: Path, data: bytes) -> None:
        """Writes durably, unless newer contents were. Raises OSError."""
        with self._lock:
            if number > self._written:
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
