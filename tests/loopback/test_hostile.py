"""The host's faults, each provoked with the hostile bytes themselves: the daemon goes on serving.

B0 to B6 are the names that codexd/server/hypercorn.py gives them. Each cure was seen to be needed: taken out, its test fails.
"""

import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import h11
import msgspec
import pytest
import trio

from codexd.protocol import sse
from codexd.server.sockets import AddressInUse, listen
from support.daemon import PATIENCE, Daemon, Raw, connected, hello, post, running
from support.upstream import ADDED, COMPLETED, CREATED, Call, Upstream, done, text

pytestmark = pytest.mark.loopback

H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WS = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

HOSTILE = {
    "h2c with settings that are no base64": b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: \xff\xff\r\n\r\n",
    "h2c with settings of the wrong length": b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAAA\r\n\r\n",
    "h2c without settings": b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "websocket with a subprotocol that is no ASCII": b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\n"
    + WS
    + b"sec-websocket-protocol: \xe9\r\n\r\n",
    "websocket with a trailing byte": b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\n" + WS + b"\r\nx",
    "http/2 by prior knowledge": H2_PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "http/2 with a path that is no ASCII": H2_PREFACE
    + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    + b"\x00\x00\x05\x01\x05\x00\x00\x00\x01\x82\x86\x04\x01\xff",
    "http/2 connect without a path": H2_PREFACE
    + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    + b"\x00\x00\x09\x01\x05\x00\x00\x00\x01\x02\x07CONNECT",
    "a path that is no ASCII": b"GET /\xe9\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "an absolute target": b"GET http://[::1 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a host that is no ASCII": b"GET / HTTP/1.1\r\nhost: \xff\xfe\r\n\r\n",
    "a method that is no method": b"\xff\xff / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "no http at all": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(64),
    "a bad content length": b"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    "two content lengths": b"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a bad chunk": b"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "headers without an end": b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 12000,
    "a percent sign and nothing": b"GET /v1/models/%00%ff%zz HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "JSON that is deep": post("/v1/responses", None)
    .replace(b"content-length: 4", b"content-length: 200000")
    .replace(b"null", b"[" * 200000),
    "JSON that is no text": b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\n\xff\xfe\xff\xfe",
    "a body for a route that is not there": b"POST /nope HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999999\r\n\r\n"
    + b"x" * 100000,
    "a half-closed request": b"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n",
}


async def still_serves(daemon: Daemon) -> bool:
    async with connected(daemon) as client:
        await client.send(post("/v1/chat/completions", hello()))
        return b'"content":"Hello"' in await client.until(b'"usage"')


@pytest.fixture
async def daemon(tmp_path: Path, logs: Path, upstream: Upstream) -> AsyncIterator[Daemon]:
    async with running(tmp_path, logs, upstream) as daemon:
        yield daemon


async def test_no_request_ends_the_daemon(daemon: Daemon) -> None:
    for name, data in HOSTILE.items():
        async with connected(daemon) as client:
            try:
                await client.send(data)
                with trio.move_on_after(0.2):
                    await client.all()
            except trio.BrokenResourceError:
                pass
        assert await still_serves(daemon), name
    assert daemon.process.poll() is None


