"""The daemon as a process, its log in a file, and a raw client to be rude with."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from support.files import written
from support.secrets import ACCOUNT, access_token, refresh_token

ROOT = Path(__file__).parent.parent.parent

PATIENCE = 120.0
"""Seconds to wait for what takes a moment on an idle machine: many times that on one that does other things too."""


class HasUrl(Protocol):
    """A ChatGPT: issuer and backend at one address."""

    @property
    def url(self) -> str: ...


class Daemon:
    def __init__(self, process: trio.Process, base: str, log: Path, state: Path) -> None:
        self.process = process
        self.base = base
        self.log = log
        self.state = state

    @property
    def port(self) -> int:
        return int(self.base.rpartition(":")[2])

    @property
    def control(self) -> Path:
        return self.state / "control.sock"

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def logged(self, pattern: str) -> str:
        """Wait for a log line that matches."""
        with trio.fail_after(PATIENCE):
            return (await written(self.log, lambda: re.search(f".*{pattern}.*", self.log.read_text())))[0]


def environment(home: Path) -> dict[str, str]:
    """A clean one: what this machine has configured must not reach the daemon."""
    keep = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "COVERAGE_PROCESS_START")}
    return keep | {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def credentials(state: Path, **changes: Any) -> None:
    """A valid ``tokens.json``."""
    now = time.time()
    document = {
        "access_token": access_token(now + 864000),
        "refresh_token": refresh_token(),
        "expires_at": int(now + 864000),
        "account_id": ACCOUNT,
        "updated_at": int(now),
    }
    (state / "tokens.json").write_bytes(msgspec.json.encode(document | changes))


@asynccontextmanager
async def running(
    folder: Path,
    logs: Path,
    upstream: HasUrl,
    *,
    signed_in: bool = True,
    env: dict[str, str] | None = None,
    constants: dict[str, float] | None = None,
    **sections: Any,
) -> AsyncIterator[Daemon]:
    """A daemon over that upstream, ready; killed at the end if it has not ended by itself.

    ``constants``: other values for what the code has fixed, such as ``codexd.upstream.lane.PAUSE``, to save time.
    """
    state = folder / "state"
    state.mkdir(exist_ok=True)
    if signed_in and not (state / "tokens.json").exists():
        credentials(state)
    config = {
        "server": {"bind": ["127.0.0.1:0"], "drain_seconds": 60} | sections.pop("server", {}),
        "oauth": {"issuer": upstream.url} | sections.pop("oauth", {}),
        "backend": {"url": f"{upstream.url}/backend-api", "transport": "http"} | sections.pop("backend", {}),
        "logging": {"level": "debug", "enable_request_logging": True} | sections.pop("logging", {}),
        **sections,
    }
    path = folder / "config.json"
    path.write_bytes(msgspec.json.encode(config))
    log = logs / f"{folder.name}-{time.monotonic_ns()}.log"
    start = ["-m", "codexd"] if constants is None else ["-c", _patched(constants)]
    command = [sys.executable, *start, "--config", str(path)]
    environ = environment(folder) | {"STATE_DIRECTORY": str(state)} | (env or {})
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ, cwd=folder
        )
    try:
        daemon = Daemon(process, "", log, state)
        found = await _listening(process, log)
        daemon.base = next((address for address in found if address.startswith("http")), found[0])
        yield daemon
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def _patched(constants: dict[str, float]) -> str:
    """The program that sets constants of modules and then is codexd."""
    lines = ["import importlib, runpy"]
    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        lines.append(f"module = importlib.import_module({module!r}); module.{constant}; module.{constant} = {value!r}")
    return "\n".join([*lines, "runpy.run_module('codexd', run_name='__main__', alter_sys=True)"])


async def _listening(process: trio.Process, log: Path) -> list[str]:
    """The addresses in the log, as soon as they are there."""
    found: list[str] = []

    async def ended() -> None:
        await process.wait()
        nursery.cancel_scope.cancel()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ended)
            found = await written(log, lambda: re.findall(r"listening.*?((?:http|unix):[^\s\"]+)", log.read_text()))
            nursery.cancel_scope.cancel()
    assert found, f"the daemon did not start:\n{log.read_text()}"
    return found


class Raw:
    """A client that writes bytes and reads bytes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.data = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def until(self, marker: bytes, seconds: float = PATIENCE) -> bytes:
        """Read until the marker has come; all that came so far."""
        with trio.fail_after(seconds):
            while marker not in self.data:
                data = await self.stream.receive_some(65536)
                if not data:
                    raise AssertionError(f"closed before {marker!r}: {self.data!r}")
                self.data += data
        return self.data

    async def all(self, seconds: float = PATIENCE) -> bytes:
        """Read until the other side closes."""
        pieces = [self.data]
        with trio.fail_after(seconds):
            try:
                while data := await self.stream.receive_some(65536):
                    pieces.append(data)
            except trio.BrokenResourceError:
                pass
        self.data = b"".join(pieces)
        return self.data


@asynccontextmanager
async def connected(daemon: Daemon) -> AsyncIterator[Raw]:
    async with await trio.open_tcp_stream("127.0.0.1", daemon.port) as stream:
        yield Raw(stream)


def post(path: str, body: Any, *headers: str) -> bytes:
    data = msgspec.json.encode(body)
    lines = [f"POST {path} HTTP/1.1", "host: localhost", *headers, f"content-length: {len(data)}", "", ""]
    return "\r\n".join(lines).encode() + data


def hello(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-5.5", "messages": [{"role": "user", "content": "hi"}], **fields}
