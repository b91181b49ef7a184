"""The listening side of the control socket: who may, how long, and what a fault in a verb does."""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from codexd.config.model import Config
from codexd.config.paths import control_socket
from codexd.control import server, wire
from codexd.control.client import ControlConnection, DaemonUnreachable, candidates, find, for_terminal
from codexd.control.server import LINE_TIMEOUT, Peer, may, peer_of
from codexd.control.wire import Done, Refused, Status
from codexd.errors import ApiError
from codexd.server import sockets
from support.control import control
from support.daemon import ROOT

Serve = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def start(handler: server.Handler, **options: Any) -> AsyncIterator[Path]:
        path = tmp_path / "control.sock"
        async with trio.open_nursery() as nursery:
            listener = sockets.listen(f"unix:{path}")
            await nursery.start(lambda **rest: server.serve(listener, handler, **options, **rest))
            yield path
            nursery.cancel_scope.cancel()

    return start


STATUS = wire.encode(Status())


async def test_a_fault_in_a_verb_is_a_refusal_and_the_next_one_works(serve: Serve) -> None:
    faults: list[Exception] = [ZeroDivisionError("x"), ApiError(403, "no"), ExceptionGroup("g", [KeyError("k")])]

    async def handler(request: wire.Request, say: server.Say) -> None:
        if faults:
            raise faults.pop(0)
        await say(wire.SignedOut(revoked=True, why=None))

    async with serve(handler) as path:
        kinds = [(await control(path, STATUS))[0].get("kind") for _ in range(3)]
        assert kinds == ["internal", "refused", "internal"]
        assert [line["reply"] for line in await control(path, STATUS)] == ["signed_out", "done"]


async def test_a_fault_after_a_reply_ends_with_a_refusal(serve: Serve) -> None:
    async def handler(request: wire.Request, say: server.Say) -> None:
        await say(wire.SignedOut(revoked=True, why=None))
        raise ZeroDivisionError

    async with serve(handler) as path:
        assert [line["reply"] for line in await control(path, STATUS)] == ["signed_out", "refused"]


async def test_a_client_that_leaves_ends_what_it_started(serve: Serve) -> None:
    begun, ended = trio.Event(), trio.Event()

    async def handler(request: wire.Request, say: server.Say) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with serve(handler) as path:
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(STATUS)
            await begun.wait()
        with trio.fail_after(5):
            await ended.wait()


async def test_who_may_not_gets_a_refusal_that_names_the_group(serve: Serve) -> None:
    async def handler(request: wire.Request, say: server.Say) -> None:
        raise AssertionError

    stranger = Peer(pid=1, uid=123456, gids=frozenset({123456}))
    async with serve(handler, peer_of=lambda _: stranger) as path:
        found = await control(path, STATUS)
        assert [(reply["reply"], reply["code"]) for reply in found] == [("refused", "not_permitted")]
        assert "sudo codexctl" in found[0]["message"]
    mate = Peer(pid=1, uid=123456, gids=frozenset({123456, os.getegid()}))
    async with serve(handler, peer_of=lambda _: mate) as path:
        assert (await control(path, STATUS))[0]["kind"] == "internal"


@pytest.mark.parametrize(
    ("uid", "gids", "allowed"),
    [(0, {0}, True), (42, {1}, True), (43, {1}, False), (43, {1, 7}, True), (43, {7}, True), (43, set(), False)],
)
def test_who_may(uid: int, gids: set[int], allowed: bool) -> None:
    assert may(Peer(1, uid, frozenset(gids)), service_uid=42, socket_gid=7) is allowed