async def test_http_2_is_not_spoken(daemon: Daemon) -> None:
    async with connected(daemon) as client:
        await client.send(HOSTILE["h2c without settings"])
        assert (await client.until(b"\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_websocket_upgrade_gets_a_plain_answer_where_there_is_none(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async with running(tmp_path, logs, upstream, server={"websocket": False}) as daemon:
        for path, status in (
            (b"/v1/responses", b"426"),
            (b"/v1/chat/completions", b"426"),
            (b"/health", b"200"),
            (b"/nowhere", b"404"),
        ):
            async with connected(daemon) as client:
                await client.send(b"GET %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" % path + WS + b"\r\n")
                answer = await client.all(seconds=3)
                assert answer.startswith(b"HTTP/1.1 " + status)
                assert b"\r\ncontent-type: application/json\r\n" in answer
    async with running(tmp_path, logs, upstream) as daemon, connected(daemon) as client:
        await client.send(b"GET /v1/responses?x=1 HTTP/1.1\r\nhost: localhost\r\n" + WS + b"\r\n")
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")


async def test_connection_close_closes(daemon: Daemon) -> None:
    for head in (
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
    ):
        async with connected(daemon) as client:
            await client.send(head)
            assert b'"signed_in":true' in await client.all(seconds=3)


async def test_a_peer_that_closes_an_idle_connection_frees_its_descriptor(daemon: Daemon) -> None:
    folder = Path(f"/proc/{daemon.process.pid}/fd")

    def sockets() -> int:
        found = 0
        for link in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += "socket" in str(link.readlink())
        return found

    assert await still_serves(daemon)
    before = sockets()
    for _ in range(10):
        async with connected(daemon) as client:
            await client.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await client.until(b"uptime_seconds")
    with trio.fail_after(30):
        while sockets() > before:  # polled: the kernel's table says nothing of changes
            await trio.sleep(0.02)


@pytest.mark.parametrize("extra", [b"\r\n", b"GET / HTTP/1.1\r\n"])
async def test_who_leaves_with_bytes_behind_the_request_frees_all(
    daemon: Daemon, upstream: Upstream, extra: bytes
) -> None:
    """h11 pauses then, and the reader with it: for ever, before the cure."""

    async def flooding(call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED)
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await call.events(text("x" * 1000))

    folder = Path(f"/proc/{daemon.process.pid}/fd")
    await daemon.logged("model catalogue refreshed")
    assert await still_serves(daemon)
    before = len(list(folder.iterdir()))
    upstream.plays = [flooding]
    for _ in range(8):
        async with connected(daemon) as client:
            await client.send(post("/v1/chat/completions", hello(stream=True)) + extra)
            await client.until(b"xxx")
    with trio.fail_after(PATIENCE):
        # Polled: /proc says nothing of changes.
        while len(list(folder.iterdir())) > before + 2:  # the reactor's, and one to the backend
            await trio.sleep(0.02)
    daemon.signal()
    with trio.fail_after(30):
        assert await daemon.process.wait() == 0


async def test_who_offers_another_protocol_and_leaves_is_noticed_at_once(daemon: Daemon, upstream: Upstream) -> None:
    left = trio.Event()

    async def silent(call: Call) -> None:
        await call.start()
        await call.gone()
        left.set()

    upstream.plays = [silent]
    async with connected(daemon) as client:
        request = post("/v1/chat/completions", hello(stream=True))
        await client.send(request.replace(b"host:", b"connection: upgrade\r\nupgrade: h2c\r\nhost:", 1))
        with trio.fail_after(PATIENCE):
            await upstream.until(lambda: bool(upstream.calls))
    with trio.fail_after(30):
        await left.wait()


async def test_an_idle_connection_does_not_hold_up_a_stop(daemon: Daemon) -> None:
    async with connected(daemon) as client:
        await client.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await client.until(b"uptime_seconds")
        daemon.signal()
        with trio.fail_after(30):
            assert await daemon.process.wait() == 0


class Flood:
    """Writes without end until nobody reads any more; then ``blocked`` is set."""

    def __init__(self) -> None:
        self.blocked = trio.Event()
        self.gone = trio.Event()
        self.megabytes = 0.0

    async def __call__(self, call: Call) -> None:
        await call.start()
        line = b'data: {"type":"response.output_text.delta","output_index":0,"delta":"%b"}\n\n' % (b"x" * 60000)
        try:
            while not self.blocked.is_set():
                with trio.move_on_after(0.5) as patience:
                    await call.chunk(line)
                    self.megabytes += len(line) / 1e6
                if patience.cancelled_caught:
                    self.blocked.set()
            await call.gone()
        except trio.BrokenResourceError:
            pass
        self.gone.set()


async def test_a_client_that_does_not_read_does_not_hold_up_a_stop(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    flood = Flood()
    upstream.plays = [flood]
    async with running(tmp_path, logs, upstream, server={"drain_seconds": 0.5}) as daemon, connected(daemon) as client:
        await client.send(post("/v1/chat/completions", hello(stream=True)))
        await flood.blocked.wait()
        daemon.signal()
        with trio.fail_after(30):  # half of sockets.WRITE_TIMEOUT, which would end it too
            assert await daemon.process.wait() == 0


async def test_a_slow_client_slows_the_upstream_down(daemon: Daemon, upstream: Upstream) -> None:
    flood = Flood()
    upstream.plays = [flood]
    async with connected(daemon) as client:
        await client.send(post("/v1/chat/completions", hello(stream=True)))
        await flood.blocked.wait()
        assert flood.megabytes < 30  # what the kernel's buffers hold, on two connections
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) < 120_000  # KiB
        assert len(upstream.calls) == 1


async def test_a_reader_that_dawdles_loses_nothing(daemon: Daemon, upstream: Upstream) -> None:
    """More than the kernel's buffers hold, first left unread: every short write goes on where it stopped."""
    words = [f"{number:08}" * 5000 for number in range(600)]  # 24 MB
    sent = 0

    async def long(call: Call) -> None:
        nonlocal sent
        await call.start()
        await call.events(CREATED, ADDED)
        for word in words:
            await call.events(text(word))
            sent += 1
        await call.events(done("".join(words)), COMPLETED)
        await call.end()

    upstream.plays = [long]
    async with connected(daemon) as client:
        await client.send(post("/v1/chat/completions", hello(stream=True), "connection: close"))
        # Until nothing moves any more: the buffers are full, or hold all of it.
        await trio.testing.wait_all_tasks_blocked(0.3)
        assert sent
        body = await client.all(seconds=60)
    # To the byte: what comes twice or not at all breaks the chunks' framing.
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="POST", target="/", headers=[("host", "localhost"), ("content-length", "0")]))
    reader.receive_data(body)
    assert isinstance(reader.next_event(), h11.Response)
    pieces = []
    while isinstance(event := reader.next_event(), h11.Data):
        pieces.append(bytes(event.data))
    assert isinstance(event, h11.EndOfMessage)
    events = sse.EventDecoder().feed(b"".join(pieces))
    assert events.pop() == b"[DONE]"
    found = [msgspec.json.decode(each)["choices"][0]["delta"].get("content", "") for each in events]
    assert [word for word in found if word] == words


