"""Frames of a websocket, against wsproto's server: any messages, in any fragments, cut anywhere."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import SERVER, Connection
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from codexd.upstream import frames
from codexd.upstream.frames import Closed, Frames

TEXTS = st.text(max_size=300) | st.integers(120, 70_000).map(lambda size: "é" * (size // 2))


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[str], list[bytes], bytes]:
    """Messages, pings, and the bytes of all: some in fragments, with pings between those."""
    server, data, pings = Connection(SERVER), b"", list[bytes]()
    texts = draw(st.lists(TEXTS, max_size=6))

    def ping() -> bytes:
        if not draw(st.booleans()):
            return b""
        pings.append(draw(st.binary(max_size=20)))
        return server.send(Ping(pings[-1]))

    for text in texts:
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        for number, piece in enumerate(pieces, 1):
            data += server.send(TextMessage(piece, message_finished=number == len(pieces))) + ping()
        data += ping()
    return texts, pings, data


@given(streams(), st.lists(st.integers(0, 1000)), st.booleans())
def test_messages_are_the_same_however_they_are_cut(
    stream: tuple[list[str], list[bytes], bytes], cuts: list[int], bytewise: bool
) -> None:
    texts, pings, data = stream
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    if bytewise and len(data) < 3000:
        places = list(range(len(data) + 1))
    client, found = Frames(), list[bytes]()
    for start, end in pairwise(places):
        found += client.feed(data[start:end])
    assert found == [text.encode() for text in texts]
    server = Connection(SERVER)
    server.receive_data(client.replies)
    assert [event.payload for event in server.events() if isinstance(event, Pong)] == pings


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_a_frame_may_come_a_byte_at_a_time(size: int) -> None:
    data = Connection(SERVER).send(TextMessage("x" * size)) + Connection(SERVER).send(TextMessage("y"))
    client, found = Frames(), list[bytes]()
    for at in range(len(data)):
        found += client.feed(data[at : at + 1])
    assert found == [b"x" * size, b"y"]


@given(TEXTS, st.integers(1, 5000))
def test_what_is_sent_is_what_a_server_reads(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "FRAGMENT", max(size, 4))
        sent = list(Frames().encode(text.encode() or b"{}"))
    server, found = Connection(SERVER), ""
    for frame in sent:
        assert len(frame) <= max(size, 4) + 14
        server.receive_data(frame)
        for event in server.events():
            assert isinstance(event, TextMessage)
            found += event.data
    assert found == (text or "{}")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (Connection(SERVER).send(CloseConnection(code=1011, reason="keepalive ping timeout")), 1011),
        (Connection(SERVER).send(CloseConnection(code=1000)), 1000),
        (b"\x88\x00", 1005),
        (Connection(SERVER).send(BytesMessage(b"\0")), 1003),
        (b"\x81\x82mask{}", 1002),
        (b"\x80\x02{}", 1002),
        (b"\x83\x00", 1002),
        (b"\xc1\x02{}", 1002),
        (b"\x01\x02\xff\xfe", 1007),
        (b"\x81\x7f" + (1 << 40).to_bytes(8), 1009),
    ],
)
def test_what_ends_a_websocket(data: bytes, code: int) -> None:
    with pytest.raises(Closed) as caught:
        Frames().feed(data)
    assert (caught.value.code, str(code) in str(caught.value)) == (code, True)


def test_an_end_behind_messages_loses_none_of_them() -> None:
    client, end = Frames(), Connection(SERVER).send(CloseConnection(code=1000))
    assert client.feed(b"\x81\x02{}\x81\x02[]" + end) == [b"{}", b"[]"]
    assert client.ended is not None
    assert client.ended.code == 1000
    with pytest.raises(Closed):
        client.feed(b"\x81\x02{}")


def test_parts_of_messages_are_progress_and_pings_are_not() -> None:
    client, ping = Frames(), b"\x89\x02hi"
    steps: list[tuple[bytes, bool]] = [
        (ping, False),
        (ping[:1], False),
        (ping[1:3], False),
        (ping[3:], False),
        (b"\x81\x02", True),
        (b"{", True),
        (b"}", False),
        (b"\x01\x01[", True),
        (ping, False),
        (b"\x80\x01]", False),
        (b"\x81\x02{}\x81", True),
        (b"\x02{}", False),
    ]
    assert [(data, (client.feed(data), client.growing)[1]) for data, _ in steps] == steps


def test_a_fragmented_message_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_MESSAGE", 10)
    client, server = Frames(), Connection(SERVER)
    assert client.feed(server.send(TextMessage("x" * 10, message_finished=False))) == []
    with pytest.raises(Closed, match="more than 10 bytes"):
        client.feed(server.send(TextMessage("y")))


def test_a_pong_that_nobody_asked_for_is_nothing() -> None:
    client = Frames()
    assert client.feed(Connection(SERVER).send(Pong(b"x"))) == []
    assert client.replies == b""
