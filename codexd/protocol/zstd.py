"""The content coding zstd (RFC 8878), from the standard library or, before Python 3.14, its backport.

The module is imported when the first compressed body arrives: few clients compress, and the import costs memory.
"""

import io
import sys
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
    """Decompresses a body that arrives in pieces."""

    def __init__(self) -> None:
        self._zstd = _module()
        self._frame = self._zstd.ZstdDecompressor()

    def feed(self, data: bytes) -> bytes:
        """Returns the bytes that can be decompressed so far. Raises Undecodable."""
        found = []
        try:
            while data:
                if self._frame.eof:
                    self._frame = self._zstd.ZstdDecompressor()
                found.append(self._frame.decompress(data))
                data = self._frame.unused_data
        except self._zstd.ZstdError as error:
            raise Undecodable(str(error)) from error
        return b"".join(found)
