"""Listening sockets, and the versions that the cures for the host are written for."""

import contextlib
import os
import socket
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from codexd.server import connection, sockets
from codexd.server.connection import Admission
from codexd.server.request import Dispatch, ServerRequest
from codexd.server.serve import serve as serve_app
from codexd.system import systemd

PIECES = [b"a", b"data: {}\n\n", b"0\r\n\r\n", bytes(range(256)) * 4096, b"z" * 17]


async def app(scope: Any, _: Any, send: Any) -> None:
    """PIECES by hypercorn's own way, streamed or as one."""
    headers = [(b"content-type", b"text/plain")]
    if scope["path"] == "/stock/whole":
        headers.insert(0, (b"content-length", b"%d" % len(b"".join(PIECES))))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in PIECES:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def short(incoming: ServerRequest) -> None:
    """The same by ours."""
    if incoming.path == "/whole":
        await incoming.answer(200, [("content-type", "text/plain")], b"".join(PIECES))
        return
    await incoming.start([("content-type", "text/plain")])
    if incoming.path == "/cut":
        # Cancelled between what the kernel took at once and the rest of it.
        rest = incoming.write_now(bytes(20_000_000))
        with trio.CancelScope() as scope:
            scope.cancel()
            await incoming.write_rest(rest)
        await trio.testing.wait_all_tasks_blocked()  # the client has read all that there was: now the kernel takes more
        incoming.write_now(b"never to be seen")
        return
    for piece in PIECES:
        await incoming.write(piece)
    await incoming.end()


DISPATCH = Dispatch(lambda _, path: None if path.startswith("/stock") else short, lambda _: False, lambda: 1000)


async def test_the_short_way_writes_what_hypercorn_writes() -> None:
    listener, stopped = sockets.listen("127.0.0.1:0"), trio.Event()
    async with trio.open_nursery() as nursery:
        serve = partial(serve_app, drain_seconds=lambda: 1.0, stop=stopped.wait, dispatch=DISPATCH)
        await nursery.start(serve, app, [listener])

        async def ask(path: str, start: str = "GET {} HTTP/1.1\r\nconnection: close") -> bytes:
            async with await trio.open_tcp_stream(*listener.getsockname()) as stream:
                # One that is younger stands by: its answers must go to it, and ours to us.
                async with await trio.open_tcp_stream(*listener.getsockname()) as other:
                    await other.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n")
                    await trio.testing.wait_all_tasks_blocked()
                    await stream.send_all(start.format(path).encode() + b"\r\nhost: x\r\n\r\n")
                    await trio.testing.wait_all_tasks_blocked()  # what the socket does not take at once has to wait
                    answer = b"".join([data async for data in stream])
                head, _, body = answer.partition(b"\r\n\r\n")
                status, *fields = head.lower().split(b"\r\n")
                return b"\n".join(
                    [status, *sorted(each for each in fields if not each.startswith(b"date:")), b"", body]
                )

        with trio.fail_after(20):
            streamed = await ask("/short")
            assert streamed == await ask("/stock")
            assert streamed.endswith(b"11\r\n" + b"z" * 17 + b"\r\n0\r\n\r\n")
            assert await ask("/whole") == await ask("/stock/whole")
            for start in (
                "GET {} HTTP/1.0",
                "GET {} HTTP/1.2\r\nconnection: close",
                "HEAD {} HTTP/1.1\r\nconnection: close",
                "GET {} HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade, close",
            ):
                assert await ask("/short", start) == await ask("/stock", start)
                assert await ask("/whole", start) == await ask("/stock/whole", start)
            cut = await ask("/cut")
        assert b"never" not in cut
        assert not cut.endswith(b"0\r\n\r\n")
        stopped.set()


async def test_a_connection_that_asks_for_nothing_is_closed(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE_TIMEOUT", 1.0)
    listener, stopped = sockets.listen("127.0.0.1:0"), trio.Event()
    asked = trio.Event()

    async def slow(incoming: ServerRequest) -> None:
        asked.set()
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(2)  # a connection that is no longer idle is not closed
        await trio.testing.wait_all_tasks_blocked()
        await incoming.answer(200, [], b"slow")

    async with trio.open_nursery() as nursery:
        dispatch = Dispatch(lambda method, path: slow, lambda _: False, lambda: 0)
        serve = partial(serve_app, drain_seconds=lambda: 1000.0, stop=stopped.wait, dispatch=dispatch)
        await nursery.start(serve, app, [listener])
        for beginning in (b"", b"G", b"GET / HTTP/1.1\r\nhost: x\r\nx-slow"):
            async with await trio.open_tcp_stream(*listener.getsockname()) as silent:
                await silent.send_all(beginning)
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(1)
                assert await silent.receive_some() == b""
        async with await trio.open_tcp_stream(*listener.getsockname()) as stream:
            for _ in range(2):
                await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await stream.receive_some()).endswith(b"slow")
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1)
            assert await stream.receive_some() == b""
        asked = trio.Event()
        async with await trio.open_tcp_stream(*listener.getsockname()) as waiting:
            await waiting.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await asked.wait()
            stopped.set()  # an answer in progress is finished, and then the connection is closed at once
            assert (await waiting.receive_some()).endswith(b"slow")
            assert await waiting.receive_some() == b""


