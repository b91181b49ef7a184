"""Bytes from either side, of any kind: they are understood, or refused by the one error that is meant for it."""

import contextlib

import httpx
from hypothesis import given
from hypothesis import strategies as st

from codexd.control import wire
from codexd.errors import ApiError
from codexd.protocol import sse
from codexd.protocol.anthropic import wire as anthropic
from codexd.protocol.chat import completions
from codexd.protocol.chat import wire as chat
from codexd.protocol.members import split
from codexd.protocol.responses import wire as responses
from codexd.upstream.http1 import Chunked, framing_of, parse_head

PIECES = st.lists(st.sampled_from([b"\r\n", b"\n", b"\r", b":", b" ", b"HTTP/1.1 ", b"200", b"0", b"a", b"-1", b"\xff", b"\x00",
                                   b"content-length", b"transfer-encoding", b"chunked", b"connection", b"close", b",",
                                   b"data:", b"event:", b"id", b"{", b"}", b'"type"', b"[", b"f" * 16]) | st.binary(max_size=4))  # fmt: skip


@given(PIECES.map(b"".join))
def test_a_head_is_read_or_refused(data: bytes) -> None:
    try:
        status, fields, keep = parse_head(b"HTTP/1.1 200 OK\r\n" + data)
        framing, kept = framing_of("POST", status, fields, keep=keep)
    except httpx.RemoteProtocolError:
        return
    assert kept <= keep
    assert all(b"\n" not in name + value for name, value in fields)
    assert framing.done in (True, False)


@given(PIECES)
def test_chunks_are_the_same_however_they_arrive(pieces: list[bytes]) -> None:
    def fed(parts: list[bytes]) -> tuple[bytes, bool, bool]:
        body, out = Chunked(), b""
        try:
            for part in parts:
                out += body.feed(part)
                if body.done:
                    break
        except httpx.RemoteProtocolError:
            return out, False, True
        return out, body.done, False

    whole, done, refused = fed([b"".join(pieces)])
    by_parts, done_by_parts, refused_by_parts = fed(pieces)
    assert (done, refused) == (done_by_parts, refused_by_parts)
    if not refused:
        assert whole == by_parts


@given(PIECES)
def test_events_are_the_same_however_they_arrive(pieces: list[bytes]) -> None:
    by_parts = sse.EventDecoder()
    assert [event for piece in pieces for event in by_parts.feed(piece)] == sse.EventDecoder().feed(b"".join(pieces))


@given(PIECES.map(b"".join) | st.binary(max_size=30))
def test_a_body_is_decoded_or_a_400(data: bytes) -> None:
    for decoder in (chat.REQUEST, completions.REQUEST, responses.REQUEST, anthropic.REQUEST):
        try:
            decoder.decode(split(data))
        except ApiError as error:
            assert error.status == 400


@given(PIECES.map(b"".join) | st.binary(max_size=30))
def test_a_line_of_the_control_socket_is_decoded_or_refused(data: bytes) -> None:
    with contextlib.suppress(wire.NotUnderstood):
        wire.decode_request(data)
