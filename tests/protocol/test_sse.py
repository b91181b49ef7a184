import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.protocol import sse
from codexd.protocol.sse import EventDecoder

STREAM = (
    b"\xef\xbb\xbf: a comment\r\n\r\n"
    b'event: one\ndata: {"a": "\xe2\x80\xa8\xc2\x85\x0b\x0c"}\n\n'
    b"data:no space\r\rid: 7\nretry: 3\nevent: two\ndata:  two spaces\ndata\ndata: third\n\n\n\n"
    b"event: without data\n\ndata: last\r\n\r\n"
)
EVENTS = [
    b'{"a": "\xe2\x80\xa8\xc2\x85\x0b\x0c"}',
    b"no space",
    b" two spaces\n\nthird",
    b"last",
]


def fed(pieces: list[bytes]) -> list[bytes]:
    decoder = EventDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def test_reads_a_stream_whole() -> None:
    assert fed([STREAM]) == EVENTS


def test_reads_a_stream_a_byte_at_a_time() -> None:
    assert fed([bytes([byte]) for byte in STREAM]) == EVENTS


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_reads_a_stream_cut_anywhere(cut: int) -> None:
    assert fed([STREAM[:cut], STREAM[cut:]]) == EVENTS


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_line_end_ends_a_line(end: bytes) -> None:
    assert fed([STREAM.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", end)]) == EVENTS


def test_an_unfinished_event_is_dropped() -> None:
    assert fed([b"data: whole\n\ndata: unfinished\n"]) == [b"whole"]


def test_an_endless_event_is_refused_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    decoder = EventDecoder()
    with pytest.raises(sse.EventTooLarge):
        for _ in range(1002):
            decoder.feed(b"x")


def test_an_encoded_event_is_one_line() -> None:
    assert sse.encode(b"e", b'{\n"a": 1}') == b'event: e\ndata: { "a": 1}\n\n'


LINES = st.sampled_from([b"data: x", b"data:", b"event: e", b": c", b"", b"id", b"data: \xe2\x80\xa8"])
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


def as_specified(stream: bytes) -> list[bytes]:
    """The format's own words, line by line."""
    events, data = list[bytes](), list[bytes]()
    for line in stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]:
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif not line and data:
            events.append(b"\n".join(data))
        if not line:
            data = []
    return events


@pytest.mark.parametrize("long", [0, 10**9])
@given(st.lists(st.tuples(LINES, ENDS), max_size=12), st.lists(st.integers(0, 120), max_size=6))
def test_decoding_does_not_depend_on_where_the_network_cuts(
    long: int, lines: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(line + end for line, end in lines)
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    pieces = [stream[start:stop] for start, stop in itertools.pairwise(places)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "LONG", long)
        assert fed(pieces) == fed([stream]) == as_specified(stream)


@pytest.mark.parametrize("long", [0, 10**9])
def test_a_read_may_end_within_a_line_of_the_next_event(monkeypatch: pytest.MonkeyPatch, long: int) -> None:
    monkeypatch.setattr(sse, "LONG", long)
    assert fed([b"data: a\n\n", b"data: b\n\nevent: e", b"\ndata: c\n\ndat", b"a: d\n\n"]) == [b"a", b"b", b"c", b"d"]