@pytest.mark.parametrize("stage", ["flowing", "silent", "before the headers"])
async def test_a_client_that_leaves_closes_the_upstream_at_once(stage: str, daemon: Daemon, upstream: Upstream) -> None:
    flood, waiting, left = Flood(), trio.Event(), trio.Event()

    async def silent(call: Call) -> None:
        if stage == "silent":
            await call.start()
        waiting.set()
        await call.gone()
        left.set()

    upstream.plays = [flood if stage == "flowing" else silent]
    async with connected(daemon) as client:
        await client.send(post("/v1/chat/completions", hello(stream=True)))
        await (client.until(b"xxx") if stage == "flowing" else waiting.wait())
    with trio.fail_after(30):
        await (flood.gone if stage == "flowing" else left).wait()
    assert "status=499" in await daemon.logged("request finished .*chat")


async def test_the_live_unix_socket_of_another_is_not_taken(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    path = tmp_path / "api.sock"
    async with running(tmp_path, logs, upstream, server={"bind": [f"unix:{path}"]}) as daemon:
        assert path.stat().st_mode & 0o777 == 0o660
        with pytest.raises(AddressInUse, match="another process is serving"):
            listen(f"unix:{path}")
        async with await trio.open_unix_socket(str(path)) as stream:
            client = Raw(stream)  # type: ignore[arg-type]
            await client.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await client.until(b"signed_in")
        daemon.signal(signal.SIGINT)
        assert await daemon.process.wait() == 0
    assert not path.exists()


async def test_a_pipelined_request_is_answered(daemon: Daemon) -> None:
    async with connected(daemon) as client:
        await client.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2)
        while (await client.until(b"uptime_seconds")).count(b"uptime_seconds") < 2:
            client.data += await client.stream.receive_some(65536)


