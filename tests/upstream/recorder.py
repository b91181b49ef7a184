"""A proxy on loopback that answers by itself as ChatGPT and its issuer, and keeps what it was sent.

Every connection ends here and nothing is passed on: CONNECT and TLS are ``support.proxy``'s, HTTP and websockets on
top of them are read to their end, answered by functions, and recorded.
"""

import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import h11
import msgspec
import trio
import trustme
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Ping, TextMessage
from wsproto.utilities import generate_accept_token

from support.proxy import Proxy
from support.zstd import zstd

Json = dict[str, Any]


@dataclass
class Recorded:
    """One request: header names as they were written, the body decompressed, a websocket's messages decoded.

    ``alpn`` is what its connection offered in the TLS handshake; ``frames`` is None where no websocket was opened.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    alpn: list[str] = field(default_factory=list)
    frames: list[Any] | None = None

    def header(self, name: str) -> str:
        """The header's value, whatever the case of its name; empty where there is none."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class Reply(NamedTuple):
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


Speaker = Callable[[Any], list[Json]]
"""A websocket's other side: a message of the client in, the events that answer it out."""


class Recorder(Proxy):
    """``answer`` says what a request gets; ``websocket`` who speaks on a websocket, or that there is none (426)."""

    def __init__(
        self,
        ca: trustme.CA,
        answer: Callable[[Recorded], Reply],
        websocket: Callable[[Recorded], Speaker | None] = lambda _: None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), opens=ca)
        self.log: list[Recorded] = []
        self._answer = answer
        self._websocket = websocket

    async def handle(self, stream: Any) -> None:
        await super().handle(_Heard(stream))

    async def _join(self, stream: Any) -> None:
        """Where a proxy would connect to the server that was asked for: HTTP/1.1, to the end of the connection."""
        alpn = offered_protocols(stream.transport_stream.head.partition(b"\r\n\r\n")[2])
        connection = h11.Connection(h11.SERVER)
        try:
            while (recorded := await _next_request(stream, connection)) is not None:
                recorded.alpn = alpn
                self.log.append(recorded)
                if recorded.header("upgrade").lower() == "websocket":
                    speaker = self._websocket(recorded)
                    if speaker is not None:
                        await _upgrade(stream, connection, recorded)
                        await _converse(stream, connection.trailing_data[0], recorded, speaker)
                        return
                    reply = Reply(426)
                else:
                    reply = self._answer(recorded)
                await _reply(stream, connection, reply)
                connection.start_next_cycle()
        except h11.RemoteProtocolError:
            pass  # a client that left in the middle of a request


class _Heard(trio.abc.Stream):
    """A connection and the first bytes that came over it: those of CONNECT and of the ClientHello."""

    ENOUGH = 32 * 1024

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.head = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._stream.receive_some(max_bytes))
        if len(self.head) < self.ENOUGH:
            self.head += data
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _next_request(stream: Any, connection: h11.Connection) -> Recorded | None:
    """The next request with its body; None at the end of the connection."""
    recorded, body = None, b""
    while True:
        event = connection.next_event()
        match event:
            case h11.NEED_DATA:
                try:
                    connection.receive_data(await stream.receive_some(65536))
                except (trio.BrokenResourceError, ssl.SSLError):
                    return None
            case h11.Request():
                pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers.raw_items()]
                recorded = Recorded(event.method.decode(), event.target.decode("latin-1"), pairs)
            case h11.Data():
                body += event.data
            case h11.EndOfMessage() if recorded is not None:
                packed = recorded.header("content-encoding") == "zstd"
                recorded.body = zstd.decompress(body) if packed else bytes(body)
                return recorded
            case _:
                return None


async def _reply(stream: Any, connection: h11.Connection, reply: Reply) -> None:
    headers = [*reply.headers, ("content-length", str(len(reply.body)))]
    out = connection.send(h11.Response(status_code=reply.status, headers=headers)) or b""
    out += connection.send(h11.Data(data=reply.body)) or b""
    out += connection.send(h11.EndOfMessage()) or b""
    await stream.send_all(out)


async def _upgrade(stream: Any, connection: h11.Connection, recorded: Recorded) -> None:
    token = generate_accept_token(recorded.header("sec-websocket-key").encode()).decode()
    headers = [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", token)]
    await stream.send_all(connection.send(h11.InformationalResponse(status_code=101, headers=headers)) or b"")


async def _converse(stream: Any, first: bytes, recorded: Recorded, speaker: Speaker) -> None:
    """A websocket until the client leaves."""
    socket = Connection(ConnectionType.SERVER, trailing_data=first)
    recorded.frames, text = [], ""
    while True:
        for event in socket.events():
            if isinstance(event, CloseConnection):
                await stream.send_all(socket.send(event.response()))
                return
            if isinstance(event, Ping):
                await stream.send_all(socket.send(event.response()))
            if isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    message, text = msgspec.json.decode(text), ""
                    recorded.frames.append(message)
                    for said in speaker(message):
                        await stream.send_all(socket.send(TextMessage(data=msgspec.json.encode(said).decode())))
        if not (data := await stream.receive_some(65536)):
            return
        socket.receive_data(data)


class _Reader:
    """Fields of TLS' presentation language, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bool__(self) -> bool:
        return bool(self._data)

    def take(self, size: int) -> bytes:
        if size > len(self._data):
            raise ValueError("cut off")
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """What stands behind its own length, which has so many bytes."""
        return self.take(self.number(size))


def offered_protocols(hello: bytes) -> list[str]:
    """What a TLS client offers by ALPN (RFC 7301), from its first record (RFC 8446, 4.1.2); none when it does not."""
    try:
        return [name.decode() for name in _protocols(hello)]
    except ValueError:
        return []


def _protocols(hello: bytes) -> Iterator[bytes]:
    record = _Reader(hello)
    record.take(3 + 2 + 4)  # the headers of record and handshake
    record.take(2 + 32)  # version and random
    record.vector(1)  # the session's id
    record.vector(2)  # ciphers
    record.vector(1)  # compression
    extensions = _Reader(record.vector(2))
    while extensions:
        kind, value = extensions.number(2), _Reader(extensions.vector(2))
        if kind == 16:
            names = _Reader(value.vector(2))
            while names:
                yield names.vector(1)
