"""``codexctl`` as a process, with pipes or in a terminal, and the control socket by hand."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import trio

from support.daemon import PATIENCE, Daemon, environment


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in self.out.splitlines()]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "codexd.ctl", *words]


async def codexctl_alone(folder: Path, *words: str, env: dict[str, str] | None = None) -> Said:
    """Run it to its end where no daemon is."""
    environ = environment(folder) | (env or {})
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            command(*words), capture_stdout=True, capture_stderr=True, check=False, env=environ
        )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


async def codexctl(
    daemon: Daemon, *words: str, stdin: bytes = b"", env: dict[str, str] | None = None, home: Path | None = None
) -> Said:
    """Run it to its end, without a terminal."""
    environ = environment(home or daemon.state.parent) | {"CODEXCTL_SOCKET": str(daemon.control)} | (env or {})
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            command(*words), stdin=stdin, capture_stdout=True, capture_stderr=True, check=False, env=environ
        )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


class Terminal:
    """A program in a terminal of 100 columns, as a person sees it."""

    def __init__(self, process: trio.Process, master: trio.lowlevel.FdStream) -> None:
        self.process = process
        self.screen = ""
        self._master = master

    async def until(self, wanted: str | re.Pattern[str]) -> str:
        """Read until the text, or a match, is on the screen; all that came so far."""
        pattern = re.compile(re.escape(wanted)) if isinstance(wanted, str) else wanted
        with trio.fail_after(PATIENCE):
            while pattern.search(self.screen) is None:
                try:
                    data = await self._master.receive_some(65536)
                except trio.BrokenResourceError:
                    data = b""
                assert data, f"it ended before {wanted!r}:\n{self.screen}"
                self.screen += data.decode(errors="replace")
        return self.screen

    async def type(self, text: str) -> None:
        await self._master.send_all(text.encode())

    async def close(self) -> None:
        """The window is closed: whatever runs in it loses its terminal."""
        await self._master.aclose()

    async def end(self) -> int:
        """Read to the end; the exit code."""
        with trio.fail_after(PATIENCE):
            try:
                while data := await self._master.receive_some(65536):
                    self.screen += data.decode(errors="replace")
            except trio.BrokenResourceError:
                pass
            return await self.process.wait()


@asynccontextmanager
async def terminal(
    words: list[str], env: dict[str, str], *, columns: int = 100, rows: int = 50
) -> AsyncIterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = await trio.lowlevel.open_process(
        words, stdin=slave, stdout=slave, stderr=slave, env=env | {"TERM": "xterm-256color"}, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    try:
        async with trio.lowlevel.FdStream(master) as stream:
            yield Terminal(process, stream)
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@asynccontextmanager
async def in_terminal(
    daemon: Daemon, *words: str, env: dict[str, str] | None = None, columns: int = 100, rows: int = 50
) -> AsyncIterator[Terminal]:
    environ = environment(daemon.state.parent) | {"CODEXCTL_SOCKET": str(daemon.control)} | (env or {})
    async with terminal(command(*words), environ, columns=columns, rows=rows) as found:
        yield found


async def control(path: Path, line: bytes) -> list[dict[str, Any]]:
    """One line to the control socket, and all lines that come back."""
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(line)
        with trio.fail_after(PATIENCE):
            data = b"".join([piece async for piece in stream])
    return [msgspec.json.decode(each) for each in data.splitlines()]
