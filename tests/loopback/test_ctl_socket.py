"""The control socket itself: its file, what is no request, and two daemons."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from codexd.state.lock import try_lock
from support.codexctl import Make, Setup
from support.control import codexctl, control
from support.daemon import Daemon, hello, running

pytestmark = pytest.mark.loopback


async def test_it_answers_while_the_api_drains(setup: Make) -> None:
    async with setup(server={"drain_seconds": 600}) as it, it.client() as client:
        it.chatgpt.chatgpt.pace = 0.1
        async with client.stream("POST", "/v1/chat/completions", json=hello(stream=True)) as response:
            lines = response.aiter_lines()
            assert await anext(lines)
            it.chatgpt.chatgpt.pace = 3600
            it.daemon.signal()
            await it.daemon.logged("stopping")
            status = await it.ctl("status")
            assert (status.code, "stopping: requests in progress may finish" in status.out) == (0, True)
            assert [(await it.ctl("health", *words)).code for words in ([], ["--ready"])] == [0, 5]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"\n", "invalid request"),
        (b"{}\n", "has no version"),
        (b'{"version": 2, "verb": "status"}\n', "has version 2"),
        (b'{"version": 1, "verb": "dance"}\n', "dance"),
        (b'{"version": 1, "verb": "keys_add"}\n', "name"),
        (b"\xff\xfe\n", "invalid request"),
        (b"[" * 60_000 + b"\n", "invalid request"),
        (b"x" * 70_000 + b"\n", "invalid request"),
    ],
    ids=["nothing", "no version", "another version", "no such verb", "no name", "no text", "deep", "long"],
)
async def test_a_line_that_is_no_request_is_refused(shared: Setup, line: bytes, why: str) -> None:
    replies = await control(shared.daemon.control, line)
    assert [(reply["reply"], reply["kind"]) for reply in replies] == [("refused", "usage")]
    assert why in replies[0]["message"]
    assert (await shared.ctl("status")).code == 0


async def test_the_socket_is_for_its_group_and_goes_with_the_daemon(setup: Make) -> None:
    async with setup() as it:
        assert it.daemon.control.stat().st_mode & 0o777 == 0o660
        it.daemon.signal()
        assert await it.daemon.process.wait() == 0
        assert not it.daemon.control.exists()


# --- two daemons


async def test_a_second_daemon_leaves_the_socket_of_the_first_alone(setup: Make, tmp_path: Path, logs: Path) -> None:
    async with setup() as it:
        with pytest.raises(AssertionError, match="codexd is already running"):
            async with running(tmp_path, logs, it.chatgpt):
                pass
        assert (await it.ctl("status")).code == 0


async def test_a_second_daemon_on_a_state_directory_is_told_who_has_it(setup: Make, tmp_path: Path, logs: Path) -> None:
    async with setup() as it:
        options: Any = {"oauth": {"local_server_port": 0}, "control": {"socket": "two.sock"}}
        with pytest.raises(
            AssertionError, match=rf"already running \(process {it.daemon.process.pid}, state directory .*storage.dir"
        ):
            async with running(tmp_path, logs, it.chatgpt, **options):
                pass
        assert not (it.daemon.state / "two.sock").exists()
        it.daemon.signal(signal.SIGKILL)
        await it.daemon.process.wait()
        async with running(tmp_path, logs, it.chatgpt, **options):
            pass


@asynccontextmanager
async def second_of(it: Setup, folder: Path, logs: Path) -> AsyncIterator[Daemon]:
    """Another daemon on the same state directory, as while the first drains."""
    (it.daemon.state / "daemon.lock").unlink()
    options: Any = {"oauth": {"local_server_port": 0}, "control": {"socket": "two.sock"}}
    async with running(folder, logs, it.chatgpt, **options) as second:
        yield second


async def test_two_processes_refresh_once(setup: Make, tmp_path: Path, logs: Path) -> None:
    async with setup() as it, second_of(it, tmp_path, logs) as second:
        codes: list[int] = []

        async def refresh(daemon: Daemon, socket: Path) -> None:
            said = await codexctl(daemon, "--socket", str(socket), "refresh")
            codes.append(said.code)

        # Both have read the same file before either asks.
        for path in (it.daemon.control, second.state / "two.sock"):
            assert (await codexctl(second, "--socket", str(path), "status")).code == 0
        lock = try_lock(it.tokens)
        assert lock is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresh, it.daemon, it.daemon.control)
            nursery.start_soon(refresh, second, second.state / "two.sock")
            for daemon in (it.daemon, second):
                await daemon.logged("verb=refresh")
            os.close(lock)
        assert codes == [0, 0]
        assert [fields["grant_type"] for _, fields in it.issuer.posts] == ["refresh_token"]
