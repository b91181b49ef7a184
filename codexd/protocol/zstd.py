"""The content coding zstd (RFC 8878), from the standard library or, before Python 3.14, its backport.

The module is imported when the first compressed body arrives: few clients compress, and the import costs memory.
"""

import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


class Undecodable(Exception):
    """The data is not zstd, or incomplete."""


def _module() -> "ModuleType":
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def decompress(data: bytes, limit: int) -> bytes:
    """Decompresses all frames of a body, up to one byte more than ``limit``. Raises Undecodable."""
    zstd = _module()
    try:
        with zstd.ZstdFile(io.BytesIO(data)) as reader:
            body: bytes = reader.read(limit + 1)
    except (zstd.ZstdError, EOFError, MemoryError) as error:
        raise Undecodable(str(error)) from error
    return body


class ZstdDecoder:
    """Decompresses a body that arrives in pieces; yields pieces of at most ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self._zstd = _module()
        self._size = size
        self._frame = self._zstd.ZstdDecompressor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields the bytes that can be decompressed so far. Raises Undecodable."""
        try:
            while data or not (self._frame.eof or self._frame.needs_input):
                if self._frame.eof:
                    self._frame = self._zstd.ZstdDecompressor()
                if found := self._frame.decompress(data, max_length=self._size):
                    yield found
                data = self._frame.unused_data if self._frame.eof else b""
        except self._zstd.ZstdError as error:
            raise Undecodable(str(error)) from error
