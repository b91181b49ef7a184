"""Shared parts of the verbs: requests to the daemon over the control socket, output, failures and exit codes."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codexd.control.client import ControlConnection, DaemonUnreachable, candidates, find
from codexd.control.wire import Check, Done, Kind, Refused, Reply, Request, encode, how_to_join

EXIT: dict[Kind, int] = {
    "usage": 2,
    "signed_out": 3,
    "unreachable": 4,
    "refused": 5,
    "internal": 5,
    "upstream": 6,
}

REPLY_TIMEOUT = 120.0
"""Seconds for a reply: longer than anything that the daemon waits for by itself."""

SYSTEM = Path("/run/codexd")
"""The sockets of the system service, and those of its instances in directories of their names."""

Draw = Callable[[Any], None]
"""Draws the replies of one request on the standard output, and remarks on them on the standard error."""


# --- failures


class VerbFailed(Exception):
    """A verb that failed. ``refusal`` says why and decides the exit code."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def failed(kind: Kind, code: str, message: str) -> VerbFailed:
    """Returns a failure that codexctl found itself."""
    return VerbFailed(Refused(kind=kind, code=code, message=message))


def unreachable(options: argparse.Namespace, error: DaemonUnreachable) -> VerbFailed:
    """Returns the failure with the paths that were tried and what to do."""
    instance = getattr(options, "instance", None)
    named = bool(instance or getattr(options, "socket", None) or os.environ.get("CODEXCTL_SOCKET"))
    others = [str(place) for place in candidates(os.environ)[:-1]]
    where = "" if named else f" (also tried {', '.join(others)})"
    return failed("unreachable", "unreachable", f"{error}{where}. {hint(error, instance)}")


def hint(error: DaemonUnreachable, instance: str | None) -> str:
    """Returns what to do about a daemon that cannot be reached."""
    if error.denied:
        return how_to_join(_group_of(error.path))
    if error.silent:
        return "It is running, but busy or stuck. Try again, or restart it (`codexctl restart` shows how)."
    if instance:
        unit = f"codexd@{instance}"
        return f"Is it running? Check with `systemctl status {unit}`. `codexctl instances` lists all instances."
    return (
        "Is codexd running? `codexctl start` shows how to start it. To use another socket, pass --socket PATH or set "
        "$CODEXCTL_SOCKET."
    )


def _group_of(path: Path) -> str:
    """Returns the group that may use the socket, or an empty string when this user may not see it."""
    for place in (path, path.parent):
        try:
            return place.group()
        except (OSError, KeyError):
            continue
    return ""


# --- output


class Output:
    """The output of replies: with ``json`` unchanged, one a line, otherwise drawn for a terminal."""

    def __init__(self, *, json: bool) -> None:
        self.json = json

    def reply(self, reply: Reply, draw: Draw) -> None:
        """Writes a reply as JSON, or draws it."""
        if self.json:
            self._write(reply)
        else:
            draw(reply)

    def done(self) -> None:
        """Writes the last line of JSON."""
        if self.json:
            self._write(Done())

    def report(self, name: str, text: str) -> None:
        """Writes the result of a verb that needs no daemon; as JSON it is a check of that name."""
        if self.json:
            self._write(Check(name=name, outcome="ok", message=text))
        else:
            print(text)  # noqa: T201

    def fail(self, error: VerbFailed) -> int:
        """Shows a failure and returns its exit code."""
        if self.json:
            self._write(error.refusal)
        else:
            from codexd.ctl import drawing

            drawing.failure(error.refusal.message)
        return EXIT[error.refusal.kind]

    def note(self, text: str) -> None:
        """Writes a remark on the standard error, but not with ``json``."""
        if not self.json:
            from codexd.ctl import drawing

            drawing.note(text)

    @contextmanager
    def waiting(self, text: object) -> Iterator[None]:
        """Shows a spinner if the standard error is a terminal."""
        if self.json or not sys.stderr.isatty():
            yield
            return
        from codexd.ctl import drawing

        with drawing.spinner(text):
            yield

    def _write(self, reply: Reply) -> None:
        sys.stdout.buffer.write(encode(reply))
        sys.stdout.buffer.flush()


# --- requests to the daemon


def socket_of(options: argparse.Namespace) -> Path:
    """Returns the path of the control socket: of ``--socket``, of ``--instance``, else the first usual one."""
    given: str | None = getattr(options, "socket", None)
    instance: str | None = getattr(options, "instance", None)
    if given:
        return Path(given)
    if instance:
        return SYSTEM / instance / "control.sock"
    return find(os.environ)


def replies(options: argparse.Namespace, request: Request, *, timeout: float | None = REPLY_TIMEOUT) -> Iterator[Reply]:
    """Yields the replies except ``Done``. ``timeout``: seconds for each. Raises VerbFailed and DaemonUnreachable."""
    raw = getattr(options, "json", False)
    with ControlConnection(socket_of(options), request, timeout=timeout, raw=raw) as connection:
        yield from until_done(connection)


def until_done(connection: ControlConnection) -> Iterator[Reply]:
    """Yields the replies of an open connection, without the last. Raises VerbFailed and DaemonUnreachable."""
    for reply in connection:
        if isinstance(reply, Refused):
            raise VerbFailed(reply)
        if isinstance(reply, Done):
            return
        yield reply
    raise DaemonUnreachable(connection.path, "it closed the connection before it answered")


def show(
    options: argparse.Namespace, out: Output, request: Request, draw: Draw, *, timeout: float | None = REPLY_TIMEOUT
) -> None:
    """Sends a request and shows each reply as it comes. Raises VerbFailed and DaemonUnreachable."""
    for reply in replies(options, request, timeout=timeout):
        out.reply(reply, draw)
    out.done()


def ask(options: argparse.Namespace, out: Output, request: Request, draw: Draw, waiting: str) -> list[Reply]:
    """Sends a request behind a spinner, shows all replies and returns them. Raises VerbFailed and DaemonUnreachable."""
    with out.waiting(waiting):
        found = list(replies(options, request))
    for reply in found:
        out.reply(reply, draw)
    out.done()
    return found
