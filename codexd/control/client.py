"""The client of the control socket: blocking, with only the standard library and msgspec."""

import contextlib
import re
import select
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from codexd.control.wire import REPLY, Reply, Request, encode
from codexd.reasons import reason_of


class DaemonUnreachable(Exception):
    """The daemon cannot be reached; the message says why.

    ``denied``: this user may not use its socket. ``silent``: it accepted the connection and did not answer in time.
    """

    def __init__(self, path: Path, why: str, *, denied: bool = False, silent: bool = False) -> None:
        super().__init__(f"codexd cannot be reached at {path}: {why}")
        self.path = path
        self.denied = denied
        self.silent = silent


def candidates(environ: Mapping[str, str]) -> list[Path]:
    """Returns the paths to try: ``$CODEXCTL_SOCKET`` if set, otherwise the defaults of ``config.paths``."""
    if given := environ.get("CODEXCTL_SOCKET"):
        return [Path(given)]
    home = Path(environ.get("HOME", "/"))
    folders = [Path(environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "codexd", Path("/run/codexd")]
    if kept := environ.get("STATE_DIRECTORY"):
        folders.insert(0, Path(kept.split(":", maxsplit=1)[0]))
    if base := environ.get("XDG_RUNTIME_DIR"):
        folders.insert(0, Path(base) / "codexd")
    if kept := environ.get("RUNTIME_DIRECTORY"):
        folders.insert(0, Path(kept.split(":", maxsplit=1)[0]))
    return [folder / "control.sock" for folder in folders]


def find(environ: Mapping[str, str]) -> Path:
    """Returns the first candidate that is a socket or cannot be examined; otherwise the system's path."""
    places = candidates(environ)
    for place in places:
        try:
            if place.is_socket():
                return place
        except PermissionError:
            return place
    return places[-1]


_CONTROL = re.compile(rb"(\\\\)|\\u00[01][0-9a-fA-F]|\\[bf]|(\\r)|\xc2[\x80-\x9f]|\x7f")


def for_terminal(line: bytes) -> bytes:
    """Returns a line of JSON without control characters in its texts, except line ends and tabs.

    Some texts come from clients and models; a terminal would execute escape sequences in them.
    """
    return _CONTROL.sub(lambda found: found[1] or (b"" if found[2] else rb"\ufffd"), line)


class ControlConnection:
    """One request and its replies. Closing it cancels the request, except a device sign-in."""

    def __init__(self, path: Path, request: Request, *, timeout: float | None = None, raw: bool = False) -> None:
        """``timeout``: seconds for each reply. ``raw``: keep control characters. Raises DaemonUnreachable."""
        self.path = path
        self._raw = raw
        self._data = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
            # A daemon that refuses may close before it has read everything; its reply can still be read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(encode(request))
        except PermissionError as error:
            self._socket.close()
            raise DaemonUnreachable(path, "permission denied", denied=True) from error
        except OSError as error:
            self._socket.close()
            raise DaemonUnreachable(path, reason_of(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def __iter__(self) -> Iterator[Reply]:
        """Yields the replies. Raises DaemonUnreachable if the connection breaks or a reply is unknown."""
        while (line := self._line()) is not None:
            try:
                yield REPLY.decode(line if self._raw else for_terminal(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DaemonUnreachable(self.path, f"invalid reply ({reason_of(error)})") from error

    def readable(self, other: int) -> bool:
        """Waits for a reply or for input on another descriptor; returns whether it is a reply."""
        if b"\n" in self._data:
            return True
        ready, _, _ = select.select([self._socket.fileno(), other], [], [])
        return self._socket.fileno() in ready

    def _line(self) -> bytes | None:
        while b"\n" not in self._data:
            try:
                data = self._socket.recv(65536)
            except OSError as error:
                silent = isinstance(error, TimeoutError)
                raise DaemonUnreachable(self.path, reason_of(error), silent=silent) from error
            if not data:
                if self._data:
                    raise DaemonUnreachable(self.path, "it closed the connection in the middle of an answer")
                return None
            self._data += data
        line, _, self._data = self._data.partition(b"\n")
        return line