async def test_there_is_an_end_to_the_connections_and_who_waits_makes_room(tmp_path: Path) -> None:
    listener, stopped, go = sockets.listen("127.0.0.1:0"), trio.Event(), trio.Event()

    async def slow(incoming: ServerRequest) -> None:
        await go.wait()
        await incoming.answer(200, [], b"slow")

    async with trio.open_nursery() as nursery:
        serve = partial(
            serve_app,
            drain_seconds=lambda: 9.0,
            stop=stopped.wait,
            dispatch=Dispatch(lambda method, path: slow, lambda _: False, lambda: 0),
            admission=Admission(lambda: 2, frozenset),
        )
        await nursery.start(serve, app, [listener])

        async def connected() -> trio.SocketStream:
            stream = await trio.open_tcp_stream(*listener.getsockname())
            await trio.testing.wait_all_tasks_blocked(0.02)
            return stream

        with trio.fail_after(20):
            first, second = await connected(), await connected()
            await second.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            third = await connected()
            assert await first.receive_some() == b""  # it waited for longest
            await third.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            fourth = await connected()
            await fourth.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            refusal = b"".join([data async for data in fourth])
            assert refusal.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1\r\n" in refusal
            assert b"server.max_connections" in refusal
            go.set()
            for stream in (second, third):
                assert (await stream.receive_some()).endswith(b"slow")
            fifth = await connected()
            await fifth.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await fifth.receive_some()).endswith(b"slow")
            for stream in (first, second, third, fourth, fifth):
                await stream.aclose()
            stopped.set()


@pytest.mark.parametrize("mine", [True, False])
async def test_a_unix_socket_may_be_for_some_users(tmp_path: Path, mine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "getpid", lambda: 1)  # the daemon itself may always
    users = frozenset({os.getuid() if mine else os.getuid() + 1})
    stopped = trio.Event()
    async with trio.open_nursery() as nursery:
        serve = partial(
            serve_app,
            drain_seconds=lambda: 9.0,
            stop=stopped.wait,
            dispatch=DISPATCH,
            admission=Admission(lambda: 2, lambda: users),
        )
        tcp, unix = sockets.listen("127.0.0.1:0"), sockets.listen(f"unix:{tmp_path}/s")
        await nursery.start(serve, app, [tcp, unix])
        with trio.fail_after(20):
            for stream, allowed in (
                (await trio.open_unix_socket(f"{tmp_path}/s"), mine),
                (await trio.open_tcp_stream(*tcp.getsockname()), True),  # who that is cannot be told
            ):
                async with stream:
                    await stream.send_all(b"GET /whole HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    answer = b"".join([data async for data in stream])
                assert answer.startswith(b"HTTP/1.1 200" if allowed else b"HTTP/1.1 403")
                assert (b"server.allowed_users" in answer) is not allowed
        stopped.set()


def test_the_cures_are_for_these_versions() -> None:
    # codexd/server/hypercorn.py overrides private names. With another version each cure has to be looked at again.
    assert {name: metadata.version(name) for name in ("hypercorn", "quart-trio", "h11")} == {
        "hypercorn": "0.18.0",
        "quart-trio": "0.12.0",
        "h11": "0.16.0",
    }


def test_accepted_sockets_do_not_wait_and_do_not_outlive_a_dead_network() -> None:
    with (
        contextlib.closing(sockets.listen("127.0.0.1:0")) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
    assert listener.fileno() == -1


def test_localhost_is_the_address_that_clients_try() -> None:
    with contextlib.closing(sockets.listen("localhost:0")) as listener:
        assert listener.family == socket.AF_INET
        assert sockets.describe(listener).startswith("http://127.0.0.1:")


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6_is_written_in_brackets() -> None:
    try:
        listener = sockets.listen("[::1]:0")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with contextlib.closing(listener):
        assert sockets.describe(listener).startswith("http://[::1]:")


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(sockets.CannotListen, match=r"cannot listen on 192\.0\.2\.1:1"):
        sockets.listen("192.0.2.1:1")


def test_a_stale_unix_socket_is_replaced_and_anything_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with contextlib.closing(sockets.listen(f"unix:{path}")) as listener:
        assert path.stat().st_mode & 0o777 == 0o660
        assert sockets.describe(listener) == f"unix:{path}"
        sockets.remove(sockets.files_of([listener]))
        assert not path.exists()
    path.write_text("precious")
    with pytest.raises(sockets.CannotListen, match="not a socket"):
        sockets.listen(f"unix:{path}")
    assert path.read_text() == "precious"
    with pytest.raises(sockets.CannotListen, match=r"cannot listen on unix:.*too long"):
        sockets.listen(f"unix:/{'x' * 200}")


def test_what_systemd_is_told_is_ascii_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # sdnotify encodes Latin-1 and swallows the error when it cannot: the whole message would be lost.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with contextlib.closing(systemd.Notifier()) as notifier:
            notifier.ready("→ 5 €\nFDSTORE=1")
        assert notify.recv(4096) == b"READY=1\nSTATUS=? 5 ? FDSTORE=1"
