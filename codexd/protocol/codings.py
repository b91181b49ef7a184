"""Content codings (RFC 9110, section 8.4): gzip, deflate, br and zstd; of requests up to a limit, of answers in pieces.

A few bytes may become any number of them, so nothing is decoded without a bound.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from codexd.protocol import zstd
from codexd.protocol.zstd import Undecodable

__all__ = ["Expander", "Undecodable", "decompress", "most"]

MAX_CODINGS = 4

MAX_MEMBERS = 16
"""Members of a gzip body (RFC 1952, section 2.2); each takes a copy of what follows it."""

FREE, RATIO = 4 * 1024 * 1024, 200
"""Bytes that any body may become, and what a larger one may become of each of its bytes. JSON has up to 20."""

PIECE = 256 * 1024
"""Bytes of an answer that are decoded at once."""

_OVERHEAD = 64 * 1024
"""Bytes by which a coding may make a body larger."""


def _reason(error: Exception) -> str:
    """Returns the library's message, without zlib's number."""
    return re.sub(r"^Error -?\d+ while decompressing data: ", "", str(error))


def most(size: int) -> int:
    """Returns how many bytes a compressed body of that size may become."""
    return max(FREE, RATIO * size)


def decompress(codings: str, data: bytes, limit: int) -> bytes:
    """Returns a body without its codings, up to one byte more than ``limit``.

    ``codings`` is the value of ``content-encoding``, in the order in which they were applied. Raises Undecodable for
    data that is not so coded, and LookupError for a coding that is not known.
    """
    names = [name.strip().lower() for name in codings.split(",")]
    if len(names) > MAX_CODINGS:
        raise LookupError(codings)
    for number, name in enumerate(reversed(names), 1):
        if name not in ("", "identity"):
            data = _DECODERS[name](data, limit if number == len(names) else limit + _OVERHEAD)
    return data


def _gzip(data: bytes, limit: int) -> bytes:
    found = b""
    for _ in range(MAX_MEMBERS):
        reader = zlib.decompressobj(zlib.MAX_WBITS | 16)
        found += _inflated(reader, data, limit + 1 - len(found))
        data = reader.unused_data.lstrip(b"\0")
        if not data or len(found) > limit:
            return found
    raise Undecodable(f"it has more than {MAX_MEMBERS} members")


def _deflate(data: bytes, limit: int) -> bytes:
    return _inflated(zlib.decompressobj(_window_of(data)), data, limit + 1)


def _window_of(data: bytes) -> int:
    # Without zlib's header (RFC 1950, section 2.2), as many understand the name.
    headed = len(data) > 1 and data[0] & 0xF == zlib.DEFLATED and (data[0] << 8 | data[1]) % 31 == 0
    return zlib.MAX_WBITS if headed else -zlib.MAX_WBITS


def _inflated(reader: "zlib._Decompress", data: bytes, size: int) -> bytes:
    try:
        found = reader.decompress(data, size)
    except zlib.error as error:
        raise Undecodable(_reason(error)) from error
    if not reader.eof and len(found) < size:
        raise Undecodable("the data ends too early")
    return found


def _brotli(data: bytes, limit: int) -> bytes:
    import brotli  # imported when one comes, as zstd is

    reader, found = brotli.Decompressor(), b""
    try:
        while not reader.is_finished() and len(found) <= limit:
            piece = reader.process(data, output_buffer_limit=limit + 1 - len(found))
            if not piece and not data:
                raise Undecodable("the data ends too early")
            found, data = found + piece, b""
    except brotli.error as error:
        raise Undecodable(_reason(error)) from error
    return found[: limit + 1]


_DECODERS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": zstd.decompress,
}


# --- in pieces


class _Decoder(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...


class Expander:
    """Decodes a body that arrives in pieces. ``coding`` is one coding; raises LookupError for an unknown one."""

    def __init__(self, coding: str) -> None:
        self._decoder: _Decoder | None = None
        if (name := coding.strip().lower()) not in ("", "identity"):
            self._decoder = _EXPANDERS[name]()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields what the data becomes, in pieces of about PIECE bytes at most. Raises Undecodable."""
        return iter((data,)) if self._decoder is None else self._decoder.feed(data)


class _Inflate:
    def __init__(self, window_of: Callable[[bytes], int]) -> None:
        self._window_of = window_of
        self._reader: zlib._Decompress | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            while data:
                if self._reader is None or self._reader.eof:
                    self._reader = zlib.decompressobj(self._window_of(data))
                if found := self._reader.decompress(data, PIECE):
                    yield found
                data = self._reader.unconsumed_tail or self._reader.unused_data
        except zlib.error as error:
            raise Undecodable(_reason(error)) from error


class _Brotli:
    def __init__(self) -> None:
        import brotli  # imported when one comes, as zstd is

        self._brotli: Any = brotli
        self._reader = brotli.Decompressor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            while found := self._reader.process(data, output_buffer_limit=PIECE):
                yield found
                data = b""
        except self._brotli.error as error:
            raise Undecodable(_reason(error)) from error


_EXPANDERS: Mapping[str, Callable[[], _Decoder]] = {
    "gzip": lambda: _Inflate(lambda _: zlib.MAX_WBITS | 16),
    "x-gzip": lambda: _Inflate(lambda _: zlib.MAX_WBITS | 16),
    "deflate": lambda: _Inflate(_window_of),
    "br": _Brotli,
    "zstd": lambda: zstd.ZstdDecoder(PIECE),
}
