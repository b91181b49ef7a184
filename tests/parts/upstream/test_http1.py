"""Bodies in chunks, split at every byte."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.upstream.http1 import Chunked

BODIES = [b"", b"a", b"\r\n", b"0\r\n\r\n", b"x" * 300, b"data: {}\r\n\r\n"]


def whole(chunks: list[bytes], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks if chunk)
    return framed + b"0\r\n" + trailers + b"\r\n"


@pytest.mark.parametrize("extension", [b"", b";name=value", b" ; a"])
@pytest.mark.parametrize("trailers", [b"", b"x: y\r\n", b"x: y\r\nz: w\r\n"])
def test_a_chunked_body_split_anywhere(extension: bytes, trailers: bytes) -> None:
    data = whole(BODIES, extension, trailers) + b"next"
    for at in range(len(data)):
        body = Chunked()
        out = body.feed(data[:at])
        if not body.done:
            out += body.feed(data[at:])
            assert body.rest == b"next"
        assert (out, body.done) == (b"".join(BODIES), True)
    body = Chunked()
    single = [body.feed(bytes([byte])) for byte in data[:-4]]
    assert (b"".join(single), body.done, body.rest) == (b"".join(BODIES), True, b"")


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(0, 400)))
def test_a_chunked_body_cut_at_will(chunks: list[bytes], cuts: list[int]) -> None:
    data = whole(chunks)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    body = Chunked()
    out = b"".join([body.feed(data[a:b]) for a, b in pairwise(places)])
    assert (out, body.done, body.rest) == (b"".join(chunks), True, b"")
