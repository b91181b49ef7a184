"""A request on its way in and its answer, over a connection that is only a list of what was written."""

from typing import Any

import h11
import pytest
import trio
from hypercorn.protocol.events import Body, EndBody, StreamClosed
from trio.testing import MockClock

from codexd.server.request import BODY_TIMEOUT, BodyTimeout, BodyTooLarge, Handler, ServerRequest
from codexd.system.memory import UNBOUNDED

POST = b"POST /x HTTP/1.1\r\nhost: localhost\r\n"
LIMIT = 100


class Host:
    """What a connection is to a request; ``ended`` is how it went on."""

    client = server = None

    def __init__(self, request: bytes) -> None:
        self.connection = h11.Connection(h11.SERVER)
        self.connection.receive_data(request)
        self.written = b""
        self.ended = ""

    def common_fields(self) -> list[tuple[bytes, bytes]]:
        return [(b"date", b"now")]

    def send_now(self, data: bytes) -> bytes:
        self.written += data
        return b""

    async def send_data(self, data: bytes | memoryview) -> None:
        self.written += data

    async def finish(self) -> None:
        self.ended = "recycled"

    async def close(self) -> None:
        self.ended = "hung up"


def made(request: bytes) -> tuple[Host, ServerRequest]:
    host = Host(request)
    event: Any = host.connection.next_event()
    return host, ServerRequest(host, event, "/x", b"", LIMIT, UNBOUNDED.hold())


async def taken(handler: Handler, request: bytes, pieces: list[bytes | float | None]) -> Host:
    """Each piece of the body in turn; a number is a pause in seconds, None is the client's leaving."""
    host, incoming = made(request)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(incoming.run, handler)
        for piece in pieces:
            if isinstance(piece, float):
                await trio.sleep(piece)
            elif piece is None:
                await incoming.handle(StreamClosed(stream_id=1))
            else:
                await incoming.handle(Body(stream_id=1, data=piece) if piece else EndBody(stream_id=1))
    return host


async def echo(incoming: ServerRequest) -> None:
    try:
        body = await incoming.body()
    except (BodyTooLarge, BodyTimeout) as error:
        body = type(error).__name__.encode()
    await incoming.answer(200, [], body)


@pytest.mark.parametrize(
    ("head", "pieces", "said"),
    [
        (b"", [b""], b""),
        (b"", [b"one", b""], b"one"),
        (b"", [b"one", 1.0, b"two", 100.0, b"three", b""], b"onetwothree"),
        (b"", [b"x" * LIMIT, 1.0, b""], b"x" * LIMIT),
        (b"", [b"x" * LIMIT, 1.0, b"y", 1.0, b"more", b""], b"BodyTooLarge"),
        (b"", [b"x" * LIMIT, b"y", b""], b"BodyTooLarge"),
        (b"content-length: 101\r\n", [b"x", 1.0], b"BodyTooLarge"),
        (b"content-length: 100\r\n", [b"x", 1.0, b"x" * 99, b""], b"x" * 100),
        (b"", [b"one", 1.0, b"two", BODY_TIMEOUT], b"BodyTimeout"),
    ],
)
async def test_a_body_in_pieces(
    autojump_clock: MockClock, head: bytes, pieces: list[bytes | float | None], said: bytes
) -> None:
    host = await taken(echo, POST + head + b"\r\n", pieces)
    assert host.written.partition(b"\r\n\r\n")[2] == said
    assert host.ended == "recycled"


async def test_who_leaves_while_the_body_is_awaited_gets_no_answer(autojump_clock: MockClock) -> None:
    host = await taken(echo, POST + b"\r\n", [b"one", 1.0, None])
    assert (host.written, host.ended) == (b"", "")


async def test_half_an_answer_ends_the_connection(autojump_clock: MockClock) -> None:
    async def breaks(incoming: ServerRequest) -> None:
        await incoming.start([])
        await incoming.write(b"half")
        raise ZeroDivisionError

    host = await taken(breaks, POST + b"\r\n", [b""])
    assert host.written.endswith(b"4\r\nhalf\r\n")
    assert host.ended == "hung up"


async def test_a_field_cannot_end_the_head(autojump_clock: MockClock) -> None:
    async def splits(incoming: ServerRequest) -> None:
        with pytest.raises(ValueError, match="x-name"):
            await incoming.answer(200, [("x-name", "a\r\nset-cookie: b")], b"")
        await incoming.answer(200, [("x-name", "ü\ta")], b"")

    host = await taken(splits, POST + b"\r\n", [b""])
    assert host.written.count(b"HTTP/1.1 200") == 1
    assert "x-name: ü\ta\r\n".encode("latin-1") in host.written


@pytest.mark.parametrize("arrived", [True, False])
async def test_an_answer_before_the_bodys_end_ends_the_connection_and_says_so(
    autojump_clock: MockClock, arrived: bool
) -> None:
    async def refuses(incoming: ServerRequest) -> None:
        await incoming.answer(401, [], b"no")

    host = Host(POST + b"content-length: 3\r\n\r\n" + (b"abc" if arrived else b"a"))
    event: Any = host.connection.next_event()
    incoming = ServerRequest(host, event, "/x", b"", LIMIT, UNBOUNDED.hold())
    while isinstance(host.connection.next_event(), h11.Data):
        pass
    await incoming.run(refuses)
    assert host.written.lower().count(b"connection: close") == (not arrived)
    assert (host.connection.our_state is h11.MUST_CLOSE) == (not arrived)


async def test_the_first_field_of_a_name_counts() -> None:
    _, incoming = made(POST + b"authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n")
    assert incoming.headers["authorization"] == "Bearer a"
