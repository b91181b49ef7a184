import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.protocol.zstd import Undecodable, ZstdDecoder, decompress
from support.zstd import zstd


@given(st.lists(st.binary(max_size=200), min_size=1), st.lists(st.integers(1, 500)))
def test_a_body_in_pieces_is_the_body(frames: list[bytes], cuts: list[int]) -> None:
    """However many frames, and wherever the network cuts."""
    data, decoder, found, at = b"".join(map(zstd.compress, frames)), ZstdDecoder(), b"", 0
    for cut in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        found += decoder.feed(data[at:cut])
        at = cut
    assert found == b"".join(frames)
    assert decompress(data, 100_000) == found


def test_what_is_no_zstd_is_told() -> None:
    with pytest.raises(Undecodable):
        ZstdDecoder().feed(b"{}      ")
    for data in (b"{}      ", zstd.compress(b"abc")[:-1]):
        with pytest.raises(Undecodable):
            decompress(data, 100)
    assert decompress(zstd.compress(bytes(1000)), 10) == bytes(11)
