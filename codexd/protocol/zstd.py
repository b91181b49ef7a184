"""The content coding zstd (RFC 8878), by Python's own module or, before 3.14, the same as a package.

The module is imported when the first compressed body comes: few clients compress, and its memory is for them.
"""

import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


class Undecodable(Exception):
    """It is no zstd, or not all of it."""


def _module() -> "ModuleType":
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def decompress(data: bytes, limit: int) -> bytes:
    """All frames of a whole body, but not more than one byte over ``limit``. Raises Undecodable."""
    zstd = _module()
    try:
        with zstd.ZstdFile(io.BytesIO(data)) as reader:
            body: bytes = reader.read(limit + 1)
    except (zstd.ZstdError, EOFError, MemoryError) as error:
        raise Undecodable(str(error)) from error
    return body


class ZstdDecoder:
    """A body that comes in pieces. As much comes out as can be said so far."""

    def __init__(self) -> None:
        self._zstd = _module()
        self._frame = self._zstd.ZstdDecompressor()

    def feed(self, data: bytes) -> bytes:
        """Raises Undecodable."""
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
