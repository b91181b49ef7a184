"""The content codings of requests: read whole, up to a limit, and refused when they are broken."""

import gzip
import zlib
from collections.abc import Callable

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.protocol.codings import MAX_MEMBERS, PIECE, Expander, Undecodable, decompress
from support.zstd import zstd


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return made.compress(data) + made.flush()


CODINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("GZIP", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("br", brotli.compress),
    ("zstd", zstd.compress),
]
every = pytest.mark.parametrize(("name", "code"), CODINGS)


@every
@given(st.binary(max_size=300), st.integers(0, 400))
def test_a_body_comes_back_up_to_a_limit(name: str, code: Callable[[bytes], bytes], data: bytes, limit: int) -> None:
    found = decompress(name, code(data), limit)
    assert found == data[: limit + 1] or (len(data) > limit and len(found) == limit + 1)


@every
def test_a_bomb_is_not_unpacked(name: str, code: Callable[[bytes], bytes]) -> None:
    assert len(decompress(name, code(bytes(10_000_000)), 1000)) == 1001


@every
def test_broken_data_is_undecodable(name: str, code: Callable[[bytes], bytes]) -> None:
    whole = code(b"some text that is long enough" * 10)
    for broken in (whole[:-3], b"\xff" + whole, b""):
        with pytest.raises(Undecodable):
            decompress(name, broken, 10_000)


def test_several_codings_and_members() -> None:
    assert decompress("gzip, br", brotli.compress(gzip.compress(b"x")), 10) == b"x"
    assert decompress("identity, gzip", gzip.compress(b"x"), 10) == b"x"
    assert decompress("gzip", gzip.compress(b"a") + gzip.compress(b"b"), 10) == b"ab"


@pytest.mark.parametrize("name", ["compress", "gzip, what", "gzip,gzip,gzip,gzip,gzip"])
def test_an_unknown_coding(name: str) -> None:
    with pytest.raises(LookupError):
        decompress(name, b"", 10)


def test_members_have_an_end() -> None:
    with pytest.raises(Undecodable, match="members"):
        decompress("gzip", gzip.compress(b"") * (MAX_MEMBERS + 1), 100)


def test_a_cut_body_says_that_it_is_cut() -> None:
    with pytest.raises(Undecodable, match="too early"):
        decompress("deflate", zlib.compress(b"some text" * 10)[:-5], 1000)


@every
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=3), st.lists(st.integers(2, 500)))
def test_an_answer_in_pieces_is_the_answer(
    name: str, code: Callable[[bytes], bytes], parts: list[bytes], cuts: list[int]
) -> None:
    """Wherever the network cuts; of codings that have them, however many members or frames."""
    if name in ("br", "deflate"):
        parts = parts[:1]
    data, expander, found, at = b"".join(map(code, parts)), Expander(name), b"", 0
    for cut in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        found += b"".join(expander.feed(data[at:cut]))
        at = cut
    assert found == b"".join(parts)


@every
def test_an_answer_becomes_no_more_than_a_piece_at_once(name: str, code: Callable[[bytes], bytes]) -> None:
    sizes = list(map(len, Expander(name).feed(code(bytes(10_000_000)))))
    assert sum(sizes) == 10_000_000
    assert max(sizes) <= 2 * PIECE


@every
def test_an_answer_that_is_broken_is_undecodable(name: str, code: Callable[[bytes], bytes]) -> None:
    with pytest.raises(Undecodable):
        list(Expander(name).feed(b"\xff" * 10 + code(b"text")))


def test_an_answer_as_it_is() -> None:
    assert list(Expander("identity").feed(b"x")) == [b"x"]
    with pytest.raises(LookupError):
        Expander("compress")