async def test_a_socket_that_a_successor_has_made_is_left_alone(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    path = tmp_path / "api.sock"
    bind = {"bind": [f"unix:{path}"]}

    async def silent(call: Call) -> None:
        await call.start()
        await call.gone()

    upstream.plays = [silent]
    async with (
        running(tmp_path, logs, upstream, server=bind | {"drain_seconds": 600}) as first,
        await trio.open_unix_socket(str(path)) as stream,
    ):
        await stream.send_all(post("/v1/chat/completions", hello(stream=True)))
        with trio.fail_after(PATIENCE):
            await upstream.until(lambda: bool(upstream.calls))
        first.signal()
        await first.logged("stopping: requests in progress may finish")
        with trio.fail_after(PATIENCE):
            while await accepts(path):  # polled: it is another process that stops listening
                await trio.sleep(0.02)
        control = {"socket": "second.sock"}
        async with running(tmp_path, logs, upstream, server=bind, control=control) as second:
            first.signal()
            assert await first.process.wait() == 0
            assert await accepts(path)
            second.signal()
            assert await second.process.wait() == 0


async def accepts(path: Path) -> bool:
    try:
        async with await trio.open_unix_socket(str(path)):
            return True
    except OSError:
        return False


async def test_a_client_that_breaks_the_rules_is_one_line_and_no_fault(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    chunk = b" HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    cases = {
        "a bad chunk where no body is read": b"GET /health" + chunk,
        "a bad chunk": b"POST /v1/chat/completions" + chunk,
        "a bad chunk behind a good one": b"POST /v1/responses" + chunk.replace(b"zz", b"2\r\n{}\r\nzz"),
        **{
            name: HOSTILE[name]
            for name in ("http/2 by prior knowledge", "websocket with a subprotocol that is no ASCII")
        },
    }
    async with running(tmp_path, logs, upstream, logging={"level": "info"}) as daemon:
        for name, data in cases.items():
            before = daemon.log.read_text()
            async with connected(daemon) as client:
                await client.send(data)
                await client.stream.send_eof()
                with contextlib.suppress(AssertionError):
                    await client.all()
            await still_serves(daemon)
            said = daemon.log.read_text().removeprefix(before).splitlines()
            mine = [line for line in said if "status=200" not in line]
            assert len(mine) <= 2, (name, mine)
            assert not any(mark in line for line in mine for mark in ("Traceback", "ERROR", "WARN")), (name, mine)


@pytest.mark.parametrize("body", [b"0\r\n\r\n", b"2\r\n{}\r\n0\r\n\r\n"])
async def test_a_length_beside_chunks_is_answered_and_the_connection_closed(daemon: Daemon, body: bytes) -> None:
    head = b"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
    async with connected(daemon) as client:
        await client.send(head + body + b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answer = await client.all()
    assert (answer.count(b"HTTP/1.1"), answer.startswith(b"HTTP/1.1 400")) == (1, True)
    assert b"connection: close" in answer


async def test_refusals_that_repeat_are_one_line(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    server = {"client_keys": {"a": "0123456789abcdef"}}
    async with (
        running(tmp_path, logs, upstream, logging={"level": "info"}, server=server) as daemon,
        connected(daemon) as client,
    ):
        for _ in range(50):
            await client.send(post("/v1/chat/completions", hello()))
            await client.until(b"invalid_api_key")
            client.data = b""
        assert daemon.log.read_text().count("status=401") == 1


async def test_a_silent_websocket_makes_room_for_a_connection(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    handshake = b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\n" + WS + b"\r\n"
    async with (
        running(tmp_path, logs, upstream, server={"max_connections": 2}) as daemon,
        connected(daemon) as first,
        connected(daemon) as second,
    ):
        for each in (first, second):
            await each.send(handshake)
            await each.until(b"101")
        assert await still_serves(daemon)
        assert (1013).to_bytes(2) in await first.all()
        assert second.data.endswith(b"\r\n\r\n")  # the one that was idle for longest
