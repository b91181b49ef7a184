"""What systemd hands over, without a systemd: sockets, credentials, the watchdog, and being started on demand."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from codexd.auth import store
from codexd.auth.store import Credentials
from codexd.system.systemd import answers, inherited, keep_alive, watchdog_seconds
from support.control import codexctl
from support.daemon import PATIENCE, Raw, connected, environment, hello, post, running
from support.secrets import ACCOUNT, access_token
from support.upstream import Call, Upstream

pytestmark = pytest.mark.loopback


class Started:
    def __init__(self, process: subprocess.Popen[bytes], log: Path, state: Path) -> None:
        self.process = process
        self.log = log
        self.state = state

    def says(self) -> str:
        return self.log.read_text()


@contextmanager
def activated(
    folder: Path, listeners: dict[str, socket.socket], env: dict[str, str] | None = None, **sections: Any
) -> Iterator[Started]:
    """A daemon with these sockets from file descriptor 3 on, as systemd starts it."""
    state = folder / "state"
    state.mkdir(exist_ok=True)
    config = folder / "config.json"
    config.write_bytes(msgspec.json.encode(sections))
    moves = " ".join(f"{3 + number}<&{each.fileno()}" for number, each in enumerate(listeners.values()))
    script = f'exec {moves}; export LISTEN_PID=$$; exec "$@"'
    environ = {"LISTEN_FDS": str(len(listeners)), "LISTEN_FDNAMES": ":".join(listeners), "STATE_DIRECTORY": str(state)}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", sys.executable, "-m", "codexd", "--config", str(config)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder,
            env=environment(folder) | environ | (env or {}), pass_fds=[each.fileno() for each in listeners.values()],
        )  # fmt: skip
    try:
        yield Started(process, log, state)
    finally:
        process.kill()
        process.wait()
        for each in listeners.values():
            each.close()


def unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def tcp(host: str = "127.0.0.1") -> socket.socket:
    listener = socket.socket()
    listener.bind((host, 0))
    listener.listen()
    return listener


def health(address: Any) -> bytes:
    """Answered by whoever listens there, however long that takes to start."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.settimeout(30)
        client.connect(address)
        client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        answer = b""
        while data := client.recv(4096):
            answer += data
    assert b'"uptime_seconds"' in answer
    return answer


def test_sockets_by_name_unix_and_tcp_and_own_ones_together(tmp_path: Path) -> None:
    path, control, own = tmp_path / "api.sock", tmp_path / "control.sock", tmp_path / "own.sock"
    listener = tcp()
    address = listener.getsockname()
    sockets = {"api": unix(path), "tcp": listener, "control": unix(control)}
    # Those that systemd has may be in the configuration too.
    bind = [f"unix:{own}", f"unix:{path}", f"127.0.0.1:{address[1]}"]
    with activated(tmp_path, sockets, server={"bind": bind}) as it:
        for where in (str(path), address, str(own)):
            health(where)
        done = subprocess.run(
            [sys.executable, "-m", "codexd.ctl", "--socket", str(control), "status", "--json"],
            capture_output=True, text=True, env=environment(tmp_path), timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert '"signed_in"' in done.stdout
        it.process.send_signal(signal.SIGTERM)
        assert it.process.wait(timeout=PATIENCE) == 0
        assert (path.exists(), control.exists(), own.exists()) == (True, True, False)


def test_the_default_address_is_not_opened_beside_systemds(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with activated(tmp_path, {"api": unix(path)}) as it:
        health(str(path))
        assert it.says().count("listening") == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "which is not a listening socket: use ListenStream=",
        ),
        (lambda: tcp("0.0.0.0"), "reachable from other machines"),
    ],
)
def test_a_socket_that_will_not_do_is_refused(tmp_path: Path, make: Any, words: str) -> None:
    with activated(tmp_path, {"api": make()}) as it:
        assert it.process.wait(timeout=PATIENCE) == 1
        assert words in it.says()


def test_sockets_of_another_process_are_left_alone() -> None:
    assert inherited({"LISTEN_FDS": "1", "LISTEN_PID": "1"}) == []
    assert watchdog_seconds({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}) is None
    assert watchdog_seconds({"WATCHDOG_USEC": "0"}) is None