def test_the_kernel_says_who_it_is() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert peer.gids == {os.getegid(), *os.getgroups()}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be in other groups")
@pytest.mark.parametrize("groups", [[], [4242], [4242, 7], list(range(5000, 5256)), list(range(5000, 5300))])
def test_the_kernel_names_the_supplementary_groups(groups: list[int]) -> None:
    code = (
        "import os, socket; from codexd.control.server import peer_of; import sys;"
        f"os.setgroups({groups}); a, b = socket.socketpair(socket.AF_UNIX); print(sorted(peer_of(a).gids))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = set(msgspec.json.decode(done.stdout))
    if len(groups) <= 256:
        assert found == {os.getegid(), *groups}
    else:
        assert found >= {os.getegid()}  # too many to be read: those that the user database has for root


async def read(*pieces: bytes, pause: float = 0, close: bool = False) -> bytes:
    ours, theirs = memory_stream_pair()
    found: list[bytes | wire.NotUnderstood] = []

    async def write() -> None:
        for piece in pieces:
            await theirs.send_all(piece)
            await trio.sleep(pause)
        if close:
            await theirs.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        try:
            found.append(await server.read_line(ours))
        except wire.NotUnderstood as error:
            found.append(error)
        nursery.cancel_scope.cancel()
    if isinstance(found[0], bytes):
        return found[0]
    raise found[0]


async def test_a_line_may_come_in_pieces_and_has_its_limits(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_LINE", 65536)
    assert await read(b"ab", b"c\n") == b"abc"
    assert await read(*[bytes([byte]) for byte in b"abc\n"], pause=1) == b"abc"
    for pieces, options, said in (
        ([b"abc"], {"close": True}, "ended before the end of its line"),
        ([b"x" * 65536, b"x"], {}, "longer than 65536 bytes"),
        ([b"a"], {}, "did not arrive within 5 seconds"),
        ([b"a"] * 100, {"pause": 0.1}, "did not arrive within 5 seconds"),
    ):
        begun = trio.current_time()
        with pytest.raises(wire.NotUnderstood) as caught:
            await read(*pieces, **options)  # type: ignore[arg-type]
        assert said in str(caught.value)
        assert trio.current_time() - begun <= LINE_TIMEOUT + 0.01


# --- the client


async def blocking(call: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(call)


def ask(path: Path) -> list[Any]:
    with ControlConnection(path, Status(), timeout=10) as connection:
        return list(connection)


async def test_the_client_reads_what_the_daemon_says(serve: Serve) -> None:
    async def handler(request: wire.Request, say: server.Say) -> None:
        assert request == Status()
        for number in range(3):
            await say(wire.SignedOut(revoked=True, why="ü" * number))

    async with serve(handler) as path:
        found = await blocking(lambda: ask(path))
    assert [reply.why for reply in found[:3]] == ["", "ü", "üü"]
    assert found[3:] == [Done()]


@pytest.mark.parametrize(
    ("sent", "said"),
    [(b"nonsense\n", "invalid reply"), (b'{"reply":"new"}\n', "invalid reply"), (b'{"reply"', "in the middle")],
)
def test_a_daemon_that_talks_nonsense_is_an_error(tmp_path: Path, sent: bytes, said: str) -> None:
    import threading

    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(sent)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DaemonUnreachable, match=said):
            ask(path)
        thread.join()


def test_a_refusal_arrives_even_when_the_request_could_not_be_written(tmp_path: Path) -> None:
    """The daemon may refuse and close before it has read: then writing fails, and what it said must be read."""
    import threading

    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(wire.encode(Refused(kind="refused", code="c", message="m")))

        thread = threading.Thread(target=answer)
        thread.start()
        big = wire.LoginImport(auth=msgspec.Raw(b'"' + b"x" * 10_000_000 + b'"'))
        with ControlConnection(path, big) as connection:
            assert next(iter(connection)) == Refused(kind="refused", code="c", message="m")
        thread.join()


def test_only_groups_of_codexds_own_are_to_be_joined() -> None:
    for group in ("codexd", "codexd-alice"):
        assert f"sudo usermod -aG {group} $USER" in wire.how_to_join(group)
    for group in ("root", "sudo", "dave", "0", "", "codexdx"):
        assert wire.how_to_join(group) == "Use `sudo codexctl`."


PLACES = ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "STATE_DIRECTORY", "XDG_STATE_HOME", "HOME")


@given(st.fixed_dictionaries({}, optional={name: st.sampled_from(["/a", "/b:/c", ""]) for name in PLACES}))
def test_the_client_looks_where_the_daemon_listens(environ: dict[str, str]) -> None:
    assert control_socket(Config(), environ) in candidates(environ)


def test_where_the_client_looks(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert candidates({"CODEXCTL_SOCKET": "/x"} | home) == [Path("/x")]
    runtime = tmp_path / "run"
    environ = home | {"XDG_RUNTIME_DIR": str(runtime)}
    places = [
        runtime / "codexd/control.sock",
        tmp_path / ".local/state/codexd/control.sock",
        Path("/run/codexd/control.sock"),
    ]
    assert candidates(environ) == places
    if not places[2].exists():
        assert find(environ) == places[2]
    places[1].parent.mkdir(parents=True)
    with sockets.listen(f"unix:{places[1]}"):
        assert find(environ) == places[1]
        places[0].parent.mkdir(parents=True)
        with sockets.listen(f"unix:{places[0]}"):
            assert find(environ) == places[0]


# --- the wire


def test_every_request_and_reply_survives_the_wire() -> None:
    for request in (wire.Login(method="paste"), wire.KeysAdd(name="a"), wire.Doctor(deep=True), wire.Models()):
        assert wire.decode_request(wire.encode(request)) == request
    account = wire.Account(signed_in=True, email="a@b", expires_at=5)
    assert wire.REPLY.decode(wire.encode(account)) == account


def test_a_newer_reply_may_have_more_fields() -> None:
    assert wire.REPLY.decode(b'{"reply":"done","version":1,"new":{"a":1}}') == Done()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ApiError(401, "x", code="signed_out"), "signed_out"),
        (ApiError(502, "x"), "upstream"),
        (ApiError(429, "x"), "upstream"),
        (ApiError(500, "x", code="internal_error"), "internal"),
        (ApiError(500, "x", code="state_not_writable"), "internal"),
        (ApiError(400, "x"), "refused"),
    ],
)
def test_what_kind_of_refusal_an_error_is(error: ApiError, kind: str) -> None:
    assert wire.refused(error).kind == kind


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00e9\n\ttabs", "plain \u00e9\n\ttabs"),
        ("\x1b]0;title\x07\x1b[31m", "\ufffd]0;title\ufffd\ufffd[31m"),
        ("\x9b2J\x7f\b\f\x00", "\ufffd2J" + "\ufffd" * 4),
        ("over\rwritten\r\n", "overwritten\n"),
        ("\\\\u001b \\r \\\x1b", "\\\\u001b \\r \\\ufffd"),
    ],
)
def test_a_terminal_gets_nothing_to_obey(text: str, shown: str) -> None:
    line = for_terminal(wire.encode(wire.LogLine(level="info", line=text)))
    found = wire.REPLY.decode(line)
    assert isinstance(found, wire.LogLine)
    assert found.line == shown
