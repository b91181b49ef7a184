"""TLS towards the backend: records, ends without a word, certificates, and TLS in TLS."""

import contextlib
import ssl
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio
import trustme

from codexd.upstream import connection
from codexd.upstream.transport import Transport
from support.serving import ANSWER, CHUNKED, HERE, Server, client, contexts, here, post, serving


class Outer:
    """The outer connection of TLS in TLS: what came is there to be read, in pieces of a record's size."""

    def __init__(self) -> None:
        self.came, self.sent = bytearray(), bytearray()

    def fileno(self) -> int:
        return -1

    def send(self, data: memoryview) -> int:
        self.sent += data
        return len(data)

    def recv(self, size: int) -> bytes:
        if not self.came:
            raise ssl.SSLWantReadError
        piece = bytes(self.came[: min(size, 16384)])
        del self.came[: len(piece)]
        return piece


@pytest.mark.parametrize("records", [1, 60, 66, 70, 133, 200])
def test_nothing_stays_behind_in_tls_in_tls(authority: trustme.CA, records: int) -> None:
    """When the kernel has no more, no wait ends: whatever can be decrypted has to come with what was read last."""
    server, trusting = contexts(authority, "localhost")
    outer, came, going = Outer(), ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(came, going, server_side=True)
    ours = connection.TlsInTls(outer, trusting(), "localhost")  # type: ignore[arg-type]
    for _ in range(4):
        for side in (ours, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            came.write(bytes(outer.sent))
            outer.sent.clear()
            outer.came += going.read()
    for _ in range(records):
        theirs.write(b"x" * 1000)
        outer.came += going.read()
    opened, found = connection.TlsConnection(ours), 0
    while outer.came:
        found += len(opened.read_now() or b"")
    assert found == records * 1000


@pytest.mark.parametrize("pushed", [False, True])
async def test_an_end_that_comes_with_the_last_data_over_tls(authority: trustme.CA, pushed: bool) -> None:
    """close_notify in the same segment, and the connection left open: nothing more will ever wake anybody."""
    tls, trusting = contexts(authority, "localhost")

    async def last_words(stream: trio.SocketStream) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        end = tls.wrap_bio(incoming, outgoing, server_side=True)

        async def until(step: Callable[[], Any]) -> None:
            while True:
                try:
                    step()
                except ssl.SSLWantReadError:
                    await stream.send_all(outgoing.read())
                    incoming.write(await stream.receive_some(65536))
                else:
                    break

        await until(end.do_handshake)
        await until(lambda: end.read(65536))
        end.write(CHUNKED + b"5\r\nfirst\r\n")
        await stream.send_all(outgoing.read())
        await trio.testing.wait_all_tasks_blocked(0.01)
        end.write(b"4\r\nlast\r\n")
        with contextlib.suppress(ssl.SSLWantReadError):
            end.unwrap()
        await stream.send_all(outgoing.read())
        await trio.sleep_forever()

    server = Server()
    server.handle = last_words  # type: ignore[method-assign]
    made = Transport(trusting)
    async with serving(server) as port:
        with trio.fail_after(20):
            _, _, body, *_ = await made.post(here(port, "https"), HERE, b"{}", lambda: False)
            seen = [await anext(body)]
            with pytest.raises(httpx.RemoteProtocolError, match="last chunk"):
                if pushed:
                    await body.push(lambda data: seen.append(data) is None)
                while True:
                    seen.append(await anext(body))
            await body.aclose()
        assert seen == [b"first", b"last"]


async def test_tls(authority: trustme.CA) -> None:
    body = bytes(range(256)) * 1000  # many records
    large = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    tls, trusting = contexts(authority, "localhost")
    server = Server(ANSWER, large, CHUNKED + b"1\r\nx\r\n")
    async with serving(server, tls) as port, client(Transport(trusting)) as http:
        url = f"https://localhost:{port}/"
        assert (await http.get(url)).text == "ok"
        assert (await http.get(url)).content == body
        async with http.stream("GET", url) as response:
            assert await anext(response.aiter_bytes()) == b"x"
    assert server.connections == 1


@pytest.mark.parametrize("framed", ["length", "chunks", "connection"])
async def test_tls_that_ends_without_saying_so(authority: trustme.CA, framed: str) -> None:
    """Anyone on the path can end a connection; only what the framing declares complete counts as complete."""
    answers = {
        "length": ANSWER,
        "chunks": CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
        "connection": b"HTTP/1.1 200 OK\r\n\r\nok",
    }
    tls, trusting = contexts(authority, "localhost")
    server = Server()

    async def cut(stream: trio.SSLStream[trio.SocketStream]) -> None:
        server.connections += 1
        await stream.receive_some(65536)
        await stream.send_all(answers[framed])
        await stream.transport_stream.send_eof()
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some(1)

    server.handle = cut  # type: ignore[method-assign]
    made = Transport(trusting)
    async with serving(server, tls) as port:
        for _ in range(2):
            if framed == "connection":
                with pytest.raises(httpx.ReadError):
                    await post(made, here(port, "https"))
            else:
                assert await post(made, here(port, "https")) == (200, b"ok")
        assert server.connections == 2
        await made.aclose()


async def test_a_certificate_that_is_not_trusted(authority: trustme.CA) -> None:
    tls, trusting = contexts(authority, "somebody.else")
    async with serving(Server(ANSWER), tls) as port:
        async with client(Transport(trusting)) as http:
            with pytest.raises(httpx.ConnectError, match=r"Hostname mismatch|doesn't match|Something else answers"):
                await http.get(f"https://localhost:{port}/")
        async with client() as http:
            with pytest.raises(
                httpx.ConnectError, match=r"the certificate of localhost is not trusted: .*backend\.ca_file"
            ):
                await http.get(f"https://localhost:{port}/")