def test_an_idle_daemon_ends_when_systemd_can_start_it_again(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with activated(tmp_path, {"api": unix(path)}, server={"exit_idle_seconds": 0.5}) as it:
        health(str(path))
        assert it.process.wait(timeout=PATIENCE) == 0
        assert "stopping: idle" in it.says()


async def test_it_does_not_end_when_nobody_would_start_it(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with running(tmp_path, logs, upstream, server={"exit_idle_seconds": 0.1}) as daemon:
        await daemon.logged("exit_idle_seconds is ignored")


def test_a_sign_in_that_is_brought_along_is_taken_over_once(tmp_path: Path) -> None:
    brought, state = tmp_path / "credentials", tmp_path / "state"
    brought.mkdir()
    made = Credentials(access_token=access_token(9e9), account_id=ACCOUNT)
    store.save(brought / "tokens.json", made)
    environ = {"CREDENTIALS_DIRECTORY": str(brought)}
    path, tokens = tmp_path / "api.sock", state / "tokens.json"

    def start() -> bytes:
        path.unlink(missing_ok=True)
        with activated(tmp_path, {"api": unix(path)}, environ) as it:
            answer = health(str(path))
            assert it.process.poll() is None
            return answer

    assert b'"signed_in":true' in start()
    assert tokens.stat().st_mode & 0o777 == 0o600
    tokens.unlink()  # signed out
    assert b'"signed_in":false' in start()
    store.save(brought / "tokens.json", msgspec.structs.replace(made, account_id="another"))
    assert b'"signed_in":true' in start()
    tokens.unlink()
    (brought / "tokens.json").write_text("rubbish")
    assert b'"signed_in":false' in start()
    (brought / "tokens.json").write_text("")
    assert b'"signed_in":false' in start()


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(PATIENCE)
        yield made


async def heard(notify: socket.socket) -> bytes:
    return await trio.to_thread.run_sync(notify.recv, 4096)


async def test_the_watchdog_is_fed_and_a_reload_is_told(
    tmp_path: Path, logs: Path, upstream: Upstream, notify: socket.socket
) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
    async with running(tmp_path, logs, upstream, env=environ) as daemon:
        assert (await heard(notify)).startswith(b"READY=1")
        for _ in range(3):
            assert await heard(notify) == b"WATCHDOG=1"
        daemon.signal(signal.SIGHUP)
        told = [await heard(notify) for _ in range(3)]
        told = [each for each in told if each != b"WATCHDOG=1"]
        assert told[0].startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert told[1].startswith(b"READY=1\nSTATUS=signed in")


class Signs:
    def __init__(self) -> None:
        self.count = 0

    def alive(self) -> None:
        self.count += 1


@pytest.mark.parametrize("answer", [b"HTTP/1.1 500 X\r\n\r\n", b"", None])
async def test_a_listener_that_does_not_answer_is_no_sign_of_life(answer: bytes | None) -> None:
    """An error, a closed connection, and no answer at all."""
    signs: Any = Signs()
    asked = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        asked.set()
        if answer is None:
            await trio.sleep_forever()
        await stream.send_all(answer)

    with socket.socket() as raw:
        raw.bind(("127.0.0.1", 0))
        raw.listen()
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(raw.dup()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            nursery.start_soon(keep_alive, signs, 0.3, raw)
            for _ in range(3):
                with trio.fail_after(PATIENCE):
                    await asked.wait()
                asked = trio.Event()
            nursery.cancel_scope.cancel()
    assert signs.count == 0


async def test_a_listener_that_a_drain_has_closed_is_no_fault() -> None:
    raw = socket.socket()
    raw.bind(("127.0.0.1", 0))
    raw.listen()
    raw.close()
    assert await answers(raw)


@pytest.mark.parametrize("why", ["users", "full"])
async def test_what_codexd_refuses_others_does_not_stop_the_watchdogs_sign(
    tmp_path: Path, logs: Path, upstream: Upstream, notify: socket.socket, why: str
) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
    server: dict[str, Any] = {"max_connections": 1}
    if why == "users":
        server = {"bind": [f"unix:{tmp_path}/api.sock"], "allowed_users": ["nobody"]}

    async def silent(call: Call) -> None:
        await call.start()
        await call.gone()

    upstream.plays = [silent]
    async with running(tmp_path, logs, upstream, env=environ, server=server) as daemon, AsyncExitStack() as stack:
        # The daemon's own request may have the only place, or take it before the client's is read: the client comes again.
        while why == "full" and not upstream.calls:
            busy = await stack.enter_async_context(connected(daemon))
            await busy.send(post("/v1/chat/completions", hello(stream=True)))
            async with trio.open_nursery() as nursery:

                async def refused(busy: Raw = busy, scope: trio.CancelScope = nursery.cancel_scope) -> None:
                    await busy.all()
                    scope.cancel()

                nursery.start_soon(refused)
                await upstream.until(lambda: bool(upstream.calls))
                nursery.cancel_scope.cancel()
        assert (await heard(notify)).startswith(b"READY=1")
        for _ in range(4):
            assert await heard(notify) == b"WATCHDOG=1"
        assert (await codexctl(daemon, "health")).code == 0
