import pytest

from codexd.protocol.zstd import Undecodable, decompress
from support.zstd import zstd


def test_what_is_no_zstd_is_told() -> None:
    for data in (b"{}      ", zstd.compress(b"abc")[:-1]):
        with pytest.raises(Undecodable):
            decompress(data, 100)
    assert decompress(zstd.compress(bytes(1000)), 10) == bytes(11)
