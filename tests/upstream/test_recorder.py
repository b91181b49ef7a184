"""What the recorder tells of a client, without the official one."""

import ssl
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trustme
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage

from support.proxy import proxying
from support.zstd import zstd
from upstream.recorder import Recorded, Recorder, Reply, offered_protocols


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def trusting(ca: trustme.CA, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


async def test_requests_are_answered_here_and_recorded_unpacked(ca: trustme.CA) -> None:
    def answer(recorded: Recorded) -> Reply:
        return Reply(201, (("x-path", recorded.path),), recorded.body.upper())

    async with proxying(Recorder(ca, answer)) as recorder:
        async with httpx.AsyncClient(proxy=recorder.url(), verify=trusting(ca), trust_env=False) as http:
            packed = zstd.compress(b'{"a":1}')
            for _ in range(2):  # over one connection
                got = await http.post("https://chatgpt.com/x?y=z", content=packed, headers={"Content-Encoding": "zstd"})
                assert (got.status_code, got.headers["x-path"], got.content) == (201, "/x", b'{"A":1}')
        assert recorder.asked == ["chatgpt.com:443"]
        first, _ = recorder.log
    assert (first.method, first.target, first.body, first.alpn) == ("POST", "/x?y=z", b'{"a":1}', ["http/1.1"])
    assert ("Content-Encoding", "zstd") in first.headers
    assert first.header("host") == "chatgpt.com"


async def test_a_websocket_is_refused_or_spoken_on(ca: trustme.CA) -> None:
    async def ask(recorder: Recorder, *messages: Any) -> list[Any]:
        tcp = await trio.open_tcp_stream("127.0.0.1", recorder.port)
        await tcp.send_all(b"CONNECT chatgpt.com:443 HTTP/1.1\r\n\r\n")
        assert b"200" in await tcp.receive_some()
        async with trio.SSLStream(tcp, trusting(ca), server_hostname="chatgpt.com") as stream:
            socket = WSConnection(ConnectionType.CLIENT)
            got: list[Any] = []
            await stream.send_all(socket.send(Request(host="chatgpt.com", target="/r")))
            while len(got) < len(messages):
                socket.receive_data(bytes(await stream.receive_some(65536)))
                for event in socket.events():
                    if not isinstance(event, AcceptConnection | TextMessage):
                        return [type(event).__name__]
                    if isinstance(event, TextMessage):
                        got.append(msgspec.json.decode(event.data))
                    if len(got) < len(messages):
                        text = msgspec.json.encode(messages[len(got)]).decode()
                        await stream.send_all(socket.send(TextMessage(data=text)))
            return got

    async with proxying(Recorder(ca, lambda _: Reply(), lambda _: lambda said: [{"heard": said}])) as recorder:
        assert await ask(recorder, {"n": 1}, {"n": 2}) == [{"heard": {"n": 1}}, {"heard": {"n": 2}}]
        assert recorder.log[0].frames == [{"n": 1}, {"n": 2}]
    async with proxying(Recorder(ca, lambda _: Reply())) as recorder:
        assert await ask(recorder, {"n": 1}) == ["RejectConnection"]
        assert recorder.log[0].frames is None


@pytest.mark.parametrize("protocols", [(), ("h2", "http/1.1")])
def test_the_protocols_of_a_handshake_are_read(protocols: tuple[str, ...]) -> None:
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        trusting(trustme.CA(), *protocols).wrap_bio(ssl.MemoryBIO(), out, server_hostname="x").do_handshake()
    hello = out.read()
    assert offered_protocols(hello) == list(protocols)
    assert all(offered_protocols(hello[:size]) == [] for size in range(0, 120, 7))
